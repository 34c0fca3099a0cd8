"""Memory: the order of nodes, and offsets down to the lower bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorsmith as ts
from compiler.driver import Options, build
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.interp import interpret
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage, is_view, verify_graph
from compiler.pipeline import optimize, passes_for
from compiler.target import native, resolve
from passes.analysis.liveness import Interval, max_live_bytes
from passes.analysis.packing import place
from passes.base import PassManager
from passes.graph.order import OrderNodes
from passes.graph.plan import PlanMemory
from tests.graph_cases import check_same, f32, feeds, networks

TARGET = resolve("x86-64-v3")


def grouped(graph: Graph) -> Graph:
    """The graph as it is when its groups are made."""
    steps = passes_for(TARGET)
    names = [step.name for step in steps]
    return PassManager(steps[: names.index("order-nodes")]).run(graph)[0]


def bound(graph: Graph) -> int:
    """The most bytes that live at once, by the planner."""
    found = PlanMemory(effort=0).run(graph).graph.attrs["arena_bound_bytes"]
    assert isinstance(found, int)
    return found


@st.composite
def branches(draw: Any) -> Graph:
    """Few nodes of many sizes, which branch and meet: products that widen and narrow, views, and elementwise nodes that can be in place."""
    b = GraphBuilder("branches", folding=False)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pool = [b.input("x", f32(4, 8))]
    for _ in range(draw(st.integers(3, 7))):
        x = draw(st.sampled_from(pool[-4:]))
        kind = draw(st.sampled_from(("product", "product", "softmax", "view", "add")))
        if kind == "product":
            width = draw(st.sampled_from((4, 16, 64, 200)))
            pool.append(b.emit("matmul", x, b.constant(rng.standard_normal((x.type.static_shape[1], width)).astype(np.float32))))
        elif kind == "softmax":
            pool.append(b.emit("softmax", x, axis=1, log=False))
        elif kind == "view":
            pool.append(b.emit("reshape", b.emit("reshape", x, shape=(x.type.static_shape[1], 4)), shape=x.type.static_shape))
        else:
            pool.append(b.emit("add", x, draw(st.sampled_from([v for v in pool if v.type == x.type]))))
    unread = [v for v in pool[1:] if not any(v in node.inputs for node in b.nodes)]
    return b.graph([b.emit("reduce", v, kind="sum", axes=(0, 1), keepdims=False) for v in unread])


def all_orders(graph: Graph) -> Iterator[Graph]:
    """The graph with its groups in every order that is possible, each view where it is first needed."""
    work = [node for node in graph.nodes if not is_view(node)]

    def views(value: Value, known: list[Node]) -> list[Node]:
        node = graph.producers.get(value)
        if node is None or not is_view(node) or node in known:
            return []
        return [*views(node.present_inputs[0], known), node]

    def source(value: Value) -> Node | None:
        node = graph.producers.get(value)
        return source(node.present_inputs[0]) if node is not None and is_view(node) else node

    def extend(done: list[Node]) -> Iterator[list[Node]]:
        left = [node for node in work if node not in done]
        if not left:
            yield done
        for node in left:
            if all(source(v) is None or source(v) in done for v in node.present_inputs):
                ready = list(done)
                for value in node.present_inputs:
                    ready += views(value, ready)
                yield from extend([*ready, node])

    for nodes in extend([]):
        yield graph.with_(nodes=tuple(nodes))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(branches())
def test_the_order_found_is_the_best_of_all(graph: Graph) -> None:
    before = grouped(graph)
    if sum(not is_view(node) for node in before.nodes) > 7:
        return
    after = OrderNodes().run(before)
    verify_graph(after.graph, Stage.GROUPED)
    check_same(before, after.graph)
    assert bound(after.graph) == min(map(bound, all_orders(before)))
    assert after.changed == (bound(after.graph) < bound(before))


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([1, 100, 30_000]))
def test_an_order_is_never_worse(graph: Graph, effort: int) -> None:
    before = grouped(graph)
    after = OrderNodes(effort).run(before)
    verify_graph(PlanMemory().run(after.graph).graph, Stage.PLANNED)
    check_same(graph, after.graph, 1e-4)
    assert bound(after.graph) <= bound(before)
    assert OrderNodes(effort).run(before).graph.nodes == after.graph.nodes
    assert not OrderNodes(effort).run(after.graph).changed


def test_large_results_of_branches_do_not_wait_for_each_other() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(4, 8))
    wide = [b.emit("relu", b.emit("matmul", x, b.constant(np.full((8, 1000), k, np.float32)))) for k in (1, 2, 3)]
    narrow = [b.emit("softmax", b.emit("matmul", w, b.constant(np.ones((1000, 4), np.float32))), axis=1, log=False) for w in wide]
    graph = b.graph([b.emit("concat", *narrow, axis=1)])
    before = grouped(graph)
    after = OrderNodes().run(before)
    assert (bound(before), bound(after.graph)) == (3 * 16_000 + 64, 16_000 + 3 * 64)
    assert after.notes == ("48064 bytes at once before, 16192 after",)
    check_same(graph, after.graph)


def test_equal_layers_are_packed_to_the_bound() -> None:
    """Attention's sizes: first-fit leaves some layer above the bound, whichever order it takes."""
    residual, joint, scores = 151_296, 453_888, 465_728
    layer = [(1, 3, joint), (3, 8, joint), (4, 10, residual), (5, 14, residual), (8, 12, residual), (10, 12, residual)]
    layer += [(12, 13, scores), (13, 14, scores), (14, 15, residual), (18, 19, 4 * residual)]
    found = [Interval(nbytes, 20 * k + first, 20 * k + last) for k in range(12) for first, last, nbytes in layer]
    found.append(Interval(residual, 0, 240))
    assert max_live_bytes(found) == place(found, 400_000)[1] < place(found, 0)[1]


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("epilogue", ["none", "scaled", "with its operand", "with another"])
def test_softmax_writes_over_its_operand(epilogue: str, axis: int, log: bool, dtype: DType) -> None:
    """But not where the epilogue reads it, nor over what else the epilogue reads: both are read after the first results are stored."""
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", TensorType(dtype, (3, 21, 37))), b.input("y", TensorType(dtype, (3, 21, 37)))
    scores = b.emit("reduce", b.emit("tanh", b.emit("reshape", x, shape=(1, 3, 21, 37))), kind="max", axes=(0,), keepdims=False)
    other = b.emit("reduce", b.emit("tanh", b.emit("reshape", y, shape=(1, 3, 21, 37))), kind="max", axes=(0,), keepdims=False)
    result = b.emit("softmax", scores, axis=axis, log=log)
    if epilogue != "none":
        half = b.constant(np.full((1, 1, 1), 0.5, dtype.numpy))
        result = b.emit("mul", result, {"scaled": half, "with its operand": scores, "with another": other}[epilogue])
    graph = b.graph([b.emit("reduce", result, kind="sum", axes=(1,), keepdims=False), b.emit("reduce", other, kind="max", axes=(1,), keepdims=False)])
    graph = graph.with_(attrs={"input_names": ("x", "y"), "output_names": ("p", "q")})
    planned, _ = optimize(graph, native(), verify=True)
    over = {inner.op: node.attrs.get("in_place") for node in planned.nodes for region in node.regions for inner in region.nodes}
    assert over["softmax"] == (None if epilogue == "with its operand" else (0,))
    given = feeds(graph)
    want = interpret(graph, given)
    tolerance = 2e-3 if dtype is DType.FLOAT16 else 1e-5
    for got in (interpret(planned, given), run_natively(graph, given)):
        for name, array in want.items():
            wanted = array.astype(np.float32)
            np.testing.assert_allclose(got[name].astype(np.float32), wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))


def run_natively(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tsm"
        build(graph, Options.checked("native", 2, None, 3)).write(path)
        found = ts.load(path).run(given)
    return dict(zip((value.name for value in graph.outputs), found.values(), strict=True))
