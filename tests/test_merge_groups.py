"""Kernels with several results: what becomes one, that every family stores all of them, and where they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorsmith as ts
from backends.reference import run_program
from compiler.driver import Options, build
from compiler.errors import InternalError, UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.control import planned_places
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import sym
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage, verify_graph
from compiler.lowering import lower
from compiler.pipeline import optimize, passes_for
from compiler.target import resolve
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.merge_groups import MergeGroups
from tests.graph_cases import CONV, f32, feeds
from tests.test_control_flow_native import SWAPPED
from tests.test_division import results
from tests.test_lowering import check_program

TARGET = resolve("x86-64-v3")
RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


def planned(graph: Graph) -> Graph:
    return optimize(graph, TARGET, verify=True)[0]


def kernels(graph: Graph) -> list[list[str]]:
    """The results of each kernel of a graph by name, once its program has been run beside the interpreter."""
    found = planned(graph)
    check_program(graph, lower(found, TARGET, threads=2), workers=2)
    return [[value.name for value in node.outputs] for node in found.nodes if node.op == "group"]


def run_natively(graph: Graph, given_: dict[str, np.ndarray], folder: Path, threads: int = 2) -> dict[str, np.ndarray]:
    names = {"input_names": tuple(value.name for value in graph.inputs), "output_names": tuple(value.name for value in graph.outputs)}
    build(graph.with_(attrs={**graph.attrs, **names}), Options.checked("native", threads, None, 3)).write(folder / "m.tsm")
    return ts.load(folder / "m.tsm").run(given_)


def conv(b: GraphBuilder, x: Value, filters: int, kernel: int = 1, group: int = 1) -> Value:
    kernels_ = b.constant(weights(filters, int(x.type.static_shape[1]) // group, kernel, kernel))
    return b.emit("conv", x, kernels_, **{**CONV, "group": group, "pads": (kernel // 2,) * 4})


def like(b: GraphBuilder, x: Value, *shape: int) -> Value:
    return b.constant(weights(*shape).astype(x.type.dtype.numpy))


POOL: dict[str, Any] = {"kind": "max", "kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
POOL |= {"ceil_mode": False, "count_include_pad": False}
CONV_4D: dict[str, Any] = {"strides": (1,) * 4, "pads": (0,) * 8, "dilations": (1,) * 4, "group": 1}

ANCHORS: dict[str, tuple[tuple[int, ...], Callable[[GraphBuilder, Value], Value]]] = {
    "elementwise": ((3, 21), lambda b, x: b.emit("tanh", x)),
    "scalar": ((), lambda b, x: b.emit("tanh", x)),
    "empty": ((3, 0), lambda b, x: b.emit("tanh", x)),
    "transpose": ((5, 9, 3), lambda b, x: b.emit("transpose", x, perm=(2, 0, 1))),
    "concat": ((3, 5), lambda b, x: b.emit("concat", x, x, axis=0)),
    "pad": ((1, 9), lambda b, x: b.emit("pad", x, begins=(1, 2), ends=(0, 3), mode="constant", value=-1.0)),
    "gather": ((6, 7), lambda b, x: b.emit("gather", x, b.constant(np.array([5, 0, 5])), axis=0)),
    "matmul": ((7, 12), lambda b, x: b.emit("add", b.emit("matmul", x, like(b, x, 12, 19)), like(b, x, 19))),
    "pointwise": ((1, 12, 5, 6), lambda b, x: b.emit("add", conv(b, conv(b, x, 24), 17), b.constant(weights(17, 1, 1)))),
    "direct": ((1, 3, 9, 8), lambda b, x: b.emit("add", conv(b, x, 17, 3), b.constant(weights(17, 1, 1)))),
    "depthwise": ((1, 12, 6, 7), lambda b, x: conv(b, conv(b, x, 24), 24, 3, 24)),
    "generic": ((1, 4, 2, 3, 2, 2), lambda b, x: b.emit("conv", x, like(b, x, 3, 4, 1, 1, 1, 1), **CONV_4D)),
    "pool": ((1, 8, 6, 7), lambda b, x: b.emit("pool", x, **POOL)),
    "reduce": ((9, 40), lambda b, x: b.emit("reduce", x, kind="sum", axes=(1,), keepdims=True)),
    "softmax": ((5, 33), lambda b, x: b.emit("softmax", x, axis=1, log=False)),
    "log softmax": ((5, 33), lambda b, x: b.emit("softmax", x, axis=0, log=True)),
    "normalize": ((5, 33), lambda b, x: b.emit("normalize", x, axes=(1,), groups=1, epsilon=1e-5, center=True)),
    "groups": ((2, 16, 3, 4), lambda b, x: b.emit("normalize", conv(b, x, 16), axes=(1, 2, 3), groups=4, epsilon=1e-5, center=True)),
    "positions": ((5, 33), lambda b, x: b.emit("arg_reduce", x, kind="max", axis=1, keepdims=True, last=False)),
}  # fmt: skip


HALF = ("elementwise", "transpose", "pad", "matmul", "softmax", "normalize", "pool")


@pytest.mark.parametrize(("name", "dtype"), [*((name, DType.FLOAT32) for name in ANCHORS), *((name, DType.FLOAT16) for name in HALF)])
def test_every_family_stores_all_results(name: str, dtype: DType, tmp_path: Path) -> None:
    """An anchor's result, more of it in another type, and that with an operand of its own: one kernel, whatever the anchor."""
    shape, make = ANCHORS[name]
    b = GraphBuilder("g", folding=False)
    result = make(b, b.input("x", TensorType(dtype, shape)))
    other = b.input("y", result.type)
    sign = b.emit("less", result, b.constant(np.zeros((), result.type.dtype.numpy)))
    graph = b.graph([result, b.emit("sub", b.emit("abs", result), other), sign])
    groups = [node for node in planned(graph).nodes if node.op == "group"]
    assert [len(node.outputs) for node in groups][-1] == 3, [len(node.outputs) for node in groups]
    given_ = feeds(graph)
    expected, tolerance = interpret(planned(graph), given_), 2e-3 if dtype is DType.FLOAT16 else 1e-5
    for threads in (1, 3):
        got = run_natively(graph, given_, tmp_path, threads)
        for key, array in expected.items():
            scale = max(1.0, float(np.abs(array.astype(np.float32)).max(initial=0)))
            if array.dtype == np.bool_:
                sure = np.abs(expected[result.name]) > tolerance * scale
                np.testing.assert_array_equal(got[key][sure], array[sure])
            else:
                np.testing.assert_allclose(got[key].astype(np.float64), array.astype(np.float64), rtol=0, atol=tolerance * scale)


