"""Arithmetic on elements that lie elsewhere: rotary embeddings, rolled windows and whatever else moves elements becomes one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import evaluate, sym
from compiler.ir.pieces import Piece, pieces
from compiler.ir.scalar import evaluate as element
from compiler.ir.types import DType, TensorType
from compiler.lowering import lower, workloads
from compiler.pipeline import optimize
from compiler.target import resolve
from tests.graph_cases import f32, feeds
from tests.test_fusion import check, groups
from tests.test_lowering import check_program

TARGET = resolve("x86-64-v3")


def parts(b: GraphBuilder, x: Value, axis: int, *sizes: int) -> list[Value]:
    """A value cut along an axis."""
    found, start = [], 0
    for size in sizes:
        starts, shape = [0] * x.type.rank, list(x.type.shape)
        starts[axis], shape[axis] = start, size
        found.append(b.emit("slice", x, starts=tuple(starts), sizes=tuple(shape), steps=(1,) * x.type.rank))
        start += size
    return found


def every_other(b: GraphBuilder, x: Value, first: int) -> Value:
    """Every other element of the last axis."""
    *outer, last = x.type.shape
    assert isinstance(last, int)
    return b.emit("slice", x, starts=(*(0,) * len(outer), first), sizes=(*outer, last // 2), steps=(*(1,) * len(outer), 2))


def stacked(b: GraphBuilder, x: Value, y: Value) -> Value:
    """Elements of two values by turns, along the last axis."""
    *outer, last = x.type.shape
    pair = [b.emit("reshape", v, shape=(*outer, last, 1)) for v in (x, y)]
    return b.emit("reshape", b.emit("concat", *pair, axis=len(outer) + 1), shape=(*outer, last * 2))


def rolled(b: GraphBuilder, x: Value, axis: int, by: int) -> Value:
    """A value rolled along an axis, as exporters write it."""
    size = x.type.shape[axis]
    assert isinstance(size, int)
    head, tail = parts(b, x, axis, by, size - by)
    return b.emit("concat", tail, head, axis=axis)


def windows(b: GraphBuilder, x: Value, size: int) -> Value:
    n, h, w, c = x.type.static_shape
    split = b.emit("reshape", x, shape=(n, h // size, size, w // size, size, c))
    return b.emit("reshape", b.emit("transpose", split, perm=(0, 1, 3, 2, 4, 5)), shape=(n * h * w // size**2, size * size, c))


def image(b: GraphBuilder, x: Value, size: int, shape: tuple[int, ...]) -> Value:
    n, h, w, c = shape
    split = b.emit("reshape", x, shape=(n, h // size, w // size, size, size, c))
    return b.emit("reshape", b.emit("transpose", split, perm=(0, 1, 3, 2, 4, 5)), shape=shape)


def rotary(b: GraphBuilder, x: Value, form: str) -> Value:
    """x turned by tables of constants, in one of the ways that models write it."""
    rows, size = x.type.static_shape[-2:]
    angles = np.outer(np.arange(rows), 0.1 ** np.arange(size // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    if form in ("half", "chunk"):
        low, high = parts(b, x, x.type.rank - 1, size // 2, size // 2)
    else:
        low, high = every_other(b, x, 0), every_other(b, x, 1)
    if form in ("chunk", "complex"):
        c, s = b.constant(cos), b.constant(sin)
        first = b.emit("sub", b.emit("mul", low, c), b.emit("mul", high, s))
        second = b.emit("add", b.emit("mul", high, c), b.emit("mul", low, s))
        return b.emit("concat", first, second, axis=x.type.rank - 1) if form == "chunk" else stacked(b, first, second)
    turned = b.emit("neg", high)
    if form == "half":
        other, tables = b.emit("concat", turned, low, axis=x.type.rank - 1), [np.concatenate([t, t], -1) for t in (cos, sin)]
    else:
        other, tables = stacked(b, turned, low), [np.repeat(t, 2, -1) for t in (cos, sin)]
    return b.emit("add", b.emit("mul", x, b.constant(tables[0])), b.emit("mul", other, b.constant(tables[1])))


@pytest.mark.parametrize("form", ["half", "chunk", "complex", "interleaved"])
@pytest.mark.parametrize("size", [4, 12, 64])
def test_a_rotary_embedding_is_one_kernel(form: str, size: int) -> None:
    b = GraphBuilder("rotary", folding=False)
    x = b.input("x", f32(1, 5, 3, size))
    apart = check(b.graph([rotary(b, b.emit("transpose", x, perm=(0, 2, 1, 3)), form)]))
    assert len(groups(apart)) == 1, groups(apart)


def test_tables_of_a_run_are_made_once_for_all_that_they_turn() -> None:
    b = GraphBuilder("tables", folding=False)
    q, k, positions = (b.input(name, f32(*shape)) for name, shape in (("q", (1, 2, 128, 32)), ("k", (1, 2, 128, 32)), ("p", (128, 1))))
    angles = b.emit("mul", positions, b.constant((0.1 ** np.arange(16)).astype(np.float32)))
    both = b.emit("concat", angles, angles, axis=1)
    cos, sin = b.emit("cos", both), b.emit("sin", both)
    results = []
    for x in (q, k):
        low, high = parts(b, x, 3, 16, 16)
        other = b.emit("concat", b.emit("neg", high), low, axis=3)
        results.append(b.emit("add", b.emit("mul", x, cos), b.emit("mul", other, sin)))
    found = groups(check(b.graph(results)))
    assert sum("cos" in ops for ops in found) == sum("sin" in ops for ops in found) == 1
    assert sum("roll" in ops for ops in found) == 2
    assert not any("roll" in ops and ("cos" in ops or "sin" in ops) for ops in found)


def test_rolled_windows_are_one_kernel_each_way() -> None:
    b = GraphBuilder("windows", folding=False)
    x = b.input("x", f32(1, 8, 8, 16))
    cut = b.emit("relu", windows(b, rolled(b, rolled(b, x, 1, 3), 2, 3), 4))
    back = image(b, b.emit("softmax", cut, axis=2, log=False), 4, (1, 8, 8, 16))
    result = b.emit("add", x, rolled(b, rolled(b, back, 1, 5), 2, 5))
    found = groups(check(b.graph([result])))
    assert len(found) == 3, found


def test_gates_of_halves_are_one_kernel() -> None:
    b = GraphBuilder("gate", folding=False)
    x = b.input("x", f32(2, 6, 32))
    left, right = parts(b, x, 2, 16, 16)
    assert len(groups(check(b.graph([b.emit("mul", b.emit("sigmoid", left), right)])))) == 1


def test_padding_and_fills_are_part_of_the_kernel() -> None:
    b = GraphBuilder("padded", folding=False)
    x = b.input("x", f32(1, 5, 6, 16))
    padded = b.emit("pad", b.emit("abs", x), begins=(0, 1, 0, 0), ends=(0, 2, 2, 0), mode="constant", value=-2.5)
    assert len(groups(check(b.graph([windows(b, padded, 4)])))) == 1


def test_sizes_of_a_run() -> None:
    b = GraphBuilder("symbolic", folding=False)
    x = b.input("x", TensorType(DType.FLOAT32, (sym("n"), 4, sym("t"), 16)))
    low, high = parts(b, x, 3, 8, 8)
    turned = b.emit("concat", b.emit("neg", high), low, axis=3)
    graph = b.graph([b.emit("add", x, b.emit("mul", turned, b.constant(np.arange(16, dtype=np.float32))))])
    planned = optimize(graph, TARGET, verify=True)[0]
    assert len(groups(planned)) == 1
    check_program(graph, lower(planned, TARGET, threads=2), workers=2)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.INT64, DType.BOOL, DType.FLOAT64])
def test_element_types(dtype: DType) -> None:
    b = GraphBuilder("typed", folding=False)
    x = b.input("x", TensorType(dtype, (3, 16)))
    low, high = parts(b, x, 1, 8, 8)
    arithmetic = "not" if dtype is DType.BOOL else "neg"
    graph = b.graph([b.emit("concat", b.emit(arithmetic, high), low, axis=1)])
    assert len(groups(check(graph))) == 1


def test_what_a_kernel_stores_anyway_is_not_computed_behind_it() -> None:
    b = GraphBuilder("behind", folding=False)
    x = b.input("x", f32(1, 64, 32))
    made = b.emit("gelu", b.emit("matmul", x, b.constant(np.full((32, 64), 0.25, np.float32))), approximate="none")
    left, right = parts(b, made, 2, 32, 32)
    assert groups(check(b.graph([b.emit("mul", left, right)]))) == ["matmul gelu", "slice slice mul"]


def test_what_two_kernels_move_is_there_for_both() -> None:
    b = GraphBuilder("twice", folding=False)
    wide = b.emit("expand", b.emit("neg", b.input("x", f32(1, 4))), shape=(3, 4))
    check(b.graph([wide, b.emit("identity", wide)]))


def test_dear_arithmetic_is_not_done_again_for_every_place() -> None:
    b = GraphBuilder("dear", folding=False)
    x = b.input("x", f32(64, 64))
    wide = b.emit("expand", b.emit("reshape", b.emit("erf", x), shape=(64, 1, 64)), shape=(64, 32, 64))
    y = b.input("y", f32(64, 32, 64))
    found = groups(check(b.graph([b.emit("add", wide, y)])))
    assert ["erf" in ops for ops in found] == [True, False]


def test_parts_that_kernels_make_where_they_are_joined_stay_a_join() -> None:
    b = GraphBuilder("joined", folding=False)
    x, y = b.input("x", f32(1, 32, 64)), b.input("y", f32(1, 32, 64))
    halves = [b.emit("softmax", v, axis=2, log=False) for v in (x, y)]
    joined = b.emit("concat", *halves, axis=1)
    found = groups(check(b.graph([b.emit("reduce", joined, kind="max", axes=(1,), keepdims=False), b.emit("relu", joined)])))
    assert not any("concat" in ops for ops in found)


def test_rows_read_across_stay_apart() -> None:
    """A transpose moves squares through registers; read one by one they would cost more than the kernel."""
    b = GraphBuilder("across", folding=False)
    x = b.input("x", f32(96, 96))
    left, right = parts(b, b.emit("transpose", x, perm=(1, 0)), 1, 48, 48)
    assert "transpose" in groups(check(b.graph([b.emit("mul", left, right)])))


@st.composite
def moving(draw: Any) -> Graph:
    """Graphs of nodes that move elements, and arithmetic on them, of every shape."""
    b = GraphBuilder("moving", folding=False)
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 6)), min_size=1, max_size=4)))
    pool = [b.input(f"x{i}", f32(*shape)) for i in range(draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(2, 9))):
        x = draw(st.sampled_from(pool[-3:]))
        dims = x.type.static_shape
        rank = len(dims)
        match draw(st.sampled_from(("transpose", "slice", "concat", "pad", "reshape", "expand", "neg", "add", "mul", "stack"))):
            case "transpose":
                value = b.emit("transpose", x, perm=tuple(draw(st.permutations(range(rank)))))
            case "slice":
                axis = draw(st.integers(0, rank - 1))
                step = draw(st.sampled_from((1, 1, 2, -1)))
                size = draw(st.integers(1, max(1, dims[axis] // abs(step))))
                start = draw(st.integers(0, dims[axis] - 1 - abs(step) * (size - 1)))
                starts, sizes, steps = [0] * rank, list(dims), [1] * rank
                starts[axis], sizes[axis], steps[axis] = start if step > 0 else dims[axis] - 1 - start, size, step
                value = b.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
            case "concat":
                axis = draw(st.integers(0, rank - 1))
                fits = [
                    v
                    for v in pool
                    if v.type.rank == rank and all(a == c for k, (a, c) in enumerate(zip(v.type.shape, dims, strict=True)) if k != axis)
                ]
                value = b.emit("concat", *(draw(st.sampled_from(fits)) for _ in range(draw(st.integers(2, 3)))), axis=axis)
            case "pad":
                around = [tuple(draw(st.integers(0, 2)) for _ in dims) for _ in range(2)]
                value = b.emit("pad", x, begins=around[0], ends=around[1], mode="constant", value=0.5)
            case "reshape":
                last = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if int(np.prod(dims)) % n == 0]))
                value = b.emit("reshape", x, shape=(int(np.prod(dims)) // last, last))
            case "expand":
                axis = draw(st.integers(0, rank))
                split = b.emit("reshape", x, shape=(*dims[:axis], 1, *dims[axis:]))
                value = b.emit("expand", split, shape=(*dims[:axis], 2, *dims[axis:]))
            case "stack":
                value = b.emit("concat", *(b.emit("reshape", v, shape=(*dims, 1)) for v in (x, b.emit("abs", x))), axis=rank)
            case "neg":
                value = b.emit("neg", x)
            case kind:
                fits = [v for v in pool if v.type.shape == dims[rank - v.type.rank :] and v.type.rank <= rank]
                value = b.emit(kind, x, draw(st.sampled_from(fits)))
        if value.type.elements <= 4096:
            pool.append(value)
    outputs = draw(st.lists(st.sampled_from([b.emit("neg", v) for v in pool[-2:]]), min_size=1, max_size=2, unique=True))
    return b.graph(outputs)


@settings(max_examples=60, deadline=None)
@given(moving())
def test_random_moves_run_as_interpreted(graph: Graph) -> None:
    check(graph)


@settings(max_examples=150, deadline=None)
@given(moving())
def test_pieces_cover_a_result_once_with_its_elements(graph: Graph) -> None:
    given_ = feeds(graph)
    for output, expected in zip(graph.outputs, interpret(graph, given_).values(), strict=True):
        found = pieces(output, graph.producers, graph.constants)
        if found is None:
            continue
        result, times = np.zeros(expected.size, np.float32), np.zeros(expected.size, np.int64)
        memory = [given_[value.name].reshape(-1) for value in found[1]]
        for piece in found[0]:
            places = _places(piece, piece.offset, piece.strides)
            reads = [memory[read.source][_places(piece, read.offset, read.strides)] for read in piece.reads]
            result[places] = np.broadcast_to(element(piece.element, reads), places.shape)
            np.add.at(times, places, 1)
        assert (times == 1).all()
        np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def _places(piece: Piece, offset: Any, strides: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    found = np.full([evaluate(extent, {}) for extent in piece.extents], evaluate(offset, {}))
    for grid, stride in zip(np.indices(found.shape), strides, strict=True):
        found += grid * evaluate(stride, {})
    return found


def test_a_result_of_too_many_boxes_is_not_one_kernel() -> None:
    b = GraphBuilder("cuts", folding=False)
    x = b.input("x", f32(64, 16))
    shuffled = b.emit("concat", *reversed(parts(b, x, 0, *[2] * 32)), axis=0)
    graph = b.graph([b.emit("concat", b.emit("neg", shuffled), shuffled, axis=1)])
    assert pieces(graph.outputs[0], graph.producers, {}) is None
    check(graph)


def test_every_schedule_gives_the_same() -> None:
    b = GraphBuilder("schedules", folding=False)
    graph = b.graph([rotary(b, b.input("x", f32(2, 3, 40)), "interleaved")])
    planned = optimize(graph, TARGET)[0]
    ((family, workload),) = workloads(planned, TARGET, 1)
    assert family.name == "moved"
    for schedule in family.space(workload, TARGET):
        check_program(graph, lower(planned, TARGET, threads=2, choose=lambda *_: schedule), workers=2)  # noqa: B023 # called at once
