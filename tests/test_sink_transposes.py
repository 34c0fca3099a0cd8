"""Transposes carried along chains: the results stay, and there are never more of them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from graph_cases import check_same, f32
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import sym
from compiler.ir.printer import print_graph
from passes.base import PassManager, parse_passes

STEPS = parse_passes("sink-transposes,simplify,eliminate-dead-code")


def transposes(graph: Graph) -> int:
    return sum(node.op == "transpose" for node in graph.nodes)


@st.composite
def chains(draw: Any) -> Graph:
    """A transpose, what may stand between, and another transpose; sometimes with a value inside that is returned as well."""
    b = GraphBuilder("chain", folding=False)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    shape = draw(st.lists(st.sampled_from((1, 2, 3, 4, 17)), min_size=2, max_size=4))

    def const(*dims: int) -> Value:
        return b.constant((rng.integers(-8, 9, dims) / 4).astype(np.float32))

    def transposed(x: Value) -> Value:
        return b.emit("transpose", x, perm=tuple(draw(st.permutations(range(x.type.rank)))))

    value = transposed(b.input("x", f32(*shape)))
    made = []
    for _ in range(draw(st.integers(1, 5))):
        dims = value.type.static_shape
        match draw(st.sampled_from(("relu", "add", "mul", "matmul", "split", "join", "normalize", "softmax"))):
            case "relu":
                value = b.emit("relu", value)
            case "add" | "mul" as op:
                operand = const(*(draw(st.sampled_from((1, dim))) for dim in dims[draw(st.integers(0, len(dims))) :]))
                pair = (value, operand) if draw(st.booleans()) else (operand, value)
                value = b.emit(op, *pair)
            case "matmul" if len(dims) > 1:
                value = b.emit("matmul", value, const(dims[-1], draw(st.integers(1, 4))))
            case "split":
                axis = draw(st.integers(0, len(dims) - 1))
                parts = (dims[axis] // 2, 2) if dims[axis] % 2 == 0 else (1, dims[axis])
                value = b.emit("reshape", value, shape=(*dims[:axis], *parts, *dims[axis + 1 :]))
            case "join" if len(dims) > 1:
                axis = draw(st.integers(0, len(dims) - 2))
                value = b.emit("reshape", value, shape=(*dims[:axis], prod(dims[axis : axis + 2]), *dims[axis + 2 :]))
            case "normalize":
                axes = tuple(sorted(draw(st.sets(st.integers(0, value.type.rank - 1), min_size=1))))
                groups = draw(st.sampled_from([n for n in (1, 2, 3, 4) if dims[axes[0]] % n == 0]))
                value = b.emit("normalize", value, axes=axes, groups=groups, epsilon=0.5, center=True)
            case _:
                value = b.emit("softmax", value, axis=draw(st.integers(0, value.type.rank - 1)), log=False)
        made.append(value)
    return b.graph([transposed(value) if value.type.rank > 1 else value, *([draw(st.sampled_from(made))] if draw(st.integers(0, 4)) == 0 else [])])


@settings(max_examples=150, deadline=None)
@given(chains())
def test_chains_mean_the_same(graph: Graph) -> None:
    after, reports = PassManager(STEPS, verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert transposes(after) <= transposes(graph)
    assert (print_graph(STEPS[0].run(graph).graph) != print_graph(graph)) == reports[0].changed


def attention(length: int, symbolic: bool) -> Graph:
    """Queries, keys and values as a module that works on ``[length, batch, width]`` makes them for one that is given ``[batch, length, width]``."""
    b = GraphBuilder("attention", folding=False)
    batch = sym("batch") if symbolic else 2
    x = b.input("x", f32(batch, length, 6))
    weights, bias = b.constant(np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)), b.constant(np.arange(6, dtype=np.float32))
    product = b.emit("add", b.emit("matmul", b.emit("transpose", x, perm=(1, 0, 2)), weights), bias)
    heads = b.emit("reshape", product, shape=(length, batch, 2, 3))
    return b.graph([b.emit("transpose", heads, perm=(1, 2, 0, 3))])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.booleans())
def test_heads_are_split_by_one_transpose(length: int, symbolic: bool) -> None:
    graph = attention(length, symbolic)
    after, _ = PassManager(STEPS, verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert transposes(after) <= 1
