"""Concatenations that move nothing: whose operands are made where they lie in the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorsmith as ts
from compiler.driver import Options, build
from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.control import planned_places
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import sym
from compiler.ir.verify import Stage, verify_graph
from compiler.lowering import lower
from compiler.memory_budget import MemoryBudget
from compiler.pipeline import optimize, passes_for
from compiler.target import native, resolve
from passes.base import PassManager
from passes.graph import join
from passes.graph.order import OrderNodes
from tests.graph_cases import CONV, check_same, f32, feeds, kernels_apart
from tests.test_lowering import check_program
from tests.test_memory import run_natively

TARGET = resolve("x86-64-v3")
POOL: dict[str, Any] = {"kind": "max", "kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "ceil_mode": False}
POOL |= {"count_include_pad": False}


def planned(graph: Graph) -> Graph:
    found, _ = optimize(graph, TARGET, verify=True)
    check_same(graph, found, 1e-4)
    return found


def joins(graph: Graph) -> list[int]:
    """How many operands each join has."""
    return [len(node.inputs) for node in planned(graph).nodes if node.op == "join"]


def channels(x: Value) -> int:
    found = x.type.shape[1]
    assert isinstance(found, int)
    return found


def every(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph and of its regions."""
    for node in graph.nodes:
        yield node
        for region in node.regions:
            yield from every(region)


class Net:
    """A network of 1 x 1 convolutions."""

    def __init__(self, *size: Any, batch: int = 1) -> None:
        self.b = GraphBuilder("net", folding=False)
        self.rng = np.random.default_rng(0)
        self.x = self.b.input("x", f32(batch, 8, *(size or (20, 20))))

    def chain(self, length: int, filters: int = 8) -> Value:
        """So many convolutions after one another: what no other branch computes, too."""
        x = self.x
        for _ in range(length):
            x = self.conv(x, filters)
        return x

    def conv(self, x: Value, filters: int) -> Value:
        weights = (self.rng.integers(-8, 9, (filters, channels(x), 1, 1)) / 8).astype(np.float32)
        return self.b.emit("relu", self.b.emit("conv", x, self.b.constant(weights), **CONV))

    def end(self, x: Value) -> Value:
        """What reads all channels in blocks, and not as a sum of what its parts give."""
        weights = self.rng.standard_normal((channels(x), 1, 3, 3)).astype(np.float32)
        return self.b.emit("conv", x, self.b.constant(weights), **{**CONV, "group": channels(x), "pads": (1, 1, 1, 1)})

    def concat(self, *values: Value, axis: int = 1) -> Value:
        return self.b.emit("concat", *values, axis=axis)

    def slice(self, x: Value, start: int, size: int) -> Value:
        return self.b.emit("slice", x, starts=(0, start, 0, 0), sizes=(1, size, *x.type.shape[2:]), steps=(1, 1, 1, 1))

    def graph(self, *outputs: Value) -> Graph:
        names = tuple(f"y{number}" for number in range(len(outputs)))
        return self.b.graph(outputs).with_(attrs={"input_names": ("x",), "output_names": names})


def test_branches_are_made_in_place() -> None:
    net = Net()
    x = net.concat(net.chain(1), net.chain(2, 16), net.chain(3, 12))
    assert joins(net.graph(net.end(x))) == [3]


def test_dense_connections_share_one_memory() -> None:
    net = Net()
    x = net.conv(net.x, 8)
    for _ in range(3):
        x = net.concat(x, net.conv(net.b.emit("relu", x), 8))
    graph = net.graph(net.end(x))
    assert joins(graph) == [2, 2, 2]
    assert len([node for node in kernels_apart(graph, TARGET).nodes if node.op == "group"]) == 6


def test_neighbouring_parts_are_one_operand() -> None:
    net = Net()
    x = net.conv(net.x, 16)
    first, second = net.slice(x, 0, 8), net.slice(x, 8, 8)
    assert joins(net.graph(net.end(net.concat(first, second, net.conv(second, 8))))) == [2]


