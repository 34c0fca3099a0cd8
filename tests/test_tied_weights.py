"""Weights that a model has once are in the program once: tables that products read, too, and layers that are applied twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import evaluate, sym
from compiler.ir.program import Program
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Panels
from compiler.kernels.gemm import column_in_panels, pack_panels
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from passes.analysis.tied import is_transpose
from tests.graph_cases import f32
from tests.test_lowering import run_program

TARGET = resolve("x86-64-v3")
RNG = np.random.default_rng(0)


def compiled(graph: Graph) -> Program:
    return lower(optimize(graph, TARGET, verify=True)[0], TARGET, threads=2)


def check(graph: Graph, feeds: dict[str, Array], tolerance: float = 1e-5) -> Program:
    """The program, which gives what the graph means."""
    program, expected = compiled(graph), interpret(graph, feeds)
    for name, array in run_program(program, feeds, 2).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance * max(1.0, float(np.abs(expected[name]).max(initial=0))))
    return program


def language_model(table: Array, head: Array, tokens: object, body: Callable[[GraphBuilder, Value], Value] = lambda b, x: x) -> Graph:
    """Rows of a table, something done to them, and products with all columns of ``head``."""
    b = GraphBuilder("g")
    ids = b.input("ids", TensorType(DType.INT64, (1, tokens)))
    rows = b.emit("gather", b.constant(table), ids, axis=0, checked=True)
    return b.graph([b.emit("matmul", body(b, rows), b.constant(head)), rows])


def table_of(rows: int, columns: int) -> Array:
    return RNG.standard_normal((rows, columns)).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 90), st.integers(1, 6), st.sampled_from((1, 4, 8)))
def test_columns_are_found_in_panels(depth: int, columns: int, vectors: int, lanes: int) -> None:
    b = np.arange(depth * columns, dtype=np.float32).reshape(depth, columns)
    flat = pack_panels(b, vectors, lanes).reshape(-1)
    begin, step = column_in_panels(depth, columns, Panels(vectors, lanes), sym("column"))
    for column in range(columns):
        at = evaluate(begin, {"column": column}) + np.arange(depth) * evaluate(step, {"column": column})
        np.testing.assert_array_equal(flat[at], b[:, column])


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 700), st.integers(2, 40), st.integers(1, 4), st.booleans())
def test_a_tied_table_is_there_once(rows: int, columns: int, tokens: int, known: bool) -> None:
    table = table_of(rows, columns)
    graph = language_model(table, np.ascontiguousarray(table.T), tokens if known else sym("n"))
    ids = RNG.integers(-rows, rows, (1, tokens))
    once = check(graph, {"ids": ids}).weights_bytes
    padded = -(-rows // 8) * 8 * columns * 4
    shared = known or rows >= 16 * 64
    assert once == (padded if shared else -(-table.nbytes // 64) * 64 + padded)


def test_large_tables_are_shared_for_any_number_of_tokens() -> None:
    table = table_of(2000, 24)
    graph = language_model(table, np.ascontiguousarray(table.T), sym("n"))
    for tokens in (0, 1, 9):
        assert check(graph, {"ids": RNG.integers(0, 2000, (1, tokens))}).weights_bytes == table.nbytes


def test_what_is_not_tied_is_kept_apart() -> None:
    table, ids = table_of(640, 24), {"ids": RNG.integers(0, 640, (1, 3))}
    other = np.ascontiguousarray(table.T)
    other[5, 7] += 1
    assert check(language_model(table, other, 3), ids).weights_bytes == 2 * table.nbytes
    many = language_model(table, np.ascontiguousarray(table.T), 64)
    assert check(many, {"ids": RNG.integers(0, 640, (1, 64))}).weights_bytes == 2 * table.nbytes, "too many rows to pick them together"
    half = table.astype(np.float16)
    check(language_model(half, np.ascontiguousarray(half.T), 3), ids, tolerance=2e-3)
    assert not is_transpose(table, np.ascontiguousarray(half.T))
    assert not is_transpose(table, table)
    assert is_transpose(table, np.ascontiguousarray(table.T)[None])
    assert is_transpose(table[:0], table.T[:, :0])


def test_an_index_out_of_a_tied_table_is_reported() -> None:
    table = table_of(640, 24)
    program = compiled(language_model(table, np.ascontiguousarray(table.T), 3))
    with pytest.raises(UserError, match="640"):
        run_program(program, {"ids": np.array([[1, 640, 2]])}, 2)


def test_factors_stay_out_of_a_tied_head() -> None:
    table, ids = table_of(640, 24), {"ids": RNG.integers(0, 640, (1, 3))}

    def norm(b: GraphBuilder, x: Value) -> Value:
        gain = b.constant(np.linspace(0.5, 2, 24, dtype=np.float32))
        return b.emit("mul", b.emit("normalize", x, axes=(2,), groups=1, epsilon=1e-5, center=False), gain)

    tied = check(language_model(table, np.ascontiguousarray(table.T), 3, norm), ids)
    assert table.nbytes <= tied.weights_bytes < table.nbytes + 1024
    assert check(language_model(table, np.ascontiguousarray(2 * table.T), 3, norm), ids).weights_bytes == 2 * table.nbytes


def test_a_layer_that_is_applied_twice_is_there_once() -> None:
    """As MobileLLM-LS has it, block by block: the same weights under the same names, or as copies of their own."""
    weights = [RNG.standard_normal(shape).astype(np.float32) / 8 for shape in ((64, 128), (128, 64))]
    gain = np.linspace(0.5, 2, 64, dtype=np.float32)

    def applied(times: int, *, copied: bool) -> int:
        b = GraphBuilder("g")
        x = b.input("x", f32(1, 5, 64))
        held = [b.constant(array) for array in (*weights, gain)]
        for _ in range(times):
            up, down, factor = [b.constant(array.copy()) for array in (*weights, gain)] if copied else held
            inside = b.emit("mul", b.emit("normalize", x, axes=(2,), groups=1, epsilon=1e-5, center=False), factor)
            x = b.emit("add", x, b.emit("matmul", b.emit("relu", b.emit("matmul", inside, up)), down))
        return check(b.graph([x]), {"x": RNG.standard_normal((1, 5, 64)).astype(np.float32)}).weights_bytes

    assert applied(1, copied=False) == applied(2, copied=False) == applied(3, copied=True)
