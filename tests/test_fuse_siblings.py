"""Products of one operand as one: the same numbers, never more kernels nor more memory, and left alone where something would be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import Dim, sym
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.ir.scalar import Arg
from compiler.ir.types import DType, TensorType
from compiler.pipeline import backend_passes
from passes.base import PassManager, PassResult
from passes.graph.fuse_siblings import FuseSiblings
from passes.graph.inline_groups import InlineGroups
from tests.graph_cases import CONV, check_same, f32
from tests.recovery import ops
from tests.test_fusion import TARGET, check

FUSE = FuseSiblings(TARGET.lanes)
UNARY = ("relu", "sigmoid", "tanh")


class Writer(GraphBuilder):
    """Writes branches that begin with products of one value."""

    def __init__(self) -> None:
        super().__init__("siblings", folding=False)
        self._rng = np.random.default_rng(0)

    def numbers(self, *shape: int) -> Value:
        return self.constant(self._rng.standard_normal(shape).astype(np.float32), "w")

    def product(self, x: Value, columns: int, bias: bool = True) -> Value:
        made = self.emit("matmul", x, self.numbers(int(str(x.type.shape[-1])), columns))
        return self.emit("add", made, self.numbers(columns)) if bias else made

    def conv(self, x: Value, channels: int, kernel: int = 1) -> Value:
        pads = (kernel // 2,) * 4
        made = self.emit("conv", x, self.numbers(channels, int(str(x.type.shape[1])), kernel, kernel), **{**CONV, "pads": pads})
        return self.emit("add", made, self.numbers(1, channels, 1, 1))

    def wide(self, x: Value) -> Value:
        """So much memory that what others take does not matter."""
        many = self.conv(x, 640) if x.type.rank == 4 else self.product(x, 1000)
        return self.emit("reduce", many, kind="max", axes=(1,), keepdims=True)

    def heads(self, x: Value, size: int) -> Value:
        """``[batch, heads, rows, size]`` of ``[batch, rows, heads * size]``."""
        batch, rows, columns = x.type.shape
        return self.emit("transpose", self.emit("reshape", x, shape=(batch, rows, int(str(columns)) // size, size)), perm=(0, 2, 1, 3))

    def attention(self, query: Value, key: Value, value: Value) -> Value:
        return self.emit("attention", query, key, value, score=Arg(0, DType.FLOAT32), perm=(0, 2, 1, 3))

    def turned(self, x: Value, cos: Value, sin: Value) -> Value:
        """Rotary position embedding."""
        *outer, size = x.type.shape
        half = int(str(size)) // 2
        first, second = (
            self.emit("slice", x, starts=(*[0] * len(outer), start), sizes=(*outer, half), steps=(1,) * (len(outer) + 1)) for start in (0, half)
        )
        swapped = self.emit("concat", self.emit("neg", second), first, axis=len(outer))
        return self.emit("add", self.emit("mul", x, cos), self.emit("mul", swapped, sin))


def fused(graph: Graph) -> PassResult:
    """The pass's result, verified, of the same meaning, final, and of no more memory and no more kernels, before small ones go into others."""
    after, (report,) = PassManager((FUSE,), verify=True).run(graph)
    check_same(graph, after, 1e-5)
    again, (once_more,) = PassManager((FUSE,)).run(after)
    assert (once_more.changed, print_graph(again)) == (False, print_graph(after))
    assert report.changed == (print_graph(after) != print_graph(graph))
    steps = [step for step in backend_passes(TARGET, 3, 1) if not isinstance(step, InlineGroups)]
    with_it, without = (PassManager(tuple(s for s in steps if s not in left), verify=True).run(graph)[0] for left in ((), (FUSE,)))
    assert _kernels(with_it) <= _kernels(without)
    if all(v.type.is_static for v in graph.inputs):
        assert int(str(with_it.attrs["arena_bound_bytes"])) <= int(str(without.attrs["arena_bound_bytes"]))
    return PassResult(after, report.changed, report.notes, report.events)


def _kernels(graph: Graph) -> int:
    return sum(node.op == "group" for node in graph.nodes)


def reasons(result: PassResult) -> set[str]:
    return {event.reason for event in result.events if event.reason is not None}


def self_attention(batch: Dim, rows: Dim, sizes: Sequence[int], size: int, columns: int = 12) -> Graph:
    b = Writer()
    x = b.input("x", f32(batch, rows, columns))
    y = b.attention(*(b.heads(b.product(x, heads * size), size) for heads in sizes))
    return b.graph((y,))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 2), st.integers(1, 3), st.sampled_from((2, 3, 8)), st.booleans())
def test_what_attention_reads_is_one_product(batch: int, rows: int, groups: int, repeats: int, size: int, symbolic: bool) -> None:
    dims: tuple[Dim, Dim] = (sym("n"), sym("s")) if symbolic else (batch, rows)
    graph = self_attention(*dims, (groups * repeats, groups, groups), size)
    assert ops(fused(graph).graph).count("matmul") == 1
    if not symbolic:
        assert _kernels(check(graph)) == 2