def test_an_output_is_made_in_place() -> None:
    net = Net()
    graph = net.graph(net.concat(*(net.b.emit("softmax", net.x, axis=axis, log=False) for axis in (2, 3))))
    assert joins(graph) == [2]


@pytest.mark.parametrize("batch", [1, 2])
def test_no_product_is_split_for_what_a_join_does(batch: int) -> None:
    net = Net(24, 24, batch=batch)
    graph = planned(net.graph(net.conv(net.concat(*map(net.chain, (1, 2, 3))), 8)))
    ops = [node.op for node in every(graph)]
    assert (ops.count("join"), ops.count("conv")) == (1, 7)


def test_a_sum_over_pixels_is_read_in_blocks_with_and_without_its_axes() -> None:
    for keepdims in (False, True):
        net = Net()
        x = net.conv(net.conv(net.x, 16), 16)
        graph = net.graph(net.conv(x, 8), net.b.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=keepdims))
        assert {node.present_inputs[0].type.block for node in every(planned(graph)) if node.op == "reduce"} == {8}


NEAR: dict[str, Any] = {
    "inside a block": lambda net: net.concat(net.chain(1, 12), net.chain(2)),
    "in strides, and read by another": lambda net: (lambda y: net.concat(net.conv(y, 16), y, axis=2))(net.conv(net.x, 16)),
    "the same value twice": lambda net: (lambda y: net.concat(y, y))(net.conv(net.x, 8)),
    "parts in another order": lambda net: (lambda y: net.concat(net.slice(y, 8, 8), net.slice(y, 0, 8)))(net.conv(net.x, 16)),
    "a part alone": lambda net: net.concat(net.slice(net.chain(1, 16), 8, 8), net.chain(2)),
}


@pytest.mark.parametrize("case", NEAR)
def test_what_does_not_lie_together_is_copied(case: str) -> None:
    net = Net()
    assert joins(net.graph(net.end(NEAR[case](net)))) == []


def test_a_value_lies_in_one_result_only() -> None:
    net = Net()
    x, y, z = (net.b.emit("softmax", net.x, axis=axis, log=False) for axis in (1, 2, 3))
    assert joins(net.graph(net.concat(x, y), net.concat(x, z))) == [2]


def test_an_output_that_is_an_operand_keeps_its_memory() -> None:
    net = Net()
    x, y = (net.b.emit("softmax", net.x, axis=axis, log=False) for axis in (2, 3))
    assert joins(net.graph(net.end(net.concat(x, y)), x)) == []
    assert joins(net.graph(net.end(net.concat(x, y)), net.b.emit("reshape", x, shape=(8, 400)))) == []


def test_a_result_does_not_wait_where_that_takes_more_memory() -> None:
    """The skip of a deep network: its half of the result would be taken from the beginning. A budget may have that."""
    net = Net()
    skip = net.conv(net.x, 8)
    x = net.b.emit("reduce", skip, kind="max", axes=(2, 3), keepdims=True)
    wide = net.conv(net.conv(x, 20_000), 8)
    large = net.b.emit("expand", wide, shape=(1, 8, 20, 20))
    for _ in range(2):
        large = net.conv(large, 8)
    graph = net.graph(net.end(net.concat(skip, large)))
    assert joins(graph) == []
    ample, _ = optimize(graph, TARGET, memory_budget=MemoryBudget(10**9), verify=True)
    assert [node.op for node in ample.nodes].count("join") == 1


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_results_of_sizes_that_a_run_knows_are_made_in_place(axis: int) -> None:
    net = Net(sym("h"), sym("w"))
    graph = net.graph(net.end(net.concat(net.chain(1), net.chain(2), axis=axis)))
    assert joins(graph) == [2]
    given_ = feeds(graph)
    (want,), (got,) = interpret(graph, given_).values(), run_natively(graph, given_).values()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [1, 2])
