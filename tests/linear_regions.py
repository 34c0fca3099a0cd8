"""Random graphs of linear maps: branches, sequences, sums, concatenations and shuffles of convolutions and matrix products, with some ReLUs.

    python tests/linear_regions.py --seed 1 --count 1000

checks on as many of them that merging keeps the meaning, borders included, and that a merged graph is not merged again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import compiler.ops  # noqa: F401
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret, interpret_all
from compiler.ir.intexpr import evaluate, sym
from compiler.ir.printer import print_graph
from compiler.ir.types import DType, TensorType
from passes.base import PassManager
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.merge_linear import MergeLinear

SYMBOL_SIZE = 7
"""What a symbolic size is in a check."""

TOLERANCE = {DType.FLOAT64: 1e-11, DType.FLOAT32: 1e-5}
"""Of the output's scale. Float64 shows what is wrong and not only what rounding makes of it."""


@dataclass
class _Maker:
    """Draws nodes one after another; ``values`` are those that nodes may read."""

    draw: Any
    builder: GraphBuilder
    dtype: DType
    rng: np.random.Generator
    values: list[Value]

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def const(self, *shape: int) -> Value:
        return self.builder.constant(self.rng.standard_normal(shape).astype(self.dtype.numpy))

    def size(self, value: Value, axis: int) -> int:
        return evaluate(value.type.shape[axis], {"N": 2, "S": SYMBOL_SIZE})

    def channels(self, value: Value) -> int:
        return self.size(value, self.axis(value))

    def axis(self, value: Value) -> int:
        return 1 if value.type.rank > 2 else value.type.rank - 1

    def per_channel(self, value: Value) -> Value:
        if not self.draw(st.booleans()):
            return self.const()
        return self.const(*(self.channels(value) if a == self.axis(value) else 1 for a in range(value.type.rank)))

    def emit(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.builder.emit(op, *inputs, **attrs)

    def conv(self, x: Value, outputs: int, strides: tuple[int, ...] | None = None, results: tuple[int, ...] | None = None) -> Value:
        """A convolution with any window; ``results`` fixes the spatial sizes of its result."""
        axes, channels = x.type.rank - 2, self.channels(x)
        group = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0 and outputs % g == 0]))
        strides = strides or tuple(self.number(1, 2) if self.number(0, 3) == 0 else 1 for _ in range(axes))
        kernel, dilations, begins, ends = [], [], [], []
        for axis in range(axes):
            size = self.size(x, 2 + axis)
            count, dilation = self.number(1, 3), self.number(1, 2)
            begin, end = self.number(0, 2), self.number(0, 2)
            if results is not None:
                begin = self.number(0, dilation * (count - 1))
                end = (results[axis] - 1) * strides[axis] + dilation * (count - 1) + 1 - size - begin
            fits = end >= 0 and (count - 1) * dilation < size + begin + end
            numbers = (count, dilation, begin, end) if fits else (1, 1, 0, 0)
            for found, number in zip((kernel, dilations, begins, ends), numbers, strict=True):
                found.append(number)
        weights = self.const(outputs, channels // group, *kernel)
        return self.emit("conv", x, weights, strides=strides, pads=(*begins, *ends), dilations=tuple(dilations), group=group)

    def product(self, x: Value, outputs: int) -> Value:
        return self.emit("matmul", x, self.const(self.channels(x), outputs))

    def affine(self, x: Value) -> Value:
        op = self.draw(st.sampled_from(("add", "add", "mul", "mul", "sub", "div", "neg", "identity", "normalization")))
        if op in ("neg", "identity"):
            return self.emit(op, x)
        if op == "normalization":
            return self.emit("add", self.emit("mul", x, self.per_channel(x)), self.per_channel(x))
        constant = self.per_channel(x)
        flipped = op != "div" and self.draw(st.booleans())
        return self.emit(op, *((constant, x) if flipped else (x, constant)))

    def branches(self, x: Value) -> Value:
        """The sum of several maps of one value."""
        outputs = self.draw(st.sampled_from((self.channels(x), 4)))
        strides = tuple(self.number(1, 2) for _ in range(x.type.rank - 2)) if x.type.is_static else (1,) * (x.type.rank - 2)
        results = tuple(-(-self.size(x, 2 + a) // stride) for a, stride in enumerate(strides))
        total: Value | None = None
        for _ in range(self.number(2, 4)):
            branch = self.branch(x, outputs, strides, results)
            branch = self.affine(branch) if self.draw(st.booleans()) else branch
            if total is None or branch.type == total.type:
                total = branch if total is None else self.emit(self.draw(st.sampled_from(("add", "add", "sub"))), total, branch)
        assert total is not None
        return total

    def branch(self, x: Value, outputs: int, strides: tuple[int, ...], results: tuple[int, ...]) -> Value:
        kind = self.draw(st.sampled_from(("one", "one", "identity", "sequence")))
        if x.type.rank == 2:
            x = self.product(x, self.number(1, 6)) if kind == "sequence" else x
            return x if kind == "identity" else self.product(x, outputs)
        if kind == "sequence":
            inner = self.conv(x, self.number(1, 6), (1,) * len(strides), tuple(self.size(x, 2 + a) for a in range(len(strides))))
            x = self.affine(inner) if self.draw(st.booleans()) else inner
        return x if kind == "identity" else self.conv(x, outputs, strides, results)

    def step(self) -> Value:
        x = self.draw(st.sampled_from(self.values[-4:]))
        same = [v for v in self.values if v.type == x.type]
        kinds = ["linear", "affine", "affine", "branches", "branches", "sum", "channels", "join", "relu"]
        match self.draw(st.sampled_from(kinds + ["average", "pad"] * (x.type.rank > 2))):
            case "linear":
                return (self.conv if x.type.rank > 2 else self.product)(x, self.number(1, 6))
            case "affine":
                return self.affine(x)
            case "branches":
                return self.branches(x)
            case "sum":
                return self.emit(self.draw(st.sampled_from(("add", "sub"))), x, self.draw(st.sampled_from(same)))
            case "channels":
                return self.some_channels(x) if self.draw(st.booleans()) else self.shuffled(x)
            case "join":
                operands = [v for v in self.values if v.type.rank == x.type.rank and self.around(v) == self.around(x)]
                return self.emit("concat", x, self.draw(st.sampled_from(operands)), axis=self.axis(x))
            case "average":
                return self.average(x)
            case "pad":
                ends = [(0, 0, *(self.number(0, 2) for _ in range(x.type.rank - 2))) for _ in range(2)]
                return self.emit("pad", x, begins=ends[0], ends=ends[1], mode="constant", value=0.0)
            case _:
                return self.emit("relu", x)

    def around(self, value: Value) -> tuple[Any, ...]:
        return tuple(dim for axis, dim in enumerate(value.type.shape) if axis != self.axis(value))

    def average(self, x: Value) -> Value:
        axes = x.type.rank - 2
        kernel = tuple(min(self.number(1, 3), self.size(x, 2 + a)) for a in range(axes))
        pads = tuple(self.number(0, size - 1) for size in kernel * 2)
        strides = tuple(self.number(1, 2) for _ in kernel)
        include = self.draw(st.booleans())
        ones = (1,) * axes
        return self.emit(
            "pool", x, kind="average", kernel_shape=kernel, strides=strides, pads=pads, dilations=ones, ceil_mode=False, count_include_pad=include
        )

    def some_channels(self, x: Value) -> Value:
        axis, channels = self.axis(x), self.channels(x)
        starts, sizes, steps = [0] * x.type.rank, list(x.type.shape), [1] * x.type.rank
        first = self.number(0, channels - 1)
        count = self.number(1, channels - first)
        backwards = self.draw(st.booleans())
        starts[axis], sizes[axis], steps[axis] = (first + count - 1, count, -1) if backwards else (first, count, 1)
        return self.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))

    def shuffled(self, x: Value) -> Value:
        axis, channels, shape = self.axis(x), self.channels(x), x.type.shape
        rows = self.draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))
        if axis == 1 and self.draw(st.booleans()):
            start = self.number(0, channels - 1)
            return self.emit("shuffle_channels", x, group=rows, start=start, size=self.number(1, channels - start))
        table = self.emit("reshape", x, shape=(*shape[:axis], rows, channels // rows, *shape[axis + 1 :]))
        order = (*range(axis), axis + 1, axis, *range(axis + 2, x.type.rank + 1))
        return self.emit("reshape", self.emit("transpose", table, perm=order), shape=shape)


@st.composite
def graphs(draw: Any) -> Graph:
    """Graphs of one input and up to eight steps, each a node or a sum of branches."""
    dtype = draw(st.sampled_from((DType.FLOAT64, DType.FLOAT64, DType.FLOAT32)))
    builder = GraphBuilder("region", folding=False)
    axes = draw(st.sampled_from((2, 2, 2, 1, 3, 0)))
    symbolic = draw(st.sampled_from(("", "", "N", "S")))
    batch = sym("N") if symbolic == "N" else draw(st.integers(1, 2))
    spatial = [draw(st.integers(3, 8)) for _ in range(axes)]
    if symbolic == "S" and axes:
        spatial[0] = sym("S")
    x = builder.input("x", TensorType(dtype, (batch, draw(st.sampled_from((1, 2, 4, 6))), *spatial)))
    maker = _Maker(draw, builder, dtype, np.random.default_rng(draw(st.integers(0, 2**16))), [x])
    for _ in range(draw(st.integers(1, 8))):
        value = maker.step()
        if prod(maker.size(value, a) for a in range(value.type.rank)) <= 4096:
            maker.values.append(value)
    outputs = dict.fromkeys([maker.values[-1], *draw(st.lists(st.sampled_from(maker.values), max_size=1))])
    return builder.graph([value for value in outputs if builder.producer(value)] or [builder.emit("identity", x)])


def feeds(graph: Graph) -> dict[str, Any]:
    """A random input."""
    (x,) = graph.inputs
    shape = tuple(evaluate(dim, {"N": 2, "S": SYMBOL_SIZE}) for dim in x.type.shape)
    return {x.name: np.random.default_rng(1).standard_normal(shape).astype(x.type.dtype.numpy)}


def check(graph: Graph) -> bool:
    """Whether the pass changes the graph. It must compute the same then, borders included, and must not change again."""
    result, (_, report) = PassManager((EliminateDeadCode(), MergeLinear()), verify=True).run(graph)
    given = feeds(graph)
    expected, got = interpret(graph, given), interpret(result, given)
    scales = _scales(graph, given)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        worst = np.abs(got[name].astype(np.float64) - array).max(initial=0)
        assert worst <= TOLERANCE[DType.of(array.dtype)] * scales, f"{name} differs by {worst:.3g}"
    if all(constant.array.any() for constant in result.constants.values()):  # that a sum cancels exactly is only seen once its numbers are there
        again = MergeLinear().run(result)
        assert not again.changed, f"{print_graph(graph)}{print_graph(result)}{print_graph(again.graph)}"
    return report.changed


def _scales(graph: Graph, given: dict[str, Any]) -> float:
    """The largest number that the graph computes on its way."""
    return max(float(np.abs(array).max(initial=0)) for array in interpret_all(graph, given).values()) or 1.0


def main() -> int:
    """Status 0 where every graph keeps its meaning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    found: Counter[bool] = Counter()

    @seed(options.seed)
    @settings(
        max_examples=options.count, deadline=None, database=None, phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck)
    )
    @given(graphs())
    def one(graph: Graph) -> None:
        found[check(graph)] += 1

    begin = time.perf_counter()
    one()
    print(f"{sum(found.values())} graphs in {time.perf_counter() - begin:.0f} s: {found[True]} merged, {found[False]} left as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
