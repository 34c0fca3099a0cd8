"""Sound models that the fuzzer damages: every operator's samples, a few of several nodes, and small ones of the zoo where it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from test_ops import SAMPLES, one_node_model
from zoo_models import FOLDER, load

Models = tuple[tuple[str, Callable[[], onnx.ModelProto]], ...]

_RNG = np.random.default_rng(7)
_ZOO = ("cf_if", "cf_if_legacy", "espcn_x3", "lstm_streaming", "mamba1_scan", "topk_moe")


def weight(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(_RNG.standard_normal(shape).astype(np.float32), name)


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def whole(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, Sequence[int | str], int]],
    outputs: Sequence[str],
    constants: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, dtype, shape) for name, shape, dtype in inputs]
    graph = helper.make_graph(list(nodes), "g", infos, [onnx.ValueInfoProto(name=name) for name in outputs], list(constants))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def convolutional() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "s", "s", "s", "v"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], transB=1),
    ]
    variance = numpy_helper.from_array(np.ones(4, np.float32), "v")
    constants = [weight("w", 4, 3, 3, 3), weight("s", 4), variance, integers("shape", 1, -1), weight("g", 5, 4), weight("h", 5)]
    return whole(nodes, [("x", (1, 3, 8, 8), TensorProto.FLOAT)], ["y"], constants)


def shapes() -> onnx.ModelProto:
    """Shape arithmetic over symbolic dims."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 0]),
        helper.make_node("Slice", ["t", "zero", "last", "zero"], ["u"]),
        helper.make_node("Tile", ["u", "repeats"], ["v"]),
        helper.make_node("Resize", ["x4", "", "", "sizes"], ["z"], mode="linear"),
        helper.make_node("Split", ["v"], ["y", "q"], axis=1, num_outputs=2),
        helper.make_node("Pad", ["q", "pads"], ["p"], mode="edge"),
    ]
    constants = [
        integers("zero", 0),
        integers("rest", -1),
        integers("last", -1),
        integers("repeats", 1, 2),
        integers("sizes", 1, 1, 6, 5),
        integers("pads", 1, 0, 0, 2),
    ]
    inputs = [("x", ("n", 2, 3), TensorProto.FLOAT), ("x4", (1, 1, 3, 3), TensorProto.FLOAT)]
    return whole(nodes, inputs, ["y", "p", "z"], constants)


def attention() -> onnx.ModelProto:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Where", ["mask", "scores", "low"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "n"], ["o"]),
        helper.make_node("Gelu", ["o"], ["g"]),
        helper.make_node("Add", ["g", "x"], ["y"]),
        helper.make_node("TopK", ["y", "two"], ["top", "at"], axis=-1),
    ]
    low = numpy_helper.from_array(np.float32(-1e9), "low")
    constants = [weight("s", 6), weight("w", 6, 6), low, integers("two", 2)]
    inputs = [("x", (2, 4, 6), TensorProto.FLOAT), ("mask", (4, 4), TensorProto.BOOL)]
    return whole(nodes, inputs, ["y", "top", "at"], constants)


def quantized() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "xs", "xz"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.05), "xs"),
        numpy_helper.from_array(np.uint8(128), "xz"),
        numpy_helper.from_array(_RNG.integers(-9, 9, (4, 2, 3, 3)).astype(np.int8), "wq"),
        numpy_helper.from_array(np.full(4, 0.02, np.float32), "ws"),
        numpy_helper.from_array(np.zeros(4, np.int8), "wz"),
    ]
    return whole(nodes, [("x", (1, 2, 6, 6), TensorProto.FLOAT)], ["y"], constants)


def functions() -> onnx.ModelProto:
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Inner", ["a"], ["b"], [leaky], opsets, ["slope"])
    body = [helper.make_node("Inner", ["p"], ["t"], domain="own", slope=0.25), helper.make_node("Mul", ["t", "p"], ["r"])]
    outer = helper.make_function("own", "Outer", ["p"], ["r"], body, opsets)
    nodes = [helper.make_node("Outer", ["x"], ["m"], domain="own"), helper.make_node("Outer", ["m"], ["y"], domain="own")]
    return whole(nodes, [("x", (2, 3), TensorProto.FLOAT)], ["y"], functions=[inner, outer])


def control() -> onnx.ModelProto:
    """An If on a run-time condition around a Loop of three steps."""
    step = [
        helper.make_node("Add", ["state", "x"], ["next"]),
        helper.make_node("Identity", ["going"], ["still"]),
        helper.make_node("Neg", ["next"], ["scan"]),
    ]
    scalar = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [2])
    results = [onnx.ValueInfoProto(name=name) for name in ("still", "next", "scan")]
    body = helper.make_graph(step, "body", [scalar, going, state], results)
    loop = helper.make_node("Loop", ["three", "yes", "x"], ["last", "all"], body=body)
    then = helper.make_graph([loop, helper.make_node("Abs", ["last"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([helper.make_node("Sqrt", ["x"], ["e"])], "else", [], [onnx.ValueInfoProto(name="e")])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    yes = numpy_helper.from_array(np.array(True), "yes")
    return whole(nodes, [("x", (2,), TensorProto.FLOAT), ("c", (), TensorProto.BOOL)], ["y"], [integers("three", 3), yes])


def sequences() -> onnx.ModelProto:
    """Sequences and optional values through a loop, a branch and a map."""
    return parser.parse_model("""
    <ir_version: 10, opset_import: ["" : 20]>
    g (seq(float[N]) s, optional(float[2]) o, float[3, 2] x, int64 p) => (seq(float[K]) y, float[L] all, optional(float[2]) same) {
      rows = SplitToSequence <axis = 0, keepdims = 0> (x)
      more = SequenceInsert (s, k, p)
      k = Constant <value_floats = [1.0, 2.0, 3.0]> ()
      there = OptionalHasElement (o)
      first = If (there) <
        then_branch = t () => (float[2] a) { a = OptionalGetElement (o) },
        else_branch = e () => (float[2] b) { b = SequenceAt (rows, zero) }>
      zero = Constant <value_int = 0> ()
      n = SequenceLength (more)
      empty = SequenceEmpty ()
      sums = Loop (n, , empty) <body = l (int64 i, bool c, seq(float[]) v) => (bool d, seq(float[]) w) {
        d = Identity (c) q = SequenceAt (more, i) r = Concat <axis = 0> (q, first) w = SequenceInsert (v, r)
      }>
      y = SequenceMap (sums) <body = m (float[M] f) => (float[M] g) { g = Neg (f) }>
      all = ConcatFromSequence <axis = 0> (y)
      same = Identity (o)
    }
    """)


_OWN = (convolutional, shapes, attention, quantized, functions, control, sequences)


@cache
def models() -> Models:
    """Name and maker of each, the models of several nodes first."""
    built = tuple((make.__name__, make) for make in _OWN)
    zoo = tuple((name, lambda name=name: load(name)[0]) for name in _ZOO) if (FOLDER / "zoo.py").exists() else ()
    samples = tuple((p.id, lambda p=p: one_node_model(p.values[0])) for p in SAMPLES)
    return (*built, *zoo, *samples)


def several() -> int:
    """How many of the models are of several nodes."""
    return len(models()) - len(SAMPLES)


@cache
def _made(index: int) -> onnx.ModelProto:
    return models()[index][1]()


def sound_model(index: int) -> onnx.ModelProto:
    """A copy of the model of that number."""
    copy = onnx.ModelProto()
    copy.CopyFrom(_made(index % len(models())))
    return copy
