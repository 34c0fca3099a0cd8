"""Small graphs for tests of passes and lowering, their inputs, and the comparison of what two graphs compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

import compiler.kernels
import compiler.ops  # noqa: F401
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.scalar import Array
from compiler.ir.types import DType, TensorType
from compiler.pipeline import passes_for
from compiler.target import Target
from passes.base import PassManager
from passes.graph.inline_groups import InlineGroups

CONV: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}


def f32(*shape: Any) -> TensorType:
    """A float tensor's type."""
    return TensorType(DType.FLOAT32, shape)


def feeds(graph: Graph) -> dict[str, Array]:
    """Random inputs; symbolic dims become 3."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for value in graph.inputs:
        shape = tuple(d if isinstance(d, int) else 3 for d in value.type.shape)
        found[value.name] = (rng.standard_normal(shape) * 3).astype(value.type.dtype.numpy)
    return found


def kernels_apart(graph: Graph, target: Target) -> Graph:
    """The planned graph, in which small groups are kernels of their own, as larger ones are."""
    steps = tuple(step for step in passes_for(target) if not isinstance(step, InlineGroups))
    return PassManager(steps, verify=True).run(graph)[0]


def check_same(before: Graph, after: Graph, tolerance: float = 1e-6) -> None:
    """Both graphs give the same outputs, to tolerance of their scale."""
    given = feeds(before)
    expected, got = interpret(before, given), interpret(after, given)
    assert list(expected) == list(got)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        scale = max(1.0, float(np.abs(array.astype(np.float64)).max(initial=0)))
        np.testing.assert_allclose(got[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=tolerance * scale)


@st.composite
def networks(draw: Any) -> Graph:
    """Graphs of convolutions, elementwise nodes with every kind of broadcast, views, pooling, concatenation and constants."""
    b = GraphBuilder("random", folding=False)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def const(*shape: int) -> Value:
        return b.constant((rng.integers(-8, 9, shape) / 4).astype(np.float32))

    pool = [b.input(f"x{i}", f32(1, draw(st.sampled_from((3, 8, 12))), 4, 4)) for i in range(draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(1, 9))):
        x = draw(st.sampled_from(pool))
        channels = x.type.shape[1]
        assert isinstance(channels, int)
        kinds = (
            "conv",
            "conv",
            "depthwise",
            "unary",
            "const",
            "binary",
            "swish",
            "views",
            "pool",
            "gate",
            "concat",
            "cut",
            "shuffle",
            "small",
            "affine",
        )
        kind = draw(st.sampled_from(kinds))
        same = [v for v in pool if v.type == x.type]
        match kind:
            case "conv":
                filters = draw(st.sampled_from((8, 12, channels)))
                value = b.emit("conv", x, const(filters, channels, 1, 1), **CONV)
            case "depthwise":
                value = b.emit("conv", x, const(channels, 1, 3, 3), **{**CONV, "group": channels, "pads": (1, 1, 1, 1)})
            case "unary":
                value = b.emit(draw(st.sampled_from(("relu", "abs", "neg", "identity"))), x)
            case "const":
                shape = draw(st.sampled_from(((), (1,), (channels, 1, 1), (1, channels, 1, 1), (4,), (1, 1, 4, 1), (1, channels, 4, 4))))
                pair = (x, const(*shape))
                value = b.emit(draw(st.sampled_from(("add", "mul", "sub", "maximum"))), *(pair if draw(st.booleans()) else pair[::-1]))
            case "binary":
                value = b.emit(draw(st.sampled_from(("add", "mul", "minimum"))), x, draw(st.sampled_from(same)))
            case "swish":
                value = b.emit("mul", x, b.emit("sigmoid", x))
            case "views":
                flat = b.emit("reshape", x, shape=draw(st.sampled_from(((channels, 16), (channels * 16,)))))
                value = b.emit("reshape", b.emit("relu", b.emit("mul", flat, const())), shape=x.type.shape)
            case "pool":
                value = b.emit("add", x, b.emit("reduce", x, kind="max", axes=(2, 3), keepdims=True))
            case "gate":
                squeezed = b.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=True)
                value = b.emit("mul", x, b.emit("conv", squeezed, const(channels, channels, 1, 1), **CONV))
            case "concat":
                value = b.emit("concat", x, draw(st.sampled_from(pool)), axis=1)
            case "cut":
                start, row = draw(st.integers(0, channels - 1)), draw(st.sampled_from((0, 0, 1)))
                sizes = (1, draw(st.integers(1, channels - start)), 4 - row, 4)
                part = b.emit("slice", x, starts=(0, start, row, 0), sizes=sizes, steps=(1, 1, 1, 1))
                value = part if row == 0 else b.emit("pad", part, begins=(0, 0, 0, 0), ends=(0, 0, row, 0), mode="constant", value=0.0)
            case "shuffle":
                group = draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
                split = b.emit("reshape", x, shape=(1, group, channels // group, 4, 4))
                swapped = b.emit("transpose", split, perm=(0, 2, 1, *draw(st.sampled_from(((3, 4), (4, 3))))))
                value = b.emit("reshape", swapped, shape=x.type.shape)
            case "small":
                total = b.emit("mul", b.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=True), const())
                ratio = b.emit("sigmoid", b.emit("add", total, const(1, channels, 1, 1)))
                value = b.emit("add", b.emit("mul", x, ratio), b.emit("neg", ratio))
            case _:
                value = b.emit("add", b.emit("mul", x, const(1, channels, 1, 1)), const(channels, 1, 1))
        pool.append(b.emit("mul", value, b.constant(np.float32(0.25))))
    made = [v for v in pool if b.producer(v)]
    outputs = draw(st.lists(st.sampled_from(made[-3:]), min_size=1, max_size=2, unique=True))
    return b.graph(outputs)