def test_a_value_is_stored_only_where_it_is_read_elsewhere() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", f32(60, 60)), b.input("y", f32(60, 6))
    t = b.emit("softmax", x, axis=1, log=False)
    exp, negative = b.emit("exp", t), b.emit("neg", t)
    assert kernels(b.graph([exp, negative])) == [[exp.name, negative.name]]
    product = b.emit("matmul", t, y)
    assert kernels(b.graph([exp, product])) == [[t.name, exp.name], [product.name]]


def test_readers_of_the_same_elements_are_one_kernel() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = (
        b.input("x", f32(4, 6)),
        b.input(
            "y",
            f32(
                6,
            ),
        ),
    )
    sin, cos = b.emit("sin", x), b.emit("mul", b.emit("cos", x), y)
    assert kernels(b.graph([sin, cos])) == [[sin.name, cos.name]]


def test_what_is_elementwise_goes_into_a_later_anchors_kernel() -> None:
    b = GraphBuilder("g", folding=False)
    x, y, w = b.input("x", f32(4, 600)), b.input("y", f32(4, 6)), b.constant(weights(600, 6))
    gate = b.emit("tanh", y)
    total = b.emit("add", b.emit("matmul", x, w), gate)
    assert kernels(b.graph([gate, total])) == [[gate.name, total.name]]