def test_sizes_of_a_run_may_be_none_or_one(axis: int, tmp_path: Path) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, sym("n"), sym("m")))
    parts = [b.emit("softmax", x, axis=over, log=False) for over in (1, 2)]
    joined = b.emit("concat", b.emit("concat", *parts, axis=1), b.emit("softmax", b.emit("concat", x, x, axis=1), axis=0, log=True), axis=axis)
    graph = b.graph([joined]).with_(attrs={"input_names": ("x",), "output_names": ("y",)})
    assert joins(graph) == {1: [3], 2: [2, 2]}[axis]
    path = tmp_path / "m.tsm"
    build(graph, Options.checked("native", 2, None, 3)).write(path)
    module = ts.load(path)
    for n, m in ((0, 3), (3, 0), (1, 1), (1, 9), (13, 1), (4, 21)):
        given_ = {"x": np.random.default_rng(0).standard_normal((2, n, m)).astype(np.float32)}
        (want,) = interpret(graph, given_).values()
        np.testing.assert_allclose(module.run(given_)["y"], want, rtol=0, atol=1e-6)


def test_a_graph_with_joins_keeps_its_order() -> None:
    net = Net()
    graph = net.graph(net.end(net.concat(net.chain(1), net.chain(2))))
    names = [step.name for step in passes_for(TARGET)]
    joined, _ = PassManager(passes_for(TARGET)[: names.index("plan-memory")]).run(graph)
    assert "join" in [node.op for node in joined.nodes]
    result = OrderNodes().run(joined)
    assert (result.changed, result.graph.nodes) == (False, joined.nodes)


def broken(graph: Graph, change: Any) -> Graph:
    """A planned graph in which the last operand of its join lies elsewhere."""
    join = next(node for node in graph.nodes if node.op == "join")
    moved = join.present_inputs[-1]
    maker = graph.producers[moved]
    attrs = {**maker.attrs, "offset": tuple(map(change, planned_places(maker, "offset")))}
    return graph.with_(nodes=tuple(replace(node, attrs=attrs) if node is maker else node for node in graph.nodes))


def test_the_verifier_knows_where_operands_must_lie() -> None:
    net = Net()
    graph = planned(net.graph(net.end(net.concat(net.chain(1), net.chain(2)))))
    verify_graph(broken(graph, lambda offset: offset), Stage.PLANNED)
    with pytest.raises(InternalError, match=r"not at their places|overlaps|outside the arena"):
        verify_graph(broken(graph, lambda offset: offset + 64), Stage.PLANNED)


@st.composite
def networks(draw: Any) -> Graph:
    """Convolutions and softmaxes whose results are put together, cut and put together again."""
    net = Net()
    pool = [net.x, net.conv(net.x, 8)]
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(pool[-4:]))
        width = channels(x)
        match draw(st.sampled_from(("conv", "conv", "concat", "concat", "cut", "relu", "softmax", "view"))):
            case "conv":
                pool.append(net.conv(x, draw(st.sampled_from((8, 16, 12)))))
            case "concat":
                others = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=2))
                pool.append(net.concat(x, *others))
            case "cut":
                cut = min(width, 8 * draw(st.integers(1, 3)))
                parts = [net.slice(x, 0, cut), *([net.slice(x, cut, width - cut)] if cut < width else [])]
                pool += [*parts, net.concat(*parts, draw(st.sampled_from(pool)))]
            case "view":
                pool.append(net.b.emit("reshape", net.b.emit("reshape", x, shape=(width, 400)), shape=x.type.shape))
            case "relu":
                pool.append(net.b.emit("add", net.b.emit("relu", x), x))
            case "softmax":
                pool.append(net.b.emit("softmax", x, axis=3, log=False))
    unread = [v for v in pool[1:] if not any(v in node.inputs for node in net.b.nodes)]
    return net.graph(*unread[:4])


@settings(max_examples=60, deadline=None)
@given(networks())
def test_any_network_gives_what_it_did(graph: Graph) -> None:
    before, _ = optimize(graph, TARGET, opt_level=0)
    after = planned(graph)
    verify_graph(after, Stage.PLANNED)
    check_same(before, after, 1e-4)


