"""Operators that exporters write out: found as such, with the same results, and left alone where they are something else."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from graph_cases import check_same, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from recovery import ops, recovered

import tensorsmith as ts
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import sym
from compiler.ir.parser import parse_graph
from compiler.ir.regroup import carried, runs
from compiler.ir.types import DType, TensorType
from compiler.pipeline import canonical_passes, optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.group import Group
from passes.graph.recover import RULES, RecoverOps

TARGET = resolve("x86-64-v3")


class Writer(GraphBuilder):
    """Writes out what a framework's exporter would, in the ways that they differ."""

    def __init__(self, draw: Any) -> None:
        super().__init__("written", folding=False)
        self.draw = draw

    def number(self, x: float) -> Value:
        return self.constant(np.full(self.draw(st.sampled_from(((), (1,)))), x, np.float32))

    def product(self, *factors: Value) -> Value:
        left = list(self.draw(st.permutations(factors)))
        while len(left) > 1:
            left.append(self.emit("mul", left.pop(0), left.pop(0)))
        return left[0]

    def total(self, x: Value, axes: tuple[int, ...]) -> Value:
        if self.draw(st.booleans()):
            return self.emit("reduce", x, kind="sum", axes=axes, keepdims=True)
        shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.type.shape))
        return self.emit("reshape", self.emit("reduce", x, kind="sum", axes=axes, keepdims=False), shape=shape)

    def mean(self, x: Value, axes: tuple[int, ...]) -> Value:
        count = prod(x.type.static_shape[axis] for axis in axes)
        total = self.total(x, axes)
        return self.product(total, self.number(1 / count)) if self.draw(st.booleans()) else self.emit("div", total, self.number(count))

    def over_root(self, x: Value, square: Value) -> Value:
        """x over the root of a value."""
        match self.draw(st.sampled_from(("div", "div", "reciprocal", "one over", "pow"))):
            case "div":
                return self.emit("div", x, self.emit("sqrt", square))
            case "reciprocal":
                return self.product(x, self.emit("reciprocal", self.emit("sqrt", square)))
            case "one over":
                return self.product(x, self.emit("div", self.number(1), self.emit("sqrt", square)))
            case _:
                return self.product(x, self.emit("pow", square, self.number(-0.5)))


@st.composite
def shapes_and_axes(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=4)))
    first = draw(st.integers(0, len(shape) - 1))
    return shape, tuple(range(first, draw(st.integers(first + 1, len(shape)))))


@settings(max_examples=60, deadline=None)
@given(st.data(), shapes_and_axes(), st.booleans(), st.sampled_from((0.0, 1e-6, 1e-3, 2.0)), st.booleans())
def test_norms(data: st.DataObject, where: tuple[tuple[int, ...], tuple[int, ...]], center: bool, epsilon: float, summed: bool) -> None:
    """However they are written, over whichever axes, of sums of squares as of means."""
    shape, axes = where
    w = Writer(data.draw)
    x = w.input("x", f32(*shape))
    base = w.emit("sub", x, w.mean(x, axes)) if center else x
    square = w.emit("mul", base, base)
    spread = w.total(square, axes) if summed else w.mean(square, axes)
    beneath = w.emit("add", spread, w.number(epsilon)) if epsilon else spread
    result = recovered(w.graph([w.over_root(base, beneath)]))
    wanted = {"normalize"} | ({"mul"} if summed else set())
    assert set(ops(result.graph)) == wanted
    assert result.graph.nodes[-1].outputs == result.graph.outputs


