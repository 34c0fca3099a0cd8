"""Tied weights: tables whose rows are gathered and that, transposed, are multiplied by, as the embedding and the head of a language model are."""

from __future__ import annotations

import numpy as np

from compiler.ir.graph import Array, Graph

_ROWS = 64
"""Rows by which matrices that are not each other's transposes are told apart: what one is taken for decides how it lies, not what it holds."""


def gathered_tables(graph: Graph) -> list[Array]:
    """The constant matrices of a canonical graph whose rows are gathered."""
    gathers = (node for node in graph.nodes if node.op == "gather" and node.attrs["axis"] == 0)
    tables = (graph.constant_array(node.present_inputs[0]) for node in gathers)
    return [table for table in tables if table is not None and table.ndim == 2]


def is_transpose(table: Array, weights: Array) -> bool:
    """Whether weights ``[…ones, k, n]`` hold the elements of table ``[n, k]``, in one type, as far as some rows of it show."""
    if weights.ndim < 2 or weights.dtype != table.dtype or weights.size != table.size or weights.shape[:-3:-1] != table.shape:
        return False
    rows = np.linspace(0, len(table) - 1, _ROWS).astype(int)
    return not table.size or np.array_equal(table[rows], weights.reshape(weights.shape[-2:])[:, rows].T)
