"""Every operator's samples, imported as one-node models and interpreted, against ONNX's own reference or ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Region, Value
from compiler.ir.interp import interpret, interpret_all
from compiler.ir.intexpr import evaluate, sym
from compiler.ir.op import Layouts, Sample, all_ops, lookup
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage, verify_graph
from compiler.pipeline import canonical_passes
from frontend.onnx.importer import import_model
from passes.base import PassManager

SAMPLES = [pytest.param(s, id=f"{op.name}-{k}-{s.op_type}") for op in all_ops() for k, s in enumerate(op.samples)]

REFERENCE_IS_WRONG = {
    "CategoryMapper": "has no implementation",
    "ConvTranspose": "fails on groups and on output_shape",
    "DynamicQuantizeLSTM": "is not in the standard",
    "GRU": "knows neither directions nor lengths nor clip",
    "GatherElements": "refuses indices smaller than the data",
    "GlobalLpPool": "has no implementation",
    "Hardmax": "does not flatten before opset 13",
    "LabelEncoder of object": "does not know version 1",
    "LinearClassifier": "negates the score of two classes for the first of them",
    "LogSoftmax": "loses everything below exp's range",
    "LpNormalization": "ignores p",
    "LRN": "accumulates in another order",
    "LSTM": "knows neither directions nor lengths nor activations",
    "MaxPool of int8": "fills with NaN",
    "Multinomial": "has no implementation",
    "OneHot": "refuses a depth of shape [1]",
    "Pad": "fails on negative pads",
    "RoiAlign": "moves by half a pixel before opset 16, too",
    "Scaler": "keeps integers",
    "Scatter": "has no implementation",
    "Resize": "maps align_corners by the scale, not by the lengths",
    "RNN": "knows neither directions nor lengths nor activations",
    "SimplifiedLayerNormalization": "is unknown to it",
    "Softmax": "does not flatten before opset 13",
    "Softsign": "fails on a scalar",
    "TfIdfVectorizer": "fails without weights",
    "TreeEnsemble": "takes another leaf for a tree that is one",
    "TreeEnsembleClassifier": "fails on NaN",
    "TreeEnsembleRegressor": "fails on NaN",
    "Upsample": "has no linear mode",
}


def one_node_model(sample: Sample) -> onnx.ModelProto:
    inputs, initializers, names = [], [], []
    for index, array in enumerate(sample.inputs):
        names.append("" if array is None else f"x{index}")
        if array is not None and index in sample.constant:
            initializers.append(numpy_helper.from_array(array, f"x{index}"))
        elif array is not None:
            inputs.append(helper.make_tensor_value_info(f"x{index}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    attrs = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in sample.attrs.items()}
    outputs = [f"y{index}" for index in range(sample.outputs)]
    node = helper.make_node(sample.op_type, names, outputs, domain=sample.domain, **attrs)
    graph = helper.make_graph([node], "sample", inputs, [onnx.ValueInfoProto(name=name) for name in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(sample.domain, sample.opset)], ir_version=10)


def feeds_of(sample: Sample) -> dict[str, np.ndarray]:
    return {f"x{i}": a for i, a in enumerate(sample.inputs) if a is not None and i not in sample.constant}


def expected(model: onnx.ModelProto, sample: Sample) -> list[np.ndarray]:
    """By the reference implementation; by ONNX Runtime where that is wrong, and for the operators that it adds to the standard."""
    first = sample.inputs[0] if sample.inputs else None
    names = {sample.op_type, f"{sample.op_type} of {None if first is None else first.dtype}"}
    if sample.domain == "com.microsoft" or names & REFERENCE_IS_WRONG.keys():
        runtime = pytest.importorskip("onnxruntime", reason="the oracle of operators whose reference implementation is wrong")
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [strings_as_objects(y) for y in session.run(None, feeds_of(sample))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return [strings_as_objects(np.asarray(y)) for y in ReferenceEvaluator(model).run(None, feeds_of(sample))]


def strings_as_objects(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind == "U" else array


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype.kind in "iubO":
        np.testing.assert_array_equal(got, want)
        return
    finite = np.abs(want[np.isfinite(want)].astype(np.float64))
    scale = min(float(finite.max(initial=0)), 100.0)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_agrees_with_the_standard(sample: Sample) -> None:
    model = one_node_model(sample)
    graph = import_model(model)
    verify_graph(graph, Stage.CANONICAL)
    got = interpret(graph, feeds_of(sample))
    for value, want in zip(got.values(), expected(model, sample), strict=True):
        assert_same(np.asarray(value), want)


def read_boxes(regions: Sequence[Region], inputs: Sequence[np.ndarray], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The output as its boxes describe it, element by element, and how often each element is written."""
    out, written = np.zeros(shape, inputs[0].dtype), np.zeros(shape, np.int64)
    for region in regions:
        for position in product(*(range(evaluate(extent, {})) for extent in region.extent)):
            at = tuple(evaluate(o, {}) + p for o, p in zip(region.offset, position, strict=True))
            symbols = {f"i{axis}": p for axis, p in enumerate(position)}
            source = tuple(evaluate(e, symbols) for e in region.index)
            assert region.source is None or all(0 <= s < n for s, n in zip(source, inputs[region.source].shape, strict=True))
            out[at] = region.fill if region.source is None else inputs[region.source][source]
            written[at] += 1
    return out, written