@settings(max_examples=40, deadline=None)
@given(st.data(), shapes_and_axes(), st.booleans(), st.booleans())
def test_softmax(data: st.DataObject, where: tuple[tuple[int, ...], tuple[int, ...]], log: bool, shifted: bool) -> None:
    shape, axes = where
    w = Writer(data.draw)
    x = w.input("x", f32(*shape))
    largest = w.emit("reduce", x, kind="max", axes=axes, keepdims=True)
    base = w.emit("sub", x, largest) if shifted else x
    if log:
        total = w.emit("log", w.total(w.emit("exp", base), axes))
        result = w.emit("sub", x, w.emit("add", total, largest)) if shifted else w.emit("sub", x, total)
    else:
        e = w.emit("exp", base)
        total = w.total(e, axes)
        result = w.emit("div", e, total) if data.draw(st.booleans()) else w.product(e, w.emit("reciprocal", total))
    found = ops(recovered(w.graph([result])).graph)
    assert "softmax" in found
    assert set(found) <= {"softmax", "reshape"} | ({"reduce", "sub"} if shifted and len(axes) > 1 else set())


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(("gelu", "gelu_tanh", "swish", "scaled_swish", "mish", "hard_swish", "hard_sigmoid", "sigmoid")))
def test_activations(data: st.DataObject, kind: str) -> None:
    w = Writer(data.draw)
    x = w.input("x", f32(2, 3))
    e = w.emit
    match kind:
        case "gelu":
            scaled = e("div", x, w.number(2**0.5)) if data.draw(st.booleans()) else w.product(x, w.number(0.5**0.5))
            result = w.product(x, w.number(0.5), e("add", e("erf", scaled), w.number(1)))
        case "gelu_tanh":
            cube = e("mul", e("mul", x, x), x)
            inner = w.product(e("add", x, w.product(cube, w.number(0.044715))), w.number(np.sqrt(2 / np.pi)))
            result = w.product(x, w.number(0.5), e("add", w.number(1), e("tanh", inner)))
        case "swish" | "sigmoid":
            below = e("add", w.number(1), e("exp", e("neg", x)))
            result = e("div", x if kind == "swish" else w.number(1), below)
        case "scaled_swish":
            result = w.product(x, e("sigmoid", w.product(x, w.number(1.702))))
        case "mish":
            result = w.product(x, e("tanh", e("log", e("add", e("exp", x), w.number(1)))))
        case _:
            raised = e("clip", e("add", w.number(3), x), low=0.0, high=6.0)
            sixth = w.number(1 / 6)
            result = w.product(x, raised, sixth) if kind == "hard_swish" else w.product(raised, sixth)
    assert ops(recovered(w.graph([result])).graph) == [{"gelu_tanh": "gelu", "scaled_swish": "swish"}.get(kind, kind)]


def test_values_that_are_read_elsewhere_are_left() -> None:
    graph = parse_graph("""
graph @g {
  input %x: f32[2, 3]
  %e: f32[2, 3] = exp(%x)
  %s: f32[2, 1] = reduce(%e) {kind = "sum", axes = [1], keepdims = true}
  %y: f32[2, 3] = div(%e, %s)
  return %y, %e
}
""")
    result = recovered(graph)
    assert not result.changed
    assert [(event.rule, event.node, event.reason) for event in result.events] == [("softmax", "y", "%e is also read by the caller")]


NORM = """
graph @g {{
  input %x: f32[2, 3, 4]
  const %part: f32[] = [{part}]
  const %epsilon: f32[{wide}] = [0.001]
  %sum: f32[{mean}] = reduce(%x) {{kind = "sum", axes = [{axis}], keepdims = true}}
  %mean: f32[{mean}] = mul(%sum, %part)
  %centered: f32[2, 3, 4] = sub(%x, %mean)
  %square: f32[2, 3, 4] = mul(%centered, %centered)
  %squares: f32[2, 3, 1] = reduce(%square) {{kind = "sum", axes = [2], keepdims = true}}
  %above: f32[{above}] = add(%squares, %epsilon)
  %root: f32[{above}] = sqrt(%above)
  %y: f32[{result}] = div(%centered, %root)
  return %y
}}
"""
_PLAIN = {"part": 0.25, "mean": "2, 3, 1", "axis": 2, "above": "2, 3, 1", "result": "2, 3, 4", "wide": ""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"part": 0.5}, "what is subtracted is not the mean but 2 times the mean"),
        ({"mean": "2, 1, 4", "axis": 1, "part": 1 / 3}, "the mean is over axes [1], the squares are over axes [2]"),
        ({"wide": "1, 1, 1, 1", "above": "1, 2, 3, 1", "result": "1, 2, 3, 4"}, "a constant broadcasts the operands of %above"),
    ],
)
def test_what_is_no_mean_and_variance_is_left(change: dict[str, object], reason: str) -> None:
    """Centred by something else, only the division by the root of the squares is found."""
    result = recovered(parse_graph(NORM.format(**_PLAIN | change)))
    assert reason in {event.reason for event in result.events if event.rule == "normalize"}
    assert [node.attrs["center"] for node in result.graph.nodes if node.op == "normalize"] in ([], [False])