def left(kind: str) -> Graph:
    """Two kernels of one shape, the later one elementwise, that must not become one."""
    b = GraphBuilder("g", folding=False)
    x, y, square = b.input("x", f32(40, 40)), b.input("y", f32(40, 1)), b.constant(weights(40, 40))
    t = b.emit("matmul", x, square)
    match kind:
        case "what lies between reads it":
            return b.graph([t, b.emit("relu", b.emit("add", b.emit("matmul", b.emit("softmax", t, axis=1, log=False), square), t))])
        case "it broadcasts":
            small = b.emit("tanh", y)
            return b.graph([small, b.emit("mul", b.emit("matmul", x, square), small)])
        case "it is read in another order":
            return b.graph([t, b.emit("exp", b.emit("transpose", t, perm=(1, 0)))])
        case "two anchors":
            return b.graph([b.emit("softmax", x, axis=1, log=False), b.emit("softmax", x, axis=0, log=False)])
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["what lies between reads it", "it broadcasts", "it is read in another order", "two anchors"])
def test_what_stays_apart(kind: str) -> None:
    assert all(len(results) == 1 for results in kernels(left(kind)))


@pytest.mark.parametrize(("early", "late", "merged"), [(400, 8, False), (8, 400, True)])
def test_no_more_memory_for_it(early: int, late: int, merged: bool) -> None:
    """A sum with a skip connection and what is made of it: the latter needs memory while what the sum is of is alive, which may be the peak."""
    b = GraphBuilder("g", folding=False)
    skip = b.emit("softmax", b.emit("matmul", b.input("x", f32(300, 60)), b.constant(weights(60, 60))), axis=1, log=False)
    wide = b.emit("relu", b.emit("matmul", skip, b.constant(weights(60, early))))
    total = b.emit("add", b.emit("matmul", wide, b.constant(weights(early, 60))), skip)
    scaled = b.emit("mul", total, b.constant(weights(60)))
    other = b.emit("relu", b.emit("matmul", b.emit("softmax", scaled, axis=0, log=False), b.constant(weights(60, late))))
    found = kernels(b.graph([b.emit("add", b.emit("matmul", other, b.constant(weights(late, 60))), total)]))
    assert any(len(results) == 2 for results in found) == merged


@st.composite
def networks(draw: st.DrawFn) -> Graph:
    """Anchors and arithmetic on values of a few shapes, each of which may be read again and again, and several of which are results."""
    b = GraphBuilder("random", folding=False)
    pool = [b.input(f"x{i}", f32(*shape)) for i, shape in enumerate(draw(st.lists(st.sampled_from(((9, 9), (1, 9))), min_size=1, max_size=3)))]
    for _ in range(draw(st.integers(2, 12))):
        x = draw(st.sampled_from(pool))
        kind = draw(st.sampled_from(("tanh", "neg", "add", "add", "mul", "softmax", "matmul", "transpose", "max", "less")))
        match kind:
            case "add" | "mul":
                value = b.emit(kind, x, draw(st.sampled_from(pool)))
            case "softmax":
                value = b.emit("softmax", x, axis=draw(st.integers(0, 1)), log=draw(st.booleans()))
            case "matmul":
                value = b.emit("mul", b.emit("matmul", x, b.constant(weights(9, 9))), b.constant(np.float32(0.1)))
            case "transpose":
                value = b.emit("transpose", x, perm=(1, 0)) if x.type.shape == (9, 9) else b.emit("neg", x)
            case "max":
                value = b.emit("reduce", x, kind="max", axes=(0,), keepdims=True)
            case "less":
                value = b.emit("cast", b.emit("less", x, draw(st.sampled_from(pool))), to=DType.FLOAT32)
            case _:
                value = b.emit(kind, x)
        pool.append(value)
    made = [value for value in pool if b.producer(value)]
    return b.graph(draw(st.lists(st.sampled_from(made), min_size=1, max_size=5, unique=True)))


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_graphs_mean_the_same_and_take_no_more_memory(graph: Graph) -> None:
    steps = passes_for(TARGET)
    grouped, _ = PassManager(steps[:-2], verify=True).run(graph)
    merged, _ = PassManager(steps[-2:], verify=True).run(grouped)
    check_program(graph, lower(merged, TARGET, threads=2), workers=2)
    apart, _ = PassManager(steps[-1:]).run(grouped)
    assert merged.attrs["arena_bound_bytes"] <= apart.attrs["arena_bound_bytes"]  # type: ignore[operator]
    again, _ = PassManager((MergeGroups(),)).run(grouped)
    assert print_graph(MergeGroups().run(again).graph) == print_graph(again)