def index_nodes(graph: Graph) -> Iterator[tuple[Node, tuple[Region, ...]]]:
    for node in graph.nodes:
        regions = lookup(node.op).regions([v.type for v in node.present_inputs], node.attrs)
        if regions is not None:
            yield node, regions


@pytest.mark.parametrize("sample", [p for p in SAMPLES if "injective" in lookup(p.id.split("-")[0]).families])
def test_regions_say_what_evaluate_does(sample: Sample) -> None:
    graph = import_model(one_node_model(sample))
    for node, regions in index_nodes(graph):
        values = interpret_all(graph, feeds_of(sample))
        want = values[node.output.name]
        got, written = read_boxes(regions, [values[v.name] for v in node.present_inputs], want.shape)
        np.testing.assert_array_equal(written, 1)
        np.testing.assert_array_equal(got, want)


def simplified(graph: Graph) -> Graph:
    """graph with every node offered to its op's simplifications once, in order."""
    builder = GraphBuilder(graph.name)
    for value in graph.inputs:
        builder.inputs.append(builder.adopt(value))
    replaced: dict[Value, Value] = {v: builder.adopt(v, c) for v, c in graph.constants.items()}
    for node in graph.nodes:
        inputs = tuple(None if v is None else replaced.get(v, v) for v in node.inputs)
        moved = Node(node.op, inputs, node.outputs, node.attrs, node.regions, node.name)
        better = next(filter(None, (rule(moved, builder) for rule in lookup(node.op).simplifications)), None)
        if better is None:
            builder.append(moved)
        else:
            assert better.type == node.output.type
            replaced[node.output] = better
    return builder.graph([replaced.get(v, v) for v in graph.outputs])


@pytest.mark.parametrize("sample", SAMPLES)
def test_simplifications_keep_the_result(sample: Sample) -> None:
    graph = import_model(one_node_model(sample))
    values = interpret_all(graph, feeds_of(sample))
    simple = simplified(graph)
    found = interpret_all(simple, feeds_of(sample))
    for before, after in zip(graph.outputs, simple.outputs, strict=True):
        got, want = np.asarray(found[after.name]), np.asarray(values[before.name])
        if want.dtype == object:
            assert_same(got, want)
        else:
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-6)