@pytest.mark.parametrize("batch", [1, 2])
def test_heads_that_are_turned_alike_are_turned_together(batch: int) -> None:
    b = Writer()
    x = b.input("x", f32(batch, 6, 16))
    cos, sin = (b.input(name, f32(6, 8)) for name in ("cos", "sin"))
    wide = b.wide(x)
    query, key = (b.turned(b.heads(b.product(x, heads * 8, bias=False), 8), cos, sin) for heads in (4, 2))
    value = b.heads(b.product(x, 16, bias=False), 8)
    graph = b.graph((b.attention(query, key, value), wide))
    found = ops(fused(graph).graph)
    assert found.count("neg") == found.count("concat") == 1
    assert found.count("matmul") == 3
    check(graph)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_branches_of_products(data: Any) -> None:
    b = Writer()
    batch, rows = data.draw(st.integers(1, 2)), data.draw(st.sampled_from((1, 1, 4)))
    x = b.input("x", f32(batch, rows, 6))
    shared = b.input("shared", f32(rows, 1))
    results = [b.wide(x)] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(2, 4))):
        value = b.product(x, data.draw(st.sampled_from((4, 4, 8))), bias=data.draw(st.booleans()))
        for kind in data.draw(st.lists(st.sampled_from((*UNARY, "mul", "heads", "rows")), max_size=3)):
            if kind == "heads":
                value = b.heads(value, 4) if value.type.rank == 3 else value
            elif kind == "rows":
                value = b.emit("softmax", value, axis=value.type.rank - 1, log=False)
            else:
                value = b.emit(kind, value, shared) if kind == "mul" else b.emit(kind, value)
        last = data.draw(st.sampled_from(("softmax", "output", "both", "square")))
        if last == "square":
            value = b.emit("mul", value, value)
        results += [value] if last in ("output", "both") else []
        results += [b.emit("softmax", value, axis=1, log=False)] if last != "output" else []
    graph = b.graph(tuple(results))
    fused(graph)
    check(graph)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_random_branches_of_convolutions(data: Any) -> None:
    b = Writer()
    batch = data.draw(st.sampled_from((1, 1, 2)))
    x = b.input("x", f32(batch, 8, 5, 6))
    results = [b.wide(x)] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(2, 4))):
        value = b.conv(x, data.draw(st.sampled_from((4, 8, 16, 11))), data.draw(st.sampled_from((1, 1, 3))))
        for kind in data.draw(st.lists(st.sampled_from(UNARY), max_size=1)):
            value = b.emit(kind, value)
        after = data.draw(st.sampled_from(("conv", "softmax", "output")))
        results.append(b.conv(value, 8, 3) if after == "conv" else b.emit("softmax", value, axis=1, log=False) if after == "softmax" else value)
    if data.draw(st.booleans()):
        results.append(b.emit("concat", *results, axis=1))
    graph = b.graph(tuple(results))
    fused(graph)
    check(graph)


def branches(*after: str, rows: int = 1) -> Graph:
    """Products of a row, each of them followed by operators, and then by a softmax."""
    b = Writer()
    x = b.input("x", f32(1, rows, 6))
    results = [b.wide(x)]
    for chain in after:
        value = b.product(x, 8)
        for op in chain.split():
            value = b.emit(op, value)
        results.append(b.emit("softmax", value, axis=2, log=False))
    return b.graph(tuple(results))


def test_only_branches_that_go_on_alike_are_together() -> None:
    result = fused(branches("relu", "tanh", "relu", "tanh", "sigmoid"))
    assert ops(result.graph).count("matmul") == 4
    assert ops(result.graph).count("relu") == ops(result.graph).count("tanh") == 1


def test_an_epilogue_is_not_given_up() -> None:
    result = fused(branches("relu", "tanh"))
    assert not result.changed
    assert any("stored for no other reason" in reason for reason in reasons(fused(branches("relu exp", "relu tanh"))))


def test_no_part_is_copied() -> None:
    result = fused(branches("relu", "relu", rows=2))
    assert not result.changed
    assert any("is no view" in reason for reason in reasons(result))


def test_outputs_are_no_parts() -> None:
    b = Writer()
    x = b.input("x", f32(1, 1, 6))
    result = fused(b.graph((b.product(x, 8), b.product(x, 8))))
    assert not result.changed
    assert any("is an output" in reason for reason in reasons(result))


def test_products_of_a_part() -> None:
    """A part that products read where it lies, which are one themselves."""
    b = Writer()
    x = b.input("x", f32(2, 5, 12))
    shared, value = b.product(x, 16), b.heads(b.product(x, 12), 6)
    graph = b.graph((b.attention(b.heads(b.product(shared, 12), 6), b.heads(b.product(shared, 12), 6), value), b.wide(x)))
    assert ops(fused(graph).graph).count("matmul") == 3
    check(graph)


