"""Products of three matrices in the cheaper order."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from graph_cases import f32
from hypothesis import given, settings
from hypothesis import strategies as st
from recovery import recovered

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import sym
from compiler.ir.types import DType, TensorType

BATCHES = st.sampled_from(((), (1,), (4,), (3, 1), (3, 4)))


def work(graph: Graph) -> int:
    """Multiply-adds."""
    products = [node for node in graph.nodes if node.op == "matmul"]
    return sum(prod(node.output.type.static_shape) * node.present_inputs[0].type.static_shape[-1] for node in products)


def product(b: GraphBuilder, factors: list[Value], *, left_first: bool, scale: float | None = None) -> Value:
    """Of three factors, with a scale on the one of two that is computed first."""
    first = b.emit("matmul", *(factors[:2] if left_first else factors[1:]))
    if scale is not None:
        first = b.emit("mul", b.constant(np.full((1,) * first.type.rank, scale, np.float32)), first)
    return b.emit("matmul", *((first, factors[2]) if left_first else (factors[0], first)))


@settings(max_examples=40, deadline=None)
@given(st.lists(BATCHES, min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=4, max_size=4), st.booleans(), st.sampled_from((None, 0.25)))
def test_products_of_three_take_the_cheaper_order(batches: list[tuple[int, ...]], sizes: list[int], left_first: bool, scale: float | None) -> None:
    """Batches, which broadcast, counted."""
    b = GraphBuilder("g", folding=False)
    factors = [b.input(name, f32(*batch, *pair)) for name, batch, pair in zip("abc", batches, pairwise(sizes), strict=True)]
    after = recovered(b.graph([product(b, factors, left_first=left_first, scale=scale)])).graph
    rows, k, n, columns = sizes
    whole, left, right = (prod(np.broadcast_shapes(*some)) for some in (batches, batches[:2], batches[1:]))
    assert work(after) == min(n * rows * (left * k + whole * columns), k * columns * (right * n + whole * rows))


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ((f32(2, 4), f32(4, 2), f32(2, 4)), "it takes 32 multiply-adds, and 64 in the other order"),
        ((f32(sym("N"), 2), f32(2, sym("N")), f32(sym("N"), 2)), "not all sizes of the factors are known"),
        ([TensorType(DType.FLOAT16, shape) for shape in ((9, 2), (2, 9), (9, 2))], "another order could be out of the range of f16"),
    ],
)
def test_other_products_stay(types: list[TensorType], reason: str) -> None:
    b = GraphBuilder("g", folding=False)
    result = recovered(b.graph([product(b, [b.input(name, type_) for name, type_ in zip("abc", types, strict=True)], left_first=True)]))
    assert not result.changed
    assert {(event.rule, event.reason) for event in result.events} == {("cheaper-order", reason)}


def test_products_that_others_read_and_of_constants_stay() -> None:
    b = GraphBuilder("g", folding=False)
    a, left, right = b.input("a", f32(9, 2)), b.constant(np.ones((2, 9), np.float32)), b.constant(np.ones((9, 2), np.float32))
    first = b.emit("matmul", a, b.input("b", f32(2, 9)), name="first")
    outputs = [product(b, [a, left, right], left_first=True), b.emit("matmul", first, b.input("c", f32(9, 2))), b.emit("relu", first, name="shown")]
    result = recovered(b.graph(outputs))
    assert not result.changed
    assert [event.reason for event in result.events] == ["two of the factors are constants", "%first is also read by %shown"]
