"""Regions between transposes: results stay, however a region branches, and there are never more transposes than before."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import sym
from passes.base import PassManager, parse_passes
from tests.graph_cases import check_same, f32
from tests.test_sink_transposes import transposes

STEPS = parse_passes("untranspose-regions,simplify,eliminate-dead-code")


@st.composite
def regions(draw: Any) -> Graph:
    """Nodes that read any of what is there, some of it transposed one way and some another; some results are transposed back."""
    b = GraphBuilder("g", folding=False)
    rank = draw(st.integers(2, 4))
    perm = tuple(draw(st.permutations(range(rank))))
    back = tuple(perm.index(axis) for axis in range(rank))
    shape = tuple(draw(st.sampled_from((2, 3, 16))) for _ in range(rank))
    rng = np.random.default_rng(0)
    x = b.input("x", f32(*shape))
    values = [b.emit("transpose", x, perm=perm)]
    turned = values[0].type.static_shape
    if draw(st.booleans()):
        values.append(b.emit("transpose", b.input("y", f32(*shape)), perm=perm))
    if draw(st.integers(0, 3)) == 0:
        values.append(b.input("z", f32(*turned)))

    def const(*dims: int) -> Value:
        return b.constant((rng.integers(-8, 9, dims) / 4).astype(np.float32))

    def one() -> Value:
        return draw(st.sampled_from(values))

    for _ in range(draw(st.integers(1, 7))):
        match draw(st.sampled_from(("relu", "add", "factor", "matmul", "normalize", "slice", "concat"))):
            case "relu":
                values.append(b.emit("relu", one()))
            case "add":
                values.append(b.emit("add", one(), one()))
            case "factor":
                values.append(b.emit("mul", const(*(draw(st.sampled_from((1, dim))) for dim in turned[draw(st.integers(0, rank - 1)) :])), one()))
            case "matmul":
                values.append(b.emit("matmul", one(), const(turned[-1], turned[-1])))
            case "normalize":
                axes = tuple(sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1))))
                values.append(b.emit("normalize", one(), axes=axes, groups=1, epsilon=0.5, center=True))
            case "slice":
                axis = draw(st.integers(0, rank - 1))
                cut = draw(st.integers(1, turned[axis] - 1))
                parts = []
                for start, size in ((0, cut), (cut, turned[axis] - cut)):
                    starts, sizes = ((*(0,) * axis, start, *(0,) * (rank - axis - 1)), (*turned[:axis], size, *turned[axis + 1 :]))
                    parts.append(b.emit("slice", one(), starts=starts, sizes=sizes, steps=(1,) * rank))
                values.append(b.emit("concat", *parts, axis=axis))
            case _:
                axis = draw(st.integers(0, rank - 1))
                doubled = b.emit("concat", one(), one(), axis=axis)
                values.append(b.emit("slice", doubled, starts=(0,) * rank, sizes=turned, steps=tuple(2 if k == axis else 1 for k in range(rank))))
    results = [one() for _ in range(draw(st.integers(1, 3)))]
    return b.graph([b.emit("transpose", value, perm=back) if draw(st.booleans()) else b.emit("neg", value) for value in results])


@settings(max_examples=200, deadline=None)
@given(regions())
def test_regions_mean_the_same(graph: Graph) -> None:
    clean = PassManager(parse_passes("eliminate-dead-code")).run(graph)[0]
    after, reports = PassManager(STEPS, verify=True).run(clean)
    check_same(clean, after, 1e-5)
    assert transposes(after) < transposes(clean) or not reports[0].changed
    assert not STEPS[0].run(after).changed


def test_channels_last_blocks_become_channels_first() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(sym("batch"), 16, sym("height"), sym("width")))
    rng = np.random.default_rng(0)
    value = b.emit("transpose", x, perm=(0, 2, 3, 1))
    for _ in range(3):
        inside = b.emit("normalize", value, axes=(3,), groups=1, epsilon=1e-5, center=True)
        up = b.emit("relu", b.emit("matmul", inside, b.constant(rng.standard_normal((16, 32)).astype(np.float32))))
        value = b.emit("add", value, b.emit("matmul", up, b.constant(rng.standard_normal((32, 16)).astype(np.float32))))
    graph = b.graph([b.emit("transpose", value, perm=(0, 3, 1, 2))])
    after, _ = PassManager(STEPS, verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert transposes(after) == 0