def test_weights_that_others_read_stay_theirs() -> None:
    b = Writer()
    x, y = (b.input(name, f32(1, 1, 6)) for name in "xy")
    tied, own = b.numbers(6, 8), b.numbers(6, 8)
    one, two, three = (b.emit("softmax", b.emit("matmul", v, w), axis=axis, log=False) for v, w, axis in ((x, tied, 1), (x, own, 2), (y, tied, 1)))
    assert not fused(b.graph((one, two, three))).changed


def test_layers_that_share_all_weights_share_them_still() -> None:
    b = Writer()
    weights = [b.numbers(12, 12) for _ in range(3)]
    x = b.input("x", f32(2, 5, 12))
    for _ in range(2):
        y = b.attention(*(b.heads(b.emit("matmul", x, w), 6) for w in weights))
        x = b.emit("tanh", b.emit("reshape", y, shape=(2, 5, 12)))
    result = fused(b.graph((x,)))
    assert ops(result.graph).count("matmul") == 2
    assert sum(constant.array.shape == (12, 36) for constant in result.graph.constants.values()) == 1


def test_memory_is_not_taken_for_longer() -> None:
    """Keys and values of all layers could be one product, but the last layer's would wait for it; those of each layer are one."""
    b = Writer()
    memory, x = b.input("memory", f32(1, 40, 12)), b.input("x", f32(1, 4, 12))
    for _ in range(4):
        key, value = (b.heads(b.product(memory, 96), 24) for _ in range(2))
        query = b.heads(b.product(x, 96), 24)
        x = b.product(b.emit("reshape", b.attention(query, key, value), shape=(1, 4, 96)), 12)
    graph = b.graph((x,))
    result = fused(graph)
    assert ops(result.graph).count("matmul") == 12
    check(graph)


def test_scales_of_quantised_products() -> None:
    """A scale for each product, made of one that they share, is a scale for each column."""
    b = Writer()
    x, scale = b.input("x", f32(2, 5, 12)), b.input("scale", f32())
    parts = []
    for number in (0.5, 0.25, 2.0):
        made = b.emit("matmul", x, b.numbers(12, 12))
        factor = b.emit("mul", scale, b.constant(np.array(number, np.float32)))
        parts.append(b.heads(b.emit("mul", made, factor), 6))
    graph = b.graph((b.attention(*parts),))
    assert ops(fused(graph).graph).count("matmul") == 1
    check(graph)


def test_products_of_halves() -> None:
    b = Writer()
    half = TensorType(DType.FLOAT16, (2, 5, 12))
    x = b.input("x", half)
    weights = [b.constant(np.full((12, 12), n / 8, np.float16), "w") for n in range(3)]
    graph = b.graph((b.attention(*(b.heads(b.emit("matmul", x, w), 6) for w in weights)),))
    assert ops(PassManager((FUSE,), verify=True).run(graph)[0]).count("matmul") == 1


def test_branches_of_control_flow() -> None:
    """What a region's products become is decided in the region."""
    text = """
    graph @ways(input_names = ["c", "x"], output_names = ["y"]) {
      input %c: bool[]
      input %x: f32[1, 3, 2]
      %y: f32[1, 1, 3, 2] = if(%c, %x) {symbols = []}
        region @then {
          input %a: f32[1, 3, 2]
          const %q: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
          const %k: f32[2, 2] = [4.0, 3.0, 2.0, 1.0]
          const %v: f32[2, 2] = [1.0, 1.0, 2.0, 2.0]
          %aq: f32[1, 3, 2] = matmul(%a, %q)
          %ak: f32[1, 3, 2] = matmul(%a, %k)
          %av: f32[1, 3, 2] = matmul(%a, %v)
          %hq: f32[1, 1, 3, 2] = reshape(%aq) {shape = [1, 1, 3, 2]}
          %hk: f32[1, 1, 3, 2] = reshape(%ak) {shape = [1, 1, 3, 2]}
          %hv: f32[1, 1, 3, 2] = reshape(%av) {shape = [1, 1, 3, 2]}
          %t: f32[1, 1, 3, 2] = attention(%hq, %hk, %hv) {score = $0:f32, perm = [0, 1, 2, 3]}
          return %t
        }
        region @else {
          input %b: f32[1, 3, 2]
          %e: f32[1, 1, 3, 2] = reshape(%b) {shape = [1, 1, 3, 2]}
          %f: f32[1, 1, 3, 2] = exp(%e)
          return %f
        }
      return %y
    }
    """
    graph = parse_graph(text)
    after = fused(graph).graph
    (branch,) = (node for node in after.nodes if node.op == "if")
    assert ops(branch.regions[0]).count("matmul") == 1
    check(graph)
