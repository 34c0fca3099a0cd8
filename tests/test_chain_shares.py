"""Pairs of kernels share by share of their channels: what the graph means, in memory that is poisoned, and natively."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.program import Program, Shares
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.ir.verify import Stage, verify_graph
from compiler.lowering import lower
from compiler.pipeline import passes_for
from compiler.target import Target, native, resolve
from passes.base import PassManager
from passes.graph.chain_shares import ChainShares
from tests.graph_cases import CONV, check_same, f32, feeds
from tests.test_lowering import check_program
from tests.test_memory import run_natively

HOST = native()
TARGETS = [t for t in map(resolve, ("x86-64-v3", "x86-64-v4")) if set(t.features) <= set(HOST.features)]


class Net:
    """A graph being written; weights are constants unless told otherwise."""

    def __init__(self, *shape: int) -> None:
        self.b = GraphBuilder("g", folding=False)
        self._rng = np.random.default_rng(0)
        self.x = self.b.input("x", f32(*shape))

    def weights(self, *shape: int, run: bool = False) -> Value:
        if run:
            return self.b.input(self.b.unique("w"), f32(*shape))
        return self.b.constant((self._rng.integers(-8, 9, shape) / 8).astype(np.float32))

    def conv(self, x: Value, filters: int, size: int = 1, stride: int = 1, group: int = 1, *, run: bool = False) -> Value:
        """With a bias and relu."""
        width, axes = x.type.static_shape[1] // group, x.type.rank - 2
        attrs = {**CONV, "group": group, "strides": (stride,) * axes, "pads": (size // 2,) * 2 * axes, "dilations": (1,) * axes}
        made = self.b.emit("conv", x, self.weights(filters, width, *(size,) * axes, run=run), **attrs)
        return self.b.emit("relu", self.b.emit("add", made, self.weights(1, filters, *(1,) * axes)))

    def depthwise(self, x: Value, size: int = 3, stride: int = 1) -> Value:
        return self.conv(x, x.type.static_shape[1], size, stride, x.type.static_shape[1])

    def mean(self, x: Value) -> Value:
        return self.b.emit("reduce", x, kind="sum", axes=tuple(range(2, x.type.rank)), keepdims=True)

    def pool(self, x: Value, kind: str) -> Value:
        axes = x.type.rank - 2
        window = {"kernel_shape": (3,) * axes, "strides": (2,) * axes, "dilations": (1,) * axes, "pads": (1,) * 2 * axes}
        return self.b.emit("pool", x, kind=kind, ceil_mode=False, count_include_pad=False, **window)


def planned(graph: Graph, target: Target = HOST, *, cache_bytes: int, workers: int = 1) -> Graph:
    """The planned graph for a cache so small that pairs are chained."""
    steps = (replace(step, cache_bytes=cache_bytes, workers=workers) if isinstance(step, ChainShares) else step for step in passes_for(target))
    return PassManager(tuple(steps), verify=True).run(graph)[0]


def in_shares(program: Program) -> list[Shares]:
    return [step for step in program.body if isinstance(step, Shares)]


def check(graph: Graph, target: Target = HOST, **options: int) -> Program:
    """The program of a graph for a small cache, which computes what the graph means and reads back from its text."""
    found = planned(graph, target, **options)
    check_same(graph, found, 1e-5)
    program = lower(found, target, threads=2)
    check_program(graph, program, 2, 1e-5)
    text = print_program(program)
    assert print_program(parse_program(text, weights_of(program))) == text
    return program


FIRST = {
    "pointwise": lambda net, x, filters: net.conv(x, filters),
    "dense": lambda net, x, filters: net.conv(x, filters, 3),
    "strided": lambda net, x, filters: net.conv(x, filters, 3, 2),
    "of run time": lambda net, x, filters: net.conv(x, filters, 3, run=True),
    "residual": lambda net, x, filters: net.b.emit("add", net.conv(x, filters), net.conv(x, filters, 5)),
}
SECOND = {
    "depthwise": lambda net, x: net.depthwise(x),
    "strided": lambda net, x: net.depthwise(x, 5, 2),
    "maximum": lambda net, x: net.pool(x, "max"),
    "average": lambda net, x: net.pool(x, "average"),
    "mean": lambda net, x: net.mean(x),
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_pairs_of_kernels_share_by_share(target: Target) -> None:
    @settings(max_examples=10, deadline=None)
    @given(st.sampled_from(sorted(FIRST)), st.sampled_from(sorted(SECOND)), st.integers(4, 12), st.sampled_from((3, 8, 20)), st.data())
    def run(first: str, second: str, blocks: int, channels: int, data: Any) -> None:
        net = Net(1, channels, *data.draw(st.sampled_from(((9, 7), (40,)))))
        made = FIRST[first](net, net.x, blocks * target.lanes)
        cache_bytes = 4 * made.type.elements - 1
        program = check(net.b.graph([net.conv(SECOND[second](net, made), 5)]), target, cache_bytes=cache_bytes)
        wanted = (
            any(blocks % size == 0 for size in range(2, (blocks + 1) // 2))
            and -(-channels // target.lanes) * target.lanes <= blocks * target.lanes // 4
        )
        assert len(in_shares(program)) >= wanted

    run()


def test_native_code_in_shares() -> None:
    net = Net(1, 16, 56, 56)
    wide = 3 * HOST.l2_bytes // (56 * 56 * 4) // (8 * HOST.lanes) * (8 * HOST.lanes)
    result = net.mean(net.conv(net.depthwise(net.conv(net.x, wide), stride=2), 24))
    graph = net.b.graph([result]).with_(attrs={"input_names": ("x",), "output_names": (result.name,)})
    found, _ = PassManager(passes_for(HOST, threads=2), verify=True).run(graph)
    program = lower(found, HOST, threads=2)
    (step,) = in_shares(program)
    assert [program.functions[call.function].name.rpartition("_")[0] for call in step.body] == ["pointwise_conv", "depthwise_conv"]
    arenas = [each.attrs["arena_bytes"] for each in (found, planned(graph, cache_bytes=1 << 40))]
    assert arenas[0] < 0.6 * arenas[1]  # type: ignore[operator]
    given_ = feeds(graph)
    (want,), (got,) = interpret(graph, given_).values(), run_natively(graph, given_).values()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_what_may_not_be_cut_stays() -> None:
    """Several readers, all channels needed, a batch, channels in no whole number of blocks, shares that leave a worker idle."""
    lanes = HOST.lanes

    def shares(net: Net, *results: Value, **options: int) -> int:
        return len(in_shares(check(net.b.graph(results), cache_bytes=2048 * lanes, **options)))

    net = Net(1, 8, 9, 9)
    wide = net.conv(net.x, 8 * lanes)
    assert shares(net, net.mean(net.depthwise(wide))) == 1
    assert shares(net, net.mean(net.depthwise(wide)), workers=3) == 0
    assert shares(net, net.depthwise(wide), net.mean(wide)) == 0
    assert shares(net, net.conv(wide, 8, 3)) == 0
    assert shares(net, net.mean(net.depthwise(net.conv(net.x, 8 * lanes - 1)))) == 0
    net = Net(2, 8, 9, 9)
    assert shares(net, net.mean(net.depthwise(net.conv(net.x, 8 * lanes)))) == 0


def test_a_number_of_shares_that_cannot_be_is_refused() -> None:
    net = Net(1, 8, 9, 9)
    graph = planned(net.b.graph([net.mean(net.depthwise(net.conv(net.x, 8 * HOST.lanes)))]), cache_bytes=2048 * HOST.lanes)
    for count in (3, 0, 16, "two"):
        nodes = tuple(replace(node, attrs={**node.attrs, "shares": count}) if "shares" in node.attrs else node for node in graph.nodes)
        with pytest.raises(InternalError, match="cannot be computed in"):
            verify_graph(graph.with_(nodes=nodes), Stage.PLANNED)
