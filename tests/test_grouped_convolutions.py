"""Grouped convolutions and channel shuffles of any widths: they stay in blocks, and compute what the interpreter does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Node, Value
from compiler.lowering import lower, workloads
from compiler.pipeline import optimize
from compiler.target import Target, native, resolve
from passes.base import PassManager
from passes.graph.recover import RecoverOps
from tests.graph_cases import CONV, check_same, f32, kernels_apart
from tests.test_lowering import check_program

HOST = native()
TARGETS = [t for t in map(resolve, ("x86-64-v3", "x86-64-v4")) if set(t.features) <= set(HOST.features)]


class Network:
    """A graph being written, of convolutions with random weights."""

    def __init__(self, channels: int, size: tuple[int, int] = (6, 7)) -> None:
        self.b = GraphBuilder("g", folding=False)
        self._rng = np.random.default_rng(0)
        self.x = self.b.input("x", f32(1, channels, *size))

    def constant(self, *shape: int) -> Value:
        return self.b.constant((self._rng.integers(-8, 9, shape) / 8).astype(np.float32))

    def conv(self, x: Value, filters: int, group: int = 1, kernel: int = 1, stride: int = 1) -> Value:
        """With a bias and relu."""
        attrs: dict[str, Any] = {**CONV, "group": group, "strides": (stride,) * 2, "pads": (kernel // 2,) * 4}
        made = self.b.emit("conv", x, self.constant(filters, channels(x) // group, kernel, kernel), **attrs)
        return self.b.emit("relu", self.b.emit("add", made, self.constant(1, filters, 1, 1)))

    def shuffle(self, x: Value, group: int) -> Value:
        """As it is exported."""
        batch, all_channels, *spatial = x.type.shape
        split = self.b.emit("reshape", x, shape=(batch, group, channels(x) // group, *spatial))
        swapped = self.b.emit("transpose", split, perm=(0, 2, 1, 3, 4))
        return self.b.emit("reshape", swapped, shape=(batch, all_channels, *spatial))

    def part(self, x: Value, start: int, size: int) -> Value:
        """Neighbouring channels."""
        sizes = (x.type.shape[0], size, *x.type.shape[2:])
        return self.b.emit("slice", x, starts=(0, start, 0, 0), sizes=sizes, steps=(1,) * 4)


def channels(x: Value) -> int:
    assert isinstance(x.type.shape[1], int)
    return x.type.shape[1]


def check_blocked(net: Network, result: Value, target: Target) -> None:
    """The program computes what the interpreter does, and no layout conversion stands between two convolutions."""
    graph = net.b.graph([net.b.emit("reduce", result, kind="sum", axes=(2, 3), keepdims=True)])
    planned = kernels_apart(graph, target)
    check_program(graph, lower(planned, target, threads=2), workers=2)
    behind: set[Node] = set()
    for node in planned.nodes:
        before = {planned.producers[value] for value in node.present_inputs if value in planned.producers}
        if does(node, "conv") or before & behind:
            behind.add(node)
    leads_on: set[Node] = set()
    for node in reversed(planned.nodes):
        after = {user for value in node.outputs for user in planned.users.get(value, ())}
        if does(node, "conv") or after & leads_on:
            leads_on.add(node)
    assert len(behind & leads_on) > 1
    assert not [node for node in behind & leads_on if does(node, "to_layout")]


def does(group: Node, op: str) -> bool:
    return any(inner.op == op for region in group.regions for inner in region.nodes)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_units_of_groups_and_shuffles_stay_in_blocks(target: Target) -> None:
    """Pointwise groups, a shuffle, a depthwise convolution and pointwise groups (arXiv:1707.01083, figure 2)."""

    @settings(max_examples=6, deadline=None)
    @given(st.integers(2, 8), st.integers(3, 7), st.integers(3, 12), st.integers(1, 2))
    def check(group: int, inner: int, outer: int, stride: int) -> None:
        net = Network(3)
        x = net.conv(net.x, group * outer, kernel=3)
        narrow = net.shuffle(net.conv(x, group * inner, group), group)
        y = net.conv(net.conv(narrow, group * inner, group * inner, kernel=3, stride=stride), group * outer, group)
        check_blocked(net, y if stride == 2 else net.b.emit("add", x, y), target)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_units_of_halves_stay_in_blocks(target: Target) -> None:
    """Two halves of a shuffled concatenation, of which one goes through convolutions (arXiv:1807.11164, figure 3)."""

    @settings(max_examples=6, deadline=None)
    @given(st.integers(5, 30))
    def check(half: int) -> None:
        net = Network(3)
        both = net.conv(net.x, 2 * half, kernel=3)
        for _ in range(2):
            left, right = (net.part(net.shuffle(both, 2), start, half) for start in (0, half))
            right = net.conv(net.conv(net.conv(right, half), half, half, kernel=3), half)
            both = net.b.emit("concat", left, right, axis=1)
        check_blocked(net, both, target)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_bottlenecks_of_many_groups_stay_in_blocks(target: Target) -> None:
    """Groups of a few channels between dense convolutions (arXiv:1611.05431; RegNets have wider ones)."""

    @settings(max_examples=6, deadline=None)
    @given(st.integers(2, 9), st.integers(3, 25), st.sampled_from([3, 5]), st.integers(1, 2))
    def check(group: int, width: int, kernel: int, stride: int) -> None:
        net = Network(5)
        y = net.conv(net.conv(net.conv(net.x, group * width), group * width, group, kernel, stride), 11)
        check_blocked(net, y, target)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_upsampling_by_groups_stays_in_blocks(target: Target) -> None:
    """What a transposed convolution becomes: one with more channels, whose phases are interleaved."""

    @settings(max_examples=6, deadline=None)
    @given(st.sampled_from([(1, 13), (1, 16), (12, 1), (3, 5), (4, 8)]), st.sampled_from([(2, 2), (1, 3), (4, 4)]))
    def check(groups: tuple[int, int], strides: tuple[int, int]) -> None:
        (group, width), phases = groups, strides[0] * strides[1]
        net = Network(3)
        y = net.conv(net.conv(net.x, group * 4), group * width * phases, group, 3)
        check_blocked(net, net.conv(net.b.emit("interleave", y, group=group, strides=strides), 7), target)

    check()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_correlations_of_what_a_run_computes_stay_in_blocks(target: Target) -> None:
    """One image's features as the filters for another's, channel by channel, as trackers do (arXiv:1812.11703, section 3.2), or all together."""

    @settings(max_examples=6, deadline=None)
    @given(st.integers(9, 20), st.booleans())
    def check(width: int, dense: bool) -> None:
        net = Network(5)
        image = net.conv(net.x, width, kernel=3)
        part = net.b.emit("slice", net.conv(net.x, width), starts=(0, 0, 1, 2), sizes=(1, width, 3, 3), steps=(1,) * 4)
        shape, group = ((1, width, 3, 3), 1) if dense else ((width, 1, 3, 3), width)
        filters = net.b.emit("reshape", part, shape=shape)
        match = net.b.emit("conv", image, filters, **{**CONV, "group": group, "pads": (1,) * 4})
        graph = net.b.graph([net.conv(match, 9)])
        for planned in (optimize(graph, target, verify=True)[0], apart := kernels_apart(graph, target)):
            check_program(graph, lower(planned, target, threads=2), workers=2)
        assert "generic_conv" not in {chosen.name for chosen, _ in workloads(apart, target, 2)}

    check()


@pytest.mark.parametrize("group", [1, 2, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_constant_image_under_filters_of_run_time(group: int, kernel: int) -> None:
    """Generators begin so, with filters that a style modulates (arXiv:1912.04958, section 2.2)."""
    net = Network(5)
    image = net.b.constant(np.random.default_rng(1).standard_normal((1, 16, 6, 7)).astype(np.float32))
    filters = net.b.input("filters", f32(16, 16 // group, kernel, kernel))
    made = net.b.emit("conv", image, filters, **{**CONV, "group": group, "pads": (kernel // 2,) * 4})
    graph = net.b.graph([net.conv(made, 9), net.conv(net.x, 3)])
    check_program(graph, lower(optimize(graph, HOST, verify=True)[0], HOST, threads=2), workers=2)


@pytest.mark.parametrize(("channels", "filters"), [(0, 4), (3, 0)])
def test_no_channels_and_no_filters(channels: int, filters: int) -> None:
    net = Network(channels)
    check_same(graph := net.b.graph([net.conv(net.x, filters, kernel=3)]), planned := optimize(graph, HOST, verify=True)[0])
    check_program(graph, lower(planned, HOST, threads=2), workers=2)


def recovered(net: Network, *results: Value) -> list[str]:
    """The operators after recovery, which computes the same."""
    graph = net.b.graph(results)
    after, _ = PassManager((RecoverOps(),), verify=True).run(graph)
    check_same(graph, after)
    return [node.op for node in after.nodes]


def test_a_shuffle_and_its_parts_are_one_operator_each() -> None:
    net = Network(12)
    shuffled = net.shuffle(net.x, 3)
    assert recovered(net, net.part(shuffled, 0, 5), net.part(shuffled, 5, 7)) == ["shuffle_channels"] * 2


def test_other_ways_to_move_channels_stay() -> None:
    net = Network(12)
    split = net.b.emit("reshape", net.x, shape=(1, 3, 4, 6, 7))
    turned = net.b.emit("reshape", net.b.emit("transpose", split, perm=(0, 2, 1, 4, 3)), shape=(1, 12, 6, 7))
    swapped = net.b.emit("transpose", split, perm=(0, 2, 1, 3, 4))
    elsewhere = net.b.emit("reshape", swapped, shape=(1, 6, 12, 7))
    cut = net.b.emit("slice", net.shuffle(net.x, 2), starts=(0, 0, 0, 0), sizes=(1, 6, 6, 7), steps=(1, 2, 1, 1))
    for moved, reason in (
        (turned, "it is not the two parts of the channels that are swapped"),
        (elsewhere, f"%{elsewhere.name} has not the shape of %{net.x.name}"),
    ):
        assert ("channel-shuffle", reason) in [(event.rule, event.reason) for event in RecoverOps().run(net.b.graph([moved])).events]
        assert "shuffle_channels" not in recovered(net, moved)
    assert recovered(net, cut) == ["shuffle_channels", "slice"]