MEAN = "%s = reduce(%x); %m = mul(%s, 0.25); %c = sub(%x, %m); %q = mul(%c, %c); %t = reduce(%q); %v = mul(%t, 0.25); %r = sqrt(%v)"
NEAR_MISSES = (
    ("normalize", f"{MEAN}; %d = sub(%z, %m); %y = div(%d, %r)", "%x is not %z"),
    ("normalize-by-factor", f"{MEAN}; %f = reciprocal(%r); %a = mul(%x, %f); %b = mul(%s, %f); %e = sub(1.5, %b); %y = add(%a, %e)", "%s is not %m"),
    ("rms-normalize", "%a = mul(%x, %x); %s = reduce(%a); %r = sqrt(%s); %y = div(%z, %r)", "%x is not %z"),
    (
        "centered-normalize",
        "%s = reduce(%x); %m = mul(%s, 0.5); %c = sub(%x, %m); %y = normalize(%c)",
        "what is subtracted is not the mean but 2 times the mean",
    ),
    ("unflattened-normalize", "%f = flat(%x); %n = normalize(%f); %y = flat(%n)", "the result is not reshaped"),
    ("softmax", "%e = exp(%x); %o = exp(%z); %s = reduce(%o); %y = div(%e, %s)", "%o is not %e"),
    ("log-softmax", "%e = exp(%z); %s = reduce(%e); %l = log(%s); %y = sub(%x, %l)", "%z is not %x"),
    ("unshifted-softmax", "%m = largest(%x); %c = sub(%x, %m); %y = softmax(%c)", "the largest is along axes [0], the softmax along axis 1"),
    ("gelu", "%d = mul(%x, 0.7); %e = erf(%d); %p = add(%e, 1.0); %h = mul(%x, 0.5); %y = mul(%h, %p)", "%k1 is 0.69999999, not 0.70710678"),
    (
        "gelu-tanh",
        "%a = mul(%x, %x); %c = mul(%a, %x); %d = mul(%c, 0.05); %e = add(%x, %d); %f = mul(%e, 0.7978846); %t = tanh(%f); "
        "%p = add(%t, 1.0); %h = mul(%x, 0.5); %y = mul(%h, %p)",
        "%k1 is 0.050000001, not 0.044715",
    ),
    ("sigmoid", "%n = abs(%x); %e = exp(%n); %a = add(%e, 1.0); %y = reciprocal(%a)", "%n is made by abs, not made by neg"),
    ("swish", "%s = sigmoid(%z); %y = mul(%x, %s)", "%z is not %x"),
    ("scaled-swish", "%m = mul(%x, %z); %s = sigmoid(%m); %y = mul(%x, %s)", "%z is not a constant"),
    ("softplus", "%e = exp(%x); %a = add(%e, 2.0); %y = log(%a)", "%k1 is 2, not 1"),
    ("mish", "%p = softplus(%z); %t = tanh(%p); %y = mul(%x, %t)", "%z is not %x"),
    ("hard-sigmoid", "%r = add(%x, 2.0); %c = clip(%r); %y = div(%c, 6.0)", "%k1 is 2, not 3"),
    ("hard-swish", "%r = add(%x, 3.0); %c = clip(%r); %m = mul(%z, %c); %y = div(%m, 6.0)", "%x is not %z"),
    ("scale-after-product", "%m = mul(%x, %z); %t = turned(%x); %y = matmul(%m, %t)", "%z is not a constant"),
    ("scale-after-product", "%t = turned(%z); %p = matmul(%x, %t); %m = mul(%p, 0.5); %y = matmul(%m, %x)", "%p can take the scale"),
    (
        "scale-after-product",
        "%t = turned(%z); %p = matmul(%x, %t); %b = add(1.0, %p); %m = mul(%b, 0.5); %y = matmul(%m, %x)",
        "%p can take the scale",
    ),
)