@settings(max_examples=12, deadline=None)
@given(networks())
def test_native_code_writes_where_the_result_lies(graph: Graph) -> None:
    given_ = feeds(graph)
    want = interpret(graph, given_)
    optimize(graph, native(), verify=True)
    for name, array in run_natively(graph, given_).items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=1e-5 * max(1.0, float(np.abs(want[name]).max(initial=0))))


@st.composite
def concatenations(draw: Any) -> Graph:
    """Results of all kinds of kernels, put together along all axes, those of what was put together before, too."""
    b, rng = GraphBuilder("net", folding=False), np.random.default_rng(draw(st.integers(0, 99)))
    pool = [b.input("x", f32(draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((3, 8, 16))), draw(st.integers(1, 4)), draw(st.integers(1, 9))))]

    def made(x: Value, kind: str) -> Value:
        match kind:
            case "conv":
                weights = b.constant((rng.integers(-4, 5, (channels(x), channels(x), 1, 1)) / 8).astype(np.float32))
                return b.emit("relu", b.emit("conv", x, weights, **CONV))
            case "depthwise":
                weights = b.constant((rng.integers(-4, 5, (channels(x), 1, 3, 3)) / 8).astype(np.float32))
                return b.emit("conv", x, weights, **{**CONV, "group": channels(x), "pads": (1, 1, 1, 1)})
            case "matmul":
                columns = x.type.static_shape[3]
                return b.emit("matmul", x, b.constant((rng.integers(-4, 5, (columns, columns)) / 8).astype(np.float32)))
            case "softmax":
                return b.emit("softmax", x, axis=draw(st.integers(1, 3)), log=draw(st.booleans()))
            case "transpose":
                n, c, h, w = x.type.static_shape
                return b.emit("reshape", b.emit("transpose", b.emit("abs", x), perm=(0, 1, 3, 2)), shape=(n, c, h, w))
            case "view":
                n, c, h, w = x.type.static_shape
                return b.emit("reshape", b.emit("softmax", b.emit("reshape", x, shape=(n, c * h, w)), axis=1, log=False), shape=(n, c, h, w))
            case _:
                return b.emit("pool", x, **POOL)

    kinds = st.sampled_from(("conv", "depthwise", "matmul", "softmax", "transpose", "view", "pool"))
    for _ in range(draw(st.integers(1, 4))):
        x = draw(st.sampled_from(pool[-2:]))
        if len(pool) == 1 or x.type.elements <= 500:
            parts = [made(draw(st.sampled_from([v for v in pool if v.type == x.type])), draw(kinds)) for _ in range(draw(st.integers(2, 3)))]
            pool.append(b.emit("concat", *parts, axis=draw(st.integers(0, 3))))
    unread = [v for v in pool if not any(v in node.inputs for node in b.nodes)]
    return b.graph([made(v, draw(kinds)) if draw(st.booleans()) else v for v in unread]).with_(attrs={"input_names": ("x",)})


@pytest.fixture(name="joins_pay")
def _joins_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is joined is small here."""
    monkeypatch.setattr(join, "KERNEL_WORK", 0)


@pytest.mark.usefixtures("joins_pay")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(concatenations())
def test_concatenations_along_all_axes_run_in_planned_memory(graph: Graph) -> None:
    check_program(graph, lower(planned(graph), TARGET, threads=2), workers=2)


@pytest.mark.usefixtures("joins_pay")
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(concatenations())
def test_native_code_stores_in_strides(graph: Graph) -> None:
    outputs = tuple(f"y{number}" for number in range(len(graph.outputs)))
    graph = graph.with_(attrs={**graph.attrs, "output_names": outputs})
    given_ = feeds(graph)
    want = interpret(graph, given_)
    for name, array in run_natively(graph, given_).items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=1e-5 * max(1.0, float(np.abs(want[name]).max(initial=0))))


def test_what_is_an_output_by_a_view_is_not_joined() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", b.input("x", f32(2, 6)))
    joined = b.emit("concat", b.emit("neg", x), x, axis=0)
    assert joins(b.graph([b.emit("reshape", x, shape=(12,)), joined])) == []