F32 = DType.FLOAT32


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
        ("...ij,...kj", ((2, 3, 4), (2, 5, 4))),
        ("bthd,bshd->bhts", ((2, 3, 2, 4), (2, 5, 2, 4))),
        ("bchw,co->bohw", ((1, 3, 4, 4), (3, 5))),
        ("i,i->", ((4,), (4,))),
        ("i,j->ij", ((4,), (3,))),
    ],
)
def test_sums_of_two_operands_by_letters_are_one_product(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    sample = Sample("Einsum", tuple(np.ones(shape, np.float32) for shape in shapes), {"equation": equation})
    graph, _ = PassManager(canonical_passes(3), verify=True).run(import_model(one_node_model(sample)))
    assert [node.op for node in graph.nodes if node.op not in ("transpose", "reshape")] == ["matmul"]


IMAGE = TensorType(F32, (1, 16, 6, 6))


@pytest.mark.parametrize(
    ("op", "types", "attrs", "want"),
    [
        ("add", [IMAGE, IMAGE], {}, Layouts.SAME),
        ("conv", [IMAGE, TensorType(F32, (24, 16, 1, 1))], {"group": 1}, Layouts.BLOCKED_OUT),
        ("conv", [IMAGE, TensorType(F32, (16, 1, 3, 3))], {"group": 16}, Layouts.BLOCKED_OUT),
        ("conv", [IMAGE, TensorType(F32, (8, 4, 3, 3))], {"group": 4}, Layouts.BLOCKED_OUT),
        ("conv", [TensorType(F32, (1, 4, 2, 2, 2)), TensorType(F32, (8, 4, 1, 1, 1))], {"group": 1}, Layouts.BLOCKED_OUT),
        ("conv", [TensorType(F32, (1, 4, 2, 2, 2, 2)), TensorType(F32, (8, 4, 1, 1, 1, 1))], {"group": 1}, Layouts.PLAIN),
        ("concat", [IMAGE, IMAGE], {"axis": 1}, Layouts.ANY),
        ("concat", [IMAGE, TensorType(F32, (1, 3, 6, 6))], {"axis": 1}, Layouts.ANY),
        ("reduce", [IMAGE], {"kind": "sum", "axes": (2, 3), "keepdims": True}, Layouts.SAME),
        ("reduce", [IMAGE], {"kind": "sum", "axes": (1,), "keepdims": True}, Layouts.SAME),
        ("reduce", [IMAGE], {"kind": "sum", "axes": (1,), "keepdims": False}, Layouts.PLAIN),
        ("reduce", [IMAGE], {"kind": "sum", "axes": (1, 2), "keepdims": True}, Layouts.PLAIN),
        ("normalize", [IMAGE], {"axes": (1,), "groups": 1}, Layouts.SAME),
        ("normalize", [IMAGE], {"axes": (1,), "groups": 2}, Layouts.PLAIN),
        ("normalize", [IMAGE], {"axes": (1, 2, 3), "groups": 2}, Layouts.SAME),
        ("normalize", [IMAGE], {"axes": (2, 3), "groups": 1}, Layouts.SAME),
        ("normalize", [IMAGE], {"axes": (1, 2), "groups": 1}, Layouts.PLAIN),
        ("slice", [IMAGE], {"starts": (0, 8, 0, 1), "sizes": (1, 8, 6, 5), "steps": (1, 1, 1, 1)}, Layouts.ANY),
        ("slice", [IMAGE], {"starts": (0, 4, 0, 0), "sizes": (1, 8, 6, 6), "steps": (1, 1, 1, 1)}, Layouts.ANY),
        ("slice", [IMAGE], {"starts": (0, 4, 0, 0), "sizes": (1, 6, 6, 6), "steps": (1, 2, 1, 1)}, Layouts.SAME),
        ("interleave", [IMAGE], {"group": 1, "strides": (2, 1)}, Layouts.ANY),
        ("interleave", [IMAGE], {"group": 4, "strides": (2, 2)}, Layouts.SAME),
        ("interleave", [IMAGE], {"group": 1, "strides": (4, 4)}, Layouts.SAME),
        ("shuffle_channels", [IMAGE], {"group": 4, "start": 3, "size": 9}, Layouts.SAME),
        ("roll", [IMAGE], {"axis": 2, "start": 2}, Layouts.ANY),
        ("roll", [IMAGE], {"axis": 1, "start": 3}, Layouts.ANY),
        ("slice", [IMAGE], {"starts": (0, sym("N"), 0, 0), "sizes": (1, 8, 6, 6), "steps": (1, 1, 1, 1)}, Layouts.PLAIN),
        ("pad", [IMAGE], {"begins": (0, 0, 1, 1), "ends": (0, 0, 1, 1), "mode": "constant", "value": 0}, Layouts.ANY),
        ("transpose", [IMAGE], {"perm": (0, 1, 3, 2)}, Layouts.ANY),
        ("reshape", [IMAGE], {"shape": (1, 16, 36)}, Layouts.SAME),
        ("reshape", [IMAGE], {"shape": (1, 4, 4, 36)}, Layouts.PLAIN),
        ("reshape", [IMAGE], {"shape": (576,)}, Layouts.PLAIN),
        ("gather", [IMAGE, TensorType(DType.INT64, (3, 2))], {"axis": 3}, Layouts.SAME),
        ("gather", [IMAGE, TensorType(DType.INT64, (3,))], {"axis": 1}, Layouts.PLAIN),
    ],
)
def test_layouts(op: str, types: list[TensorType], attrs: dict[str, Any], want: Layouts) -> None:
    assert lookup(op).layouts(types, attrs, 8) is want


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
        lambda shape: st.tuples(st.just(shape), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=len(shape), max_size=len(shape)))
    ),
    st.sampled_from(["constant", "edge", "reflect", "wrap"]),
)
def test_pad_boxes_on_any_shape(case: tuple[list[int], list[tuple[int, int]]], mode: str) -> None:
    shape, pads = case
    x = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    attrs = {"begins": tuple(b for b, _ in pads), "ends": tuple(e for _, e in pads), "mode": mode, "value": -1.0}
    regions = lookup("pad").regions([TensorType(F32, x.shape)], attrs)
    assert regions is not None
    want = np.pad(x, pads, constant_values=-1) if mode == "constant" else np.pad(x, pads, mode=mode)  # type: ignore[call-overload]
    got, written = read_boxes(regions, [x], want.shape)
    np.testing.assert_array_equal(written, 1)
    np.testing.assert_array_equal(got, want)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slice_on_any_bounds(length: int, start: int, end: int, step: int) -> None:
    x = np.arange(length, dtype=np.float32)
    sample = Sample("Slice", (x, *(np.array([v], np.int64) for v in (start, end, 0, step))), constant=(1, 2, 3, 4))
    (got,) = interpret(import_model(one_node_model(sample)), feeds_of(sample)).values()
    first, last = (v + length if v < 0 else v for v in (start, end))
    first = min(max(first, 0), length if step > 0 else length - 1)
    last = min(max(last, 0 if step > 0 else -1), length)
    np.testing.assert_array_equal(got, x[[i for i in range(first, last, step) if 0 <= i < length]])