@pytest.mark.parametrize(("rule", "body", "reason"), NEAR_MISSES, ids=[f"{rule}: {reason}" for rule, _, reason in NEAR_MISSES])
def test_near_misses_say_why(rule: str, body: str, reason: str) -> None:
    """``f32[2, 4]`` throughout, reductions along the last axis."""
    b = GraphBuilder("g", folding=False)
    values = {"%x": b.input("x", f32(2, 4)), "%z": b.input("z", f32(2, 4))}
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "reduce": ("reduce", {"kind": "sum", "axes": (1,), "keepdims": True}),
        "largest": ("reduce", {"kind": "max", "axes": (0,), "keepdims": True}),
        "clip": ("clip", {"low": 0.0, "high": 6.0}),
        "normalize": ("normalize", {"axes": (1,), "groups": 1, "epsilon": 0.0, "center": False}),
        "softmax": ("softmax", {"axis": 1, "log": False}),
        "flat": ("reshape", {"shape": (1, 8)}),
        "wide": ("reshape", {"shape": (4, 2)}),
        "turned": ("transpose", {"perm": (1, 0)}),
    }
    for statement in body.split("; "):
        name, _, call = statement.partition(" = ")
        op, _, given_ = call.rstrip(")").partition("(")
        operands = [values.get(text) or b.constant(np.array(float(text), np.float32), name=f"k{len(b.constants) + 1}") for text in given_.split(", ")]
        op, attrs = calls.get(op, (op, {}))
        values[name] = b.emit(op, *operands, name=name[1:], **attrs)
    result = recovered(b.graph([values["%y"]]))
    assert rule not in {event.rule for event in result.events if event.reason is None}
    assert reason in {event.reason for event in result.events if event.rule == rule}


def test_what_is_divided_by_zero_is_no_mean() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 4))
    total = b.emit("reduce", x, kind="sum", axes=(1,), keepdims=True)
    centered = b.emit("sub", x, b.emit("div", total, b.constant(np.float32(0))))
    result = RecoverOps().run(b.graph([b.emit("normalize", centered, axes=(1,), groups=1, epsilon=0.0, center=False)]))
    assert [event.reason for event in result.events] == ["what is subtracted is not the mean"]


def test_every_rule_has_a_near_miss() -> None:
    """Here or in a test of its own, which names it."""
    elsewhere = {
        "shared-heads",
        "cheaper-order",
        "padded-conv",
        "padded-pool",
        "transposed-softmax",
        "widened",
        "channel-shuffle",
        "part-of-shuffle",
        "pixel-shuffle",
    }
    named = {rule for rule, _, _ in NEAR_MISSES} | elsewhere
    assert named == {rule.name for rule in RULES}
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert all(f'("{rule}", ' in tests for rule in elsewhere)