def sum_and_product() -> Graph:
    """Of two values that end with them."""
    b = GraphBuilder("g", folding=False)
    made = [b.emit("softmax", b.input(name, f32(*shape)), axis=1, log=False) for name, shape in (("x", (50, 200)), ("y", (200, 50)))]
    p, q = (b.emit("reshape", value, shape=(100, 100)) for value in made)
    total, product = b.emit("add", p, q), b.emit("mul", p, q)
    return b.graph([b.emit("matmul", b.emit("matmul", total, product), total)])


def test_each_result_may_be_written_over_an_operand() -> None:
    graph = planned(sum_and_product())
    (node,) = (node for node in graph.nodes if len(node.outputs) == 2)
    assert planned_places(node, "in_place") == (0, 1)
    check_program(graph, lower(graph, TARGET, threads=2), workers=2)


def test_results_must_not_overlap() -> None:
    graph = planned(sum_and_product())
    (node,) = (node for node in graph.nodes if len(node.outputs) == 2)
    first, second = planned_places(node, "offset")
    assert first != second
    for name, items in (("offset", (first, first)), ("offset", (first,)), ("offset", (first, 8)), ("offset", (first, None))):
        broken = replace(node, attrs={**node.attrs, name: items})
        with pytest.raises(InternalError, match=r"overlaps|for each of 2|not a multiple|not a number"):
            verify_graph(graph.with_(nodes=tuple(broken if other is node else other for other in graph.nodes)), Stage.PLANNED)


def test_what_lies_in_strides_is_stored_alone() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", f32(300, 64)), b.input("y", f32(300, 64))
    parts = [b.emit("exp", x), b.emit("softmax", y, axis=1, log=False)]
    sine = b.emit("sin", x)
    graph = planned(b.graph([b.emit("concat", *parts, axis=1), sine]))
    assert [node.op for node in graph.nodes].count("join") == 1
    assert all(len(node.outputs) == 1 for node in graph.nodes)
    check_program(graph, lower(graph, TARGET, threads=2), workers=2)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_sizes_of_a_run(rows: int, tmp_path: Path) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(sym("n"), 19))
    t = b.emit("softmax", x, axis=1, log=False)
    graph = b.graph([b.emit("sub", t, x), t])
    assert [len(node.outputs) for node in planned(graph).nodes] == [2]
    given_ = {"x": weights(rows, 19)}
    for name, array in interpret(graph, given_).items():
        np.testing.assert_allclose(run_natively(graph, given_, tmp_path)[name], array, rtol=0, atol=1e-6)


def test_results_of_an_iteration_are_one_kernel() -> None:
    """What a loop carries on goes to buffers of its node; ``test_carried_values_change_places`` runs this one."""
    (loop,) = (node for node in planned(parse_graph(SWAPPED)).nodes if node.op == "loop")
    assert [len(node.outputs) for node in loop.regions[0].nodes] == [2]


def test_sizes_that_data_decide() -> None:
    """Each result of a size that only a run finds has a buffer of its own."""
    text = """g (float[n, k] x) => (float[m, p] a, float[m, p] b) {
        i = NonZero(x) c = Cast<to = 1>(i) s = Softmax<axis = 0>(c) a = Sin(s) b = Sub(s, c)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}').SerializeToString()
    node = planned(import_model(model)).nodes[-1]
    assert len({*planned_places(node, "dynamic")}) == len(node.outputs) == 2
    x = np.where(weights(5, 9) > 0, weights(5, 9), 0)
    native, expected, plain = results(model, {"x": x}, threads=2)
    for name in "ab":
        np.testing.assert_allclose(native[name], expected[name], rtol=0, atol=1e-5 * float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(plain[name], expected[name], rtol=0, atol=1e-5 * float(np.abs(expected[name]).max()))


def test_a_zero_that_a_further_result_divides_by_is_reported() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = (b.input(name, TensorType(DType.INT32, (3, 21))) for name in "xy")
    graph = b.graph([b.emit("neg", x), b.emit("div", x, y, name="ratio")])
    assert [len(node.outputs) for node in planned(graph).nodes] == [2]
    program = lower(planned(graph), TARGET, threads=1)
    x_, y_ = np.arange(63, dtype=np.int32).reshape(3, 21), np.full((3, 21), 2, np.int32)
    y_[1, 1] = 0
    with pytest.raises(UserError, match="zero") as caught:
        run_program(program, {"x": x_, "y": y_})
    assert "ratio" in caught.value.where
