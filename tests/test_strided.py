"""Views with strides: what transposes, slices and reshapes make of a memory, against numpy, and products that read through them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.interp import interpret_all
from compiler.ir.intexpr import sym
from compiler.ir.strided import Strided, chain, through
from compiler.ir.types import DType, TensorType
from compiler.lowering import lower
from compiler.pipeline import optimize
from tests.graph_cases import f32
from tests.test_fusion import TARGET, check, groups
from tests.test_lowering import check_program


def moved(b: GraphBuilder, x: Value, draw: Any, steps: int) -> Value:
    """x transposed, cut, reshaped, broadcast and mirrored."""
    for _ in range(steps):
        shape = x.type.static_shape
        match draw(st.sampled_from(("transpose", "slice", "split", "join", "expand", "pad"))):
            case "transpose":
                x = b.emit("transpose", x, perm=tuple(draw(st.permutations(range(len(shape))))))
            case "slice":
                spans = [sorted(draw(st.tuples(st.integers(0, dim - 1), st.integers(0, dim - 1)))) for dim in shape]
                steps_ = tuple(draw(st.sampled_from((1, 1, 2))) for _ in shape)
                sizes = tuple((end - start) // step + 1 for (start, end), step in zip(spans, steps_, strict=True))
                x = b.emit("slice", x, starts=tuple(start for start, _ in spans), sizes=sizes, steps=steps_)
            case "split" if len(shape) < 5:
                axis = draw(st.integers(0, len(shape) - 1))
                part = draw(st.sampled_from([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
                x = b.emit("reshape", x, shape=(*shape[:axis], part, shape[axis] // part, *shape[axis + 1 :]))
            case "join" if len(shape) > 2:
                axis = draw(st.integers(0, len(shape) - 2))
                x = b.emit("reshape", x, shape=(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
            case "expand":
                x = b.emit("expand", x, shape=tuple(3 if dim == 1 and draw(st.booleans()) else dim for dim in shape))
            case "pad":
                x = b.emit("pad", x, begins=(0,) * len(shape), ends=(0,) * len(shape), mode="reflect", value=0.0)
    return x


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_view_is_what_the_nodes_make(data: Any) -> None:
    b = GraphBuilder("g", folding=False)
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    x = b.input("x", f32(*shape))
    result = moved(b, x, data.draw, data.draw(st.integers(1, 4)))
    graph = b.graph([result])
    nodes = chain(result, graph.producers)
    view = through(nodes) if nodes else Strided.row_major(shape)
    array = np.arange(prod(shape), dtype=np.float32)
    want = interpret_all(graph, {"x": array.reshape(shape)})[result.name]
    if view is None:
        return
    assert view.elements == array.size
    places = np.full(view.shape, view.offset)
    for axis, stride in enumerate(view.strides):
        places = places + np.arange(view.shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(view.shape))]) * stride
    np.testing.assert_array_equal(array[places], want)


def test_what_is_no_view_is_none() -> None:
    whole = Strided.row_major((4, 6))
    turned = Strided((6, 4), (1, 6), 0, 24)
    assert turned.reshaped((24,)) is None
    assert turned.reshaped((2, 3, 4)) == Strided((2, 3, 4), (3, 1, 6), 0, 24)
    assert whole.reshaped((24,)) == Strided.row_major((24,))
    assert Strided.row_major((sym("n"), 6)).reshaped((sym("n"), 2, 3)) == Strided.row_major((sym("n"), 2, 3))
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(4, 6))
    for value in (
        b.emit("pad", x, begins=(0, 1), ends=(0, 0), mode="constant", value=0.0),
        b.emit("resize_nearest", x, scales=(1, 2)),
        b.emit("relu", x),
    ):
        assert through(chain(value, b.graph([value]).producers)) is None


def cut(b: GraphBuilder, x: Value, *sizes: int) -> Value:
    """The first elements along the last axes."""
    kept = (*x.type.static_shape[: x.type.rank - len(sizes)], *sizes)
    return b.emit("slice", x, starts=(0,) * len(kept), sizes=kept, steps=(1,) * len(kept))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_products_read_rows_where_they_lie(data: Any) -> None:
    b = GraphBuilder("g", folding=False)
    left, right = (
        moved(b, b.input(name, f32(*data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=4)))), data.draw, data.draw(st.integers(1, 3)))
        for name in ("x", "y")
    )
    left, right = (b.emit("reshape", v, shape=(1, *v.type.static_shape)) if v.type.rank < 3 else v for v in (left, right))
    depth = min(left.type.static_shape[-1], right.type.static_shape[-2])
    left = cut(b, left, depth)
    match data.draw(st.sampled_from(("as it is", "rectified", "gated"))):
        case "rectified":
            left = b.emit("relu", left)
        case "gated":
            gate = cut(b, moved(b, b.input("g", f32(2, depth, 3)), data.draw, 1), 1, 1)
            left = b.emit("mul", left, b.emit("sigmoid", b.emit("reshape", cut(b, gate, *(1,) * gate.type.rank), shape=(1, 1))))
    if data.draw(st.booleans()):
        right = cut(b, right, *(1,) * (right.type.rank - 2), depth, right.type.static_shape[-1])
    else:
        right = b.constant(np.random.default_rng(0).standard_normal((depth, 5)).astype(np.float32))
    check(b.graph([b.emit("relu", b.emit("matmul", left, right))]))


def test_a_transpose_that_only_products_read_is_not_made() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(1, 24, 7))
    turned = b.emit("transpose", x, perm=(0, 2, 1))
    products = [b.emit("matmul", turned, b.constant(np.full((24, 5), n, np.float32))) for n in (1, 2)]
    assert groups(check(b.graph(products))) == ["transpose matmul", "transpose matmul"]
    rows = b.input("rows", f32(2, 6, 3, 4))
    heads = b.emit("transpose", rows, perm=(0, 2, 1, 3))
    product = b.emit("matmul", heads, b.emit("transpose", heads, perm=(0, 1, 3, 2)))
    assert sorted(groups(check(b.graph([product])))) == ["transpose", "transpose matmul"]


def test_parts_of_a_tensor_are_computed_with_where_they_lie() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(1, 6, 48))
    gate, up = (b.emit("slice", x, starts=(0, 0, at), sizes=(1, 6, 24), steps=(1, 1, 1)) for at in (0, 24))
    gated = b.emit("mul", b.emit("swish", gate, alpha=1.0), up)
    product = b.emit("matmul", gated, b.constant(np.random.default_rng(0).standard_normal((24, 5)).astype(np.float32)))
    (only,) = groups(check(b.graph([product])))
    assert sorted(only.split()) == ["matmul", "mul", "slice", "slice", "swish"]
    assert sorted(groups(check(b.graph([product, up])))) == sorted([only, "slice"])
    shared = groups(check(b.graph([product, b.emit("add", gated, up)])))
    assert "matmul" in shared, "what others read, too, is made once"


def test_rows_that_lie_far_apart_are_brought_together() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(600, 300))
    weights = b.constant(np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32))
    far = b.emit("matmul", b.emit("transpose", x, perm=(1, 0)), weights)
    assert groups(check(b.graph([far]))) == ["transpose", "matmul"]


def test_sizes_that_only_a_run_knows() -> None:
    b = GraphBuilder("g")
    x = b.input("x", f32(sym("batch"), sym("length"), 3, 8))
    heads = b.emit("transpose", x, perm=(0, 2, 1, 3))
    part = b.emit("slice", heads, starts=(0, 1, 0, 4), sizes=(sym("batch"), 2, sym("length"), 4), steps=(1, 1, 1, 1))
    products = [b.emit("matmul", v, b.constant(np.eye(4, dtype=np.float32))) for v in (part, b.emit("relu", part))]
    assert groups(check(b.graph([products[0]]))) == ["transpose slice matmul"]
    assert groups(check(b.graph([products[1]]))) == ["transpose slice relu matmul"]


@pytest.mark.parametrize(("shape", "perm", "depth"), [((7, 1), (0, 1), 9), ((9, 7), (1, 0), 9), ((1, 7), (1, 0), 1), ((19, 3), (1, 0), 19)])
def test_half_precision_is_converted_where_it_lies(shape: tuple[int, int], perm: tuple[int, int], depth: int) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("transpose", b.input("x", TensorType(DType.FLOAT16, shape)), perm=perm)
    rows = b.emit("expand", x, shape=(x.type.static_shape[0], depth))
    y = b.input("y", TensorType(DType.FLOAT16, (depth, 11)))
    graph = b.graph([b.emit("matmul", rows, y)])
    check_program(graph, lower(optimize(graph, TARGET, verify=True)[0], TARGET, threads=1), tolerance=2e-3)