def test_rows_that_have_no_spread_and_rows_out_of_range_stay_what_they_were() -> None:
    """Zero over zero is not a number; infinities and what is not a number stay in their rows."""
    text = NORM.format(**_PLAIN).replace("[0.001]", "[0.0]")
    graph = parse_graph(text)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    x[0, 0], x[0, 1, 2], x[1, 1, 0], x[1, 2] = 3.0, np.inf, np.nan, 1e-30
    result = RecoverOps().run(graph)
    assert "normalize" in ops(result.graph)
    with np.errstate(all="ignore"):
        got, want = (interpret(g, {"x": x})["y"] for g in (result.graph, graph))
    np.testing.assert_allclose(got[0, 1:], want[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(got[1, :2], want[1, :2], rtol=1e-5)
    assert np.isnan(got[0, 0]).all()


LAYER = """<ir_version: 4, opset_import: ["" : OPSET]>
agraph (float[batch, length, 6] x, float[6] g, float[6] b) => (float[batch, length, 6] y)
<float[1] two = {2.0}, float[1] epsilon = {1e-5}>
{
  mean = ReduceMean<axes = [-1]>(x)
  centered = Sub(x, mean)
  square = Pow(centered, two)
  variance = ReduceMean<axes = [-1]>(square)
  above = Add(variance, epsilon)
  deviation = Sqrt(above)
  normal = Div(centered, deviation)
  scaled = Mul(normal, g)
  y = Add(scaled, b)
}
"""
LENGTHS = LAYER.replace("length, 6]", "length, width]").replace("float[6]", "float[width]")
ROOT_MEAN_SQUARE = """<ir_version: 8, opset_import: ["" : OPSET]>
agraph (float[2, 3, 6] x, float[6] g, float[6] b) => (float[2, 3, 6] y)
<float two = {2.0}, float epsilon = {1e-6}, float one = {1.0}>
{
  square = Pow(x, two)
  mean = ReduceMean<axes = [2]>(square)
  above = Add(mean, epsilon)
  deviation = Sqrt(above)
  inverse = Div(one, deviation)
  normal = Mul(x, inverse)
  scaled = Mul(g, normal)
  y = Add(scaled, b)
}
"""
CHANNELS_FIRST = """<ir_version: 8, opset_import: ["" : OPSET]>
agraph (float[2, 6, 3, 4] x, float[6, 1, 1] g, float[6, 1, 1] b) => (float[2, 6, 3, 4] y)
<float two = {2.0}, float epsilon = {1e-6}>
{
  mean = ReduceMean<axes = [1]>(x)
  centered = Sub(x, mean)
  square = Pow(centered, two)
  variance = ReduceMean<axes = [1]>(square)
  above = Add(variance, epsilon)
  deviation = Sqrt(above)
  normal = Div(centered, deviation)
  scaled = Mul(normal, g)
  y = Add(scaled, b)
}
"""
BY_FACTOR = """<ir_version: 4, opset_import: ["" : OPSET]>
agraph (float[2, 3, 6] x, float[6] g, float[6] b) => (float[2, 3, 6] y)
<float[1] epsilon = {1e-3}>
{
  mean = ReduceMean<axes = [2]>(x)
  centered = Sub(x, mean)
  square = Mul(centered, centered)
  variance = ReduceMean<axes = [2]>(square)
  above = Add(variance, epsilon)
  deviation = Sqrt(above)
  inverse = Reciprocal(deviation)
  factor = Mul(inverse, g)
  left = Mul(x, factor)
  dropped = Mul(mean, factor)
  right = Sub(b, dropped)
  y = Add(left, right)
}
"""


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize(("text", "wanted"), [(LAYER, 3), (LENGTHS, 3), (ROOT_MEAN_SQUARE, 3), (CHANNELS_FIRST, 3), (BY_FACTOR, 3)])
def test_models_of_exporters(text: str, wanted: int, opset: int) -> None:
    """From the ONNX model to native code, against ONNX's reference."""
    model = onnx.parser.parse_model(text.replace("OPSET", str(opset)))
    graph, _ = PassManager(canonical_passes(3), verify=True).run(import_model(model, {}))
    assert sum(op not in ("check", "define") for op in ops(graph)) == wanted
    assert "normalize" in ops(graph)
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.standard_normal([d.dim_value or 3 for d in i.type.tensor_type.shape.dim]).astype(np.float32) for i in model.graph.input}
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    got = ts.compile(model, threads=1, cache=False).run(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(("left", "right", "both", "same")), st.booleans())
def test_scales_move_behind_products(data: st.DataObject, side: str, transposed: bool) -> None:
    w = Writer(data.draw)
    scale = w.number(0.25)
    left, right = w.input("q", f32(2, 3, 4)), w.input("k", f32(2, 5, 4) if transposed else f32(2, 4, 5))
    right = w.emit("transpose", right, perm=(0, 2, 1)) if transposed else right
    if side != "right":
        left = w.product(left, scale)
    if side == "same":
        left = right = w.product(w.input("x", f32(4, 4)), scale)
    elif side != "left":
        right = w.product(right, scale)
    result = recovered(w.graph([w.emit("softmax", w.emit("matmul", left, right), axis=left.type.rank - 1, log=False)]))
    product = next(node for node in result.graph.nodes if node.op == "matmul")
    assert not any(node.op == "mul" for node in result.graph.nodes[: result.graph.nodes.index(product)])


def test_a_scale_between_two_products_stays_there() -> None:
    """In half precision, whose range the first product without it is beyond."""
    b = GraphBuilder("g", folding=False)
    half = {name: b.input(name, TensorType(DType.FLOAT16, shape)) for name, shape in (("q", (2, 8, 64)), ("k", (2, 64, 8)), ("v", (2, 8, 4)))}
    scores = b.emit("mul", b.emit("matmul", half["q"], half["k"]), b.constant(np.float16(1 / 16)))
    graph = b.graph([b.emit("matmul", scores, half["v"], name="y")])
    feeds = {name: np.full(value.type.static_shape, 0.01 if name == "v" else 60, np.float16) for name, value in half.items()}
    planned, _ = optimize(graph, TARGET)
    with np.errstate(over="ignore"):  # what a group keeps in float32 is rounded to check its type
        got = interpret(planned, feeds)["y"]
    np.testing.assert_allclose(got, np.full((2, 8, 4), 64 * 60 * 60 / 16 * 8 * 0.01), rtol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_groups_of_channels_keep_their_axes(batch: int, groups: int, width: int, dims: list[int], center: bool) -> None:
    """As exporters write GroupNormalization: rows of groups, then a factor for each channel."""
    shape = (batch, groups * width, *dims)
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(*shape))
    flat = b.emit("reshape", x, shape=(batch, groups, width * prod(dims)))
    normal = b.emit("normalize", flat, axes=(2,), groups=1, epsilon=1e-3, center=center)
    gamma = b.constant(np.arange(1, groups * width + 1, dtype=np.float32).reshape(-1, *(1,) * len(dims)))
    graph = b.graph([b.emit("mul", b.emit("reshape", normal, shape=shape), gamma)])
    recovered(graph)
    steps = (*canonical_passes(3), Group())
    after, _ = PassManager(steps, verify=True).run(graph)
    check_same(graph, after, 1e-5)
    assert sum(node.op == "group" for node in after.nodes) == 1


def test_rows_that_begin_within_no_axis_are_left() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 3, 4))
    normal = b.emit("normalize", b.emit("reshape", x, shape=(8, 3)), axes=(1,), groups=1, epsilon=0.0, center=True)
    result = recovered(b.graph([b.emit("reshape", normal, shape=(2, 3, 4))]))
    assert [event.reason for event in result.events] == ["no axis of [2, 3, 4] begins where a row does"]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 3), st.booleans(), st.booleans())
