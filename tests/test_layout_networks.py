"""Random networks of what stands in networks for images: no layout conversion between two convolutions, and the results of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fusion import TARGET, check

from benchmarks.fusion import conversions, stages
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.printer import print_graph
from tests.graph_cases import CONV, f32

_CHANNELS = (8, 12, 16, 20, 40)
"""Of half a block at the least: to fill up fewer costs more than a conversion."""


class Images:
    """A network being drawn; every value is ``[N, C, H, W]``."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.b = GraphBuilder("network", folding=False)
        self._rng = np.random.default_rng(draw(st.integers(0, 2**16)))

    def const(self, *shape: int) -> Value:
        return self.b.constant((self._rng.integers(-8, 9, shape) / 8).astype(np.float32))

    def emit(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.b.emit(op, *inputs, **attrs)

    def conv(self, x: Value, filters: int | None = None) -> Value:
        """Any kind of convolution, with a bias, perhaps activated."""
        channels, height, width = x.type.static_shape[1:]
        kernel = self.draw(st.sampled_from((1, 1, 3)))
        groups = 1 if filters else self.draw(st.sampled_from([n for n in (1, 1, 2, 4, channels) if channels % n == 0]))
        wanted = filters or (channels if groups == channels else self.draw(st.sampled_from([c for c in _CHANNELS if c % groups == 0])))
        stride = self.draw(st.sampled_from((1, 2))) if not filters and min(height, width) > 3 else 1
        attrs = {**CONV, "group": groups, "strides": (stride,) * 2, "pads": (kernel // 2,) * 4}
        made = self.emit("conv", x, self.const(wanted, channels // groups, kernel, kernel), **attrs)
        made = self.emit("add", made, self.const(1, wanted, 1, 1))
        return self.activated(made)

    def activated(self, x: Value) -> Value:
        kind = self.draw(st.sampled_from(("none", "relu", "hard_swish", "swish")))
        return x if kind == "none" else self.emit("mul", x, self.emit("sigmoid", x)) if kind == "swish" else self.emit(kind, x)

    def normalized(self, x: Value) -> Value:
        """Over pixels, channels, or groups, as one operator or as exporters write it."""
        batch, channels, height, width = x.type.static_shape
        attrs = {"epsilon": 1e-3, "center": self.draw(st.booleans())}
        match self.draw(st.sampled_from(("layer", "permuted", "instance", "group", "flat"))):
            case "layer":
                made = self.emit("normalize", x, axes=(1,), groups=1, **attrs)
            case "permuted":
                last = self.emit("normalize", self.emit("transpose", x, perm=(0, 2, 3, 1)), axes=(3,), groups=1, **attrs)
                scaled = self.emit("mul", last, self.const(channels))
                return self.emit("transpose", scaled, perm=(0, 3, 1, 2))
            case "instance":
                made = self.emit("normalize", x, axes=(2, 3), groups=1, **attrs)
            case "group":
                groups = self.draw(st.sampled_from([n for n in (1, 2, 4) if channels % n == 0]))
                made = self.emit("normalize", x, axes=(1, 2, 3), groups=groups, **attrs)
            case _:
                flat = self.emit("reshape", x, shape=(batch, 1, channels * height * width))
                made = self.emit("reshape", self.emit("normalize", flat, axes=(2,), groups=1, **attrs), shape=x.type.shape)
        return self.emit("add", self.emit("mul", made, self.const(1, channels, 1, 1)), self.const(1, channels, 1, 1))

    def pooled(self, x: Value) -> Value:
        attrs = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "ceil_mode": False, "count_include_pad": False}
        made = self.emit("pool", x, kind=self.draw(st.sampled_from(("max", "average"))), **attrs)
        return self.emit("sub", made, x) if self.draw(st.booleans()) else made

    def gated(self, x: Value) -> Value:
        """Squeeze and excitation."""
        channels = x.type.static_shape[1]
        squeezed = self.emit("reduce", x, kind="sum", axes=(2, 3), keepdims=True)
        inner = self.emit("relu", self.emit("conv", squeezed, self.const(4, channels, 1, 1), **CONV))
        return self.emit("mul", x, self.emit("sigmoid", self.emit("conv", inner, self.const(channels, 4, 1, 1), **CONV)))

    def masked(self, x: Value) -> Value:
        """Each pixel by a number of its own, of a convolution, or of the channels' sum."""
        summed = self.draw(st.booleans())
        mask = self.emit("reduce", x, kind="sum", axes=(1,), keepdims=True) if summed else x
        mask = self.emit("conv", mask, self.const(1, mask.type.static_shape[1], 3, 3), **{**CONV, "pads": (1,) * 4})
        return self.emit("mul", x, self.emit("sigmoid", mask))

    def pixelwise(self, x: Value) -> Value:
        """Products with the channels where these stand last."""
        channels = x.type.static_shape[1]
        last = self.emit("transpose", x, perm=(0, 2, 3, 1))
        inner = self.emit("relu", self.emit("add", self.emit("matmul", last, self.const(channels, 8)), self.const(8)))
        return self.emit("transpose", self.emit("matmul", inner, self.const(8, channels)), perm=(0, 3, 1, 2))

    def windows(self, x: Value) -> Value:
        """A convolution on parts of the image as a batch."""
        batch, channels, height, width = x.type.static_shape
        if height % 2 or width % 2:
            return x
        split = self.emit("reshape", x, shape=(batch, channels, 2, height // 2, 2, width // 2))
        moved = self.emit("transpose", split, perm=(0, 2, 4, 1, 3, 5))
        inner = self.conv(self.emit("reshape", moved, shape=(batch * 4, channels, height // 2, width // 2)), channels)
        parts = self.emit("reshape", inner, shape=(batch, 2, 2, channels, height // 2, width // 2))
        return self.emit("reshape", self.emit("transpose", parts, perm=(0, 3, 1, 4, 2, 5)), shape=x.type.shape)

    def halves(self, x: Value) -> Value:
        """A part of the channels goes another way."""
        batch, channels, *spatial = x.type.static_shape
        at = self.draw(st.integers(4, channels - 4))
        parts = [(0, at), (at, channels - at)]
        left, right = (self.emit("slice", x, starts=(0, s, 0, 0), sizes=(batch, n, *spatial), steps=(1,) * 4) for s, n in parts)
        return self.emit("concat", self.conv(left, at), right, axis=1)

    def shuffled(self, x: Value) -> Value:
        """Channels of groups exchanged, between two convolutions."""
        batch, channels, *spatial = x.type.static_shape
        split = self.emit("reshape", self.conv(x, channels), shape=(batch, 2, channels // 2, *spatial))
        return self.conv(self.emit("reshape", self.emit("transpose", split, perm=(0, 2, 1, 3, 4)), shape=x.type.shape))

    def attended(self, x: Value) -> Value:
        """Attention of the pixels of one image, and its projection."""
        batch, channels, height, width = x.type.static_shape
        query, key, data = (self.emit("reshape", self.conv(x, n), shape=(batch, n, height * width)) for n in (4, 4, channels))
        scores = self.emit("matmul", self.emit("transpose", query, perm=(0, 2, 1)), key)
        shares = self.emit("transpose", self.emit("softmax", scores, axis=2, log=False), perm=(0, 2, 1))
        return self.conv(self.emit("reshape", self.emit("matmul", data, shares), shape=x.type.shape), channels)


@st.composite
def networks(draw: Any) -> Graph:
    n = Images(draw)
    x = n.conv(n.b.input("x", f32(draw(st.sampled_from((1, 1, 2))), 3, 6, 6)), draw(st.sampled_from(_CHANNELS)))
    kinds = (n.normalized, n.pooled, n.gated, n.masked, n.pixelwise, n.windows, n.halves, n.shuffled, n.attended, n.conv)
    for _ in range(draw(st.integers(1, 4))):
        made = draw(st.sampled_from(kinds))(x)
        residual = made.type == x.type and draw(st.booleans())
        x = n.emit("mul", n.emit("add", made, x), n.b.constant(np.float32(0.5))) if residual else made
        x = n.conv(x) if draw(st.booleans()) else x
    return n.b.graph([n.emit("reduce", n.conv(x), kind="sum", axes=(2, 3), keepdims=True)])


@settings(max_examples=100, deadline=None)
@given(networks())
def test_no_conversion_stands_between_convolutions(graph: Graph) -> None:
    _, grouped = stages(graph, TARGET)
    assert [node.name for node in conversions(grouped)[1]] == [], print_graph(graph)


@settings(max_examples=15, deadline=None)
@given(networks())
def test_networks_run_as_interpreted(graph: Graph) -> None:
    check(graph)
