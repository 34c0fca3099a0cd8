"""What needs no kernel: parts of a tensor that lie together, and values that their readers compute for themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph
from compiler.ir.intexpr import sym
from compiler.ir.op import lookup
from compiler.ir.places import memory_roots
from compiler.ir.types import DType, TensorType, pack_physical, unpack_physical
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from passes.analysis.liveness import overwritable
from passes.graph.group import Group
from tests.graph_cases import CONV, f32, kernels_apart, networks
from tests.test_lowering import check_program

TARGET = resolve("x86-64-v3")


def check(graph: Graph) -> Graph:
    """The planned graph, after its program has been run beside the interpreter, with small kernels apart and inside of others."""
    for planned in (optimize(graph, TARGET, verify=True)[0], apart := kernels_apart(graph, TARGET)):
        check_program(graph, lower(planned, TARGET, threads=2), workers=2)
    return apart


def groups(graph: Graph) -> list[str]:
    """The ops of each group, joined."""
    return [" ".join(inner.op for inner in node.regions[0].nodes) for node in graph.nodes if node.op == "group"]


@settings(max_examples=40, deadline=None)
@given(networks())
def test_random_networks_run_as_interpreted(graph: Graph) -> None:
    check(graph)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_slice_is_a_view_exactly_where_its_elements_lie_together(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    block = data.draw(st.sampled_from((1, 2, 3))) if len(shape) > 1 else 1
    starts, sizes, steps = [], [], []
    for axis, dim in enumerate(shape):
        start = data.draw(st.integers(0, dim - 1))
        start -= start % block if axis == 1 else 0
        size = data.draw(st.integers(1, dim - start))
        starts.append(start)
        sizes.append(size)
        steps.append(2 if size == 1 else 1)
    x = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    attrs = {"starts": tuple(starts), "sizes": tuple(sizes), "steps": tuple(steps)}
    source, result = TensorType(DType.FLOAT32, shape, block), TensorType(DType.FLOAT32, tuple(sizes), block)
    offset = lookup("slice").view_offset([source], attrs, result)
    (want,) = lookup("slice").evaluate([x], attrs)
    memory, count = pack_physical(x, block).reshape(-1), result.elements
    assert isinstance(count, int)
    found = [
        at for at in range(memory.size - count + 1) if np.array_equal(unpack_physical(memory[at : at + count], result.static_shape, block), want)
    ]
    if offset is not None:
        assert offset in found
    else:
        assert not found


def test_no_part_of_nothing_is_a_view() -> None:
    attrs = {"starts": (3, 0), "sizes": (0, 2), "steps": (1, 1)}
    assert lookup("slice").view_offset([f32(3, 2)], attrs, f32(0, 2)) is None


def sliced(kind: str) -> Graph:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(1, 16, 3, 3))
    if kind == "computed":
        x = b.emit("conv", x, b.constant(np.ones((16, 16, 1, 1), np.float32)), **CONV)
    elif kind == "constant":
        x = b.constant(np.arange(144, dtype=np.float32).reshape(1, 16, 3, 3))
    elif kind == "view":
        x = b.emit("reshape", x, shape=(2, 8, 3, 3))
        x = b.emit("slice", x, starts=(1, 0, 0, 0), sizes=(1, 8, 3, 3), steps=(1, 1, 1, 1))
    channels = x.type.shape[1]
    assert isinstance(channels, int)
    part = b.emit("slice", x, starts=(0, channels - 8, 0, 0), sizes=(1, 8, 3, 3), steps=(1, 1, 1, 1))
    product = b.emit("conv", part, b.constant(np.ones((8, 8, 1, 1), np.float32)), **CONV)
    return b.graph([product, b.emit("conv", part, b.constant(-np.ones((8, 8, 1, 1), np.float32)), **CONV)])


@pytest.mark.parametrize("kind", ["input", "computed", "constant", "view"])
def test_a_part_of_any_memory_is_read_in_place(kind: str) -> None:
    assert all("slice" not in ops for ops in groups(check(sliced(kind))))


def test_a_part_that_begins_where_only_a_run_knows() -> None:
    b = GraphBuilder("g", folding=False)
    table = b.constant(np.arange(40, dtype=np.float32).reshape(10, 4))
    x = b.input("x", f32(sym("n"), 4))
    rows = b.emit("slice", table, starts=(sym("n"), 0), sizes=(sym("n"), 4), steps=(1, 1))
    total = b.emit("add", x, rows)
    assert groups(check(b.graph([total, b.emit("mul", b.emit("slice", x, starts=(1, 0), sizes=(1, 4), steps=(1, 1)), x)]))) == ["add mul"]


def test_numbers_for_several_kernels_are_computed_in_each() -> None:
    b = GraphBuilder("g", folding=False)
    x, low, high = b.input("x", f32(5, 8)), b.input("low", f32()), b.input("high", f32())
    span = b.emit("sqrt", b.emit("abs", b.emit("sub", high, low)))
    half = b.emit("mul", x, span)
    product = b.emit("matmul", half, b.constant(np.ones((8, 3), np.float32)))
    other = b.emit("softmax", half, axis=1, log=False)
    assert sorted(groups(check(b.graph([b.emit("div", product, span), other])))) == ["softmax", "sub abs sqrt matmul div", "sub abs sqrt mul"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reductions_compute_what_they_read(data: Any) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = [data.draw(st.sampled_from((1, 2, 3, 8, 12))) for _ in range(rank)]
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=1))))
    b = GraphBuilder("g", folding=False)
    parts = [b.input("x", TensorType(data.draw(st.sampled_from((DType.FLOAT32, DType.FLOAT16))), tuple(shape)))]
    for number in range(data.draw(st.integers(1, 3))):
        other = tuple(dim if data.draw(st.booleans()) else 1 for dim in shape)[data.draw(st.integers(0, rank - 1)) :]
        constant = np.arange(int(np.prod(other)), dtype=np.float32).reshape(other) % 3 - 1
        dtype = parts[0].type.dtype
        parts.append(b.constant(constant.astype(dtype.numpy)) if data.draw(st.booleans()) else b.input(f"y{number}", TensorType(dtype, other)))
    value = parts[0]
    for part in parts[1:]:
        value = b.emit(data.draw(st.sampled_from(("add", "mul", "maximum"))), value, part)
    kind = data.draw(st.sampled_from(("sum", "max", "min")))
    total = b.emit("reduce", value, kind=kind, axes=axes, keepdims=data.draw(st.booleans()))
    planned = kernels_apart(b.graph([b.emit("neg", total)]), TARGET)
    # Kernels keep float16 wide between their nodes, as the interpreter does inside a group only.
    check_program(planned, lower(planned, TARGET, threads=2), workers=2, tolerance=1e-3)
    assert len(groups(planned)) == 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_products_compute_what_they_read(data: Any) -> None:
    batch = data.draw(st.lists(st.sampled_from((1, 2, 3)), max_size=2))
    rows, depth, columns = (data.draw(st.sampled_from((1, 2, 7, 16, 19))) for _ in range(3))
    first = TensorType(data.draw(st.sampled_from((DType.FLOAT32, DType.FLOAT16))), (*batch, rows, depth))
    shape, dtype = first.static_shape, first.dtype
    b = GraphBuilder("g", folding=False)
    value = b.input("x", first)
    for number in range(data.draw(st.integers(1, 3))):
        other = tuple(dim if data.draw(st.booleans()) else 1 for dim in shape)[data.draw(st.integers(0, len(shape) - 1)) :]
        constant = np.arange(int(np.prod(other)), dtype=np.float32).reshape(other) % 3 - 1
        part = b.constant(constant.astype(dtype.numpy)) if data.draw(st.booleans()) else b.input(f"y{number}", TensorType(dtype, other))
        value = b.emit(data.draw(st.sampled_from(("add", "mul", "maximum"))), value, part)
    outer = data.draw(st.sampled_from([(), (1,) * len(batch), tuple(batch), tuple(3 if dim == 1 else dim for dim in batch)]))
    right = (*outer, depth, columns)
    weights = b.constant((np.arange(np.prod(right)).reshape(right) % 5 - 2).astype(dtype.numpy))
    product = b.emit("matmul", value, weights if data.draw(st.booleans()) else b.input("w", TensorType(dtype, right)))
    planned = kernels_apart(b.graph([b.emit("neg", product)]), TARGET)
    # Kernels keep float16 wide between their nodes, as the interpreter does inside a group only.
    check_program(planned, lower(planned, TARGET, threads=data.draw(st.sampled_from((1, 2)))), workers=2, tolerance=1e-3)
    assert len(groups(planned)) == 1


def test_products_of_a_size_of_a_run_compute_what_they_read() -> None:
    b = GraphBuilder("g", folding=False)
    x, y, scale = b.input("x", f32(2, sym("n"), sym("k"))), b.input("y", f32(sym("k"), 5)), b.input("s", f32(1, sym("n"), 1))
    assert groups(check(b.graph([b.emit("matmul", b.emit("exp", b.emit("mul", x, scale)), y)]))) == ["mul exp matmul"]


def test_what_is_read_before_a_product_and_behind_it_is_computed_in_both_places() -> None:
    b = GraphBuilder("g", folding=False)
    x, low, high = b.input("x", f32(5, 8)), b.input("low", f32()), b.input("high", f32())
    span = b.emit("sqrt", b.emit("abs", b.emit("sub", high, low)))
    product = b.emit("matmul", b.emit("div", x, span), b.constant(np.ones((8, 8), np.float32)))
    planned = check(b.graph([b.emit("mul", product, span)]))
    assert groups(planned) == ["sub abs sqrt div matmul mul"]


def test_a_product_does_not_write_over_what_its_prologue_reads() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", f32(8, 8)), b.input("y", f32(8, 8))
    product = b.emit("matmul", b.emit("tanh", x), b.constant(np.ones((8, 8), np.float32)))
    grouped = Group().run(b.graph([b.emit("add", product, y)])).graph
    (group,) = grouped.nodes
    assert [[group.present_inputs[number] for number in over] for over in overwritable(group, memory_roots(grouped))] == [[y]]


def test_a_blocked_reduction_computes_what_it_reads() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", b.emit("conv", b.input("x", f32(1, 3, 4, 4)), b.constant(np.ones((12, 3, 1, 1), np.float32)), **CONV))
    y = b.emit("relu", b.emit("conv", b.input("y", f32(1, 3, 1, 4)), b.constant(np.ones((12, 3, 1, 1), np.float32)), **CONV))
    row = b.input("row", f32(1, 1, 4, 1))
    scaled = b.emit("mul", b.emit("mul", x, y), row)
    total = b.emit("reduce", scaled, kind="sum", axes=(2, 3), keepdims=True)
    results = [b.emit("conv", v, b.constant(np.ones((8, 12, 1, 1), np.float32)), **CONV) for v in (x, y, total)]
    assert "mul mul reduce" in groups(check(b.graph(results)))


def test_what_others_read_is_not_computed_in_a_reduction() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(40, 30))
    powers = b.emit("exp", b.emit("tanh", x))
    total = b.emit("reduce", powers, kind="sum", axes=(1,), keepdims=True)
    assert groups(check(b.graph([b.emit("sub", powers, total)]))) == ["tanh exp", "reduce", "sub"]


def test_integers_divided_by_what_may_be_zero_are_not_computed_in_a_reduction() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = (b.input(name, TensorType(DType.INT32, (4, 6))) for name in "xy")
    total = b.emit("reduce", b.emit("div", x, b.emit("maximum", y, b.constant(np.int32(1)))), kind="sum", axes=(1,), keepdims=False)
    assert groups(check(b.graph([total]))) == ["maximum div", "reduce"]


def test_what_takes_long_is_computed_once() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", f32(64, 256)), b.input("y", f32(64, 256))
    slow = b.emit("tanh", x)
    found = groups(optimize(b.graph([b.emit("add", slow, y), b.emit("mul", slow, y)]), TARGET, verify=True)[0])
    assert found == ["tanh add mul"]