def test_shared_heads_are_not_repeated(batch: int, count: int, times: int, transposed: bool, masked: bool) -> None:
    heads = count * times
    b = GraphBuilder("g", folding=False)
    query = b.input("q", f32(batch, heads, 5, 4))
    shared = b.input("k", f32(batch, count, 6, 4) if transposed else f32(batch, count, 4, 6))
    split = b.emit("reshape", shared, shape=(batch, count, 1, *shared.type.shape[2:]))
    every = b.emit("expand", split, shape=(batch, count, times, *shared.type.shape[2:]))
    repeated = b.emit("reshape", every, shape=(batch, heads, *shared.type.shape[2:]))
    repeated = b.emit("transpose", repeated, perm=(0, 1, 3, 2)) if transposed else repeated
    scores = b.emit("matmul", query, repeated)
    if masked:
        scores = b.emit("add", b.emit("mul", scores, b.constant(np.float32(0.5))), b.input("mask", f32(1, 1, 5, 6)))
    graph = b.graph([b.emit("softmax", scores, axis=3, log=False)])
    assert "expand" not in ops(recovered(graph).graph)
    after, _ = PassManager((*canonical_passes(3), Group()), verify=True).run(graph)
    check_same(graph, after, 1e-5)
    groups = [[inner.op for inner in node.regions[0].nodes] for node in after.nodes if node.op == "group"]
    assert groups[-2:] == [["matmul", *(["mul", "add"] if masked else [])], ["softmax"]]


def test_heads_that_are_repeated_otherwise_are_left() -> None:
    """All heads one after another, again and again: the reshape joins the repetitions with what stands before them."""
    b = GraphBuilder("g", folding=False)
    query, shared = b.input("q", f32(2, 6, 5, 4)), b.input("k", f32(2, 3, 4, 6))
    split = b.emit("reshape", shared, shape=(2, 1, 3, 4, 6))
    repeated = b.emit("reshape", b.emit("expand", split, shape=(2, 2, 3, 4, 6)), shape=(2, 6, 4, 6))
    result = recovered(b.graph([b.emit("matmul", query, repeated)]))
    assert ("shared-heads", "%expand does not repeat each head of %k") in {(event.rule, event.reason) for event in result.events}
    assert "expand" in ops(result.graph)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_operands_are_carried_through_reshapes(data: st.DataObject, after: list[int]) -> None:
    """What ``carried`` gives means the same before the reshape as the operand does after it."""
    before = data.draw(st.permutations([d for dim in after for d in ([2, dim // 2] if dim == 4 else [dim])]))
    before = before if before != [] and prod(before) == prod(after) else [prod(after)]
    operand = [data.draw(st.sampled_from((1, dim))) for dim in after][data.draw(st.integers(0, len(after))) :]
    shape = carried(tuple(operand), tuple(before), tuple(after))
    x, y = np.arange(prod(after)).reshape(before), 100 * np.arange(prod(operand)).reshape(operand)
    if shape is not None:
        np.testing.assert_array_equal((x + y.reshape(shape)).reshape(after), x.reshape(after) + y)
    else:
        assert prod(operand) > 1
    assert carried(tuple(after), tuple(before), tuple(after)) == tuple(before)
    assert runs((sym("n"), 12, 5), (sym("n"), 3, 4, 5)) == [((sym("n"),), slice(0, 1)), ((12,), slice(1, 3)), ((5,), slice(3, 4))]
    assert runs((sym("n"), 2), (2, sym("m"))) is None
