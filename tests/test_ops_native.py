"""Every operator's samples as native code: the samples of one op compiled as one model, against the oracle of the interpreter's tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx
import pytest
from onnx import helper
from test_ops import assert_same, expected, feeds_of, one_node_model

import tensorsmith
from compiler.errors import UnsupportedError
from compiler.ir.op import Sample, all_ops
from frontend.onnx.importer import import_model

_SHAPE = "the result's shape follows from what the input holds"

NEED_CONSTANTS: dict[str, str] = {
    "ExpandDims": _SHAPE,
    "MatMulNBits": "weights are unpacked when they are packed for the kernel",
    "Resize": "an antialiased axis has as many weights as its scale asks for",
}
"""Operators that are refused when the inputs their samples declare constant come at run time, and why."""

ONLY_WITH = {"Resize": "antialias"}
"""The attribute without which such an operator is not refused."""

NOT_TOLD_BY_SHAPES: dict[str, str] = {
    "ExpandDims": "the axis is not seen in the shape",
    "MatMulNBits": NEED_CONSTANTS["MatMulNBits"],
    "Resize": NEED_CONSTANTS["Resize"],
}
"""Those of them that are refused, for some samples, even where the model declares the result's shape."""

Named = tuple[str, Sample]


def needs_constants(sample: Sample) -> bool:
    return sample.op_type in NEED_CONSTANTS and ONLY_WITH.get(sample.op_type, sample.op_type) in (sample.op_type, *sample.attrs)


SAMPLES: tuple[Named, ...] = tuple((f"{op.name}-{k}-{s.op_type}", s) for op in all_ops() for k, s in enumerate(op.samples))


def as_declared(sample: Sample) -> Sample:
    return sample


def as_constants(sample: Sample) -> Sample:
    return replace(sample, constant=tuple(range(len(sample.inputs))))


def as_inputs(sample: Sample) -> Sample:
    return replace(sample, constant=())


FORMS = {"declared": as_declared, "constants": as_constants, "inputs": as_inputs}


def samples_of(form: str) -> list[Named]:
    """The samples given in that form, where it is not the one they declare."""
    given = [(name, sample, FORMS[form](sample)) for name, sample in SAMPLES]
    return [(name, other) for name, sample, other in given if form == "declared" or other.constant != sample.constant]


def merged(samples: Sequence[Named]) -> onnx.ModelProto:
    """One model of all samples' nodes, each with its own inputs, initializers and outputs, prefixed by its number."""
    parts = [onnx.compose.add_prefix(one_node_model(sample), f"s{k}/").graph for k, (_, sample) in enumerate(samples)]
    nodes, inputs, outputs, constants = ([x for part in parts for x in getattr(part, field)] for field in ("node", "input", "output", "initializer"))
    _, first = samples[0]
    graph = helper.make_graph(nodes, "samples", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(first.domain, first.opset)], ir_version=10)


def check(samples: Sequence[Named]) -> None:
    """Compile and run samples of one opset together, and compare each with the oracle."""
    feeds = {f"s{k}/{name}": array for k, (_, sample) in enumerate(samples) for name, array in feeds_of(sample).items()}
    got = tensorsmith.compile(merged(samples), cache=False, threads=1).run(feeds)
    failures = []
    for k, (name, sample) in enumerate(samples):
        for index, want in enumerate(expected(one_node_model(sample), sample)):
            try:
                assert_same(got[f"s{k}/y{index}"], want)
            except AssertionError as error:
                failures.append(f"{name}: {error}")
    assert not failures, "\n".join(failures)


def batches(form: str) -> Iterable[object]:
    """The samples that should pass, those of one op and opset together."""
    together: dict[tuple[str, str, int], list[Named]] = {}
    for name, sample in samples_of(form):
        if form != "inputs" or not needs_constants(sample):
            together.setdefault((name.split("-")[0], sample.domain, sample.opset), []).append((name, sample))
    for (op, domain, opset), samples in together.items():
        yield pytest.param(samples, id=f"{op}-{domain}{opset}-{form}")


@pytest.mark.parametrize("samples", [batch for form in FORMS for batch in batches(form)])
def test_samples_compile_to_the_same(samples: Sequence[Named]) -> None:
    check(samples)


@pytest.mark.parametrize("operator", NEED_CONSTANTS)
def test_what_must_be_constant_is_refused_as_an_input(operator: str) -> None:
    refused = [sample for _, sample in samples_of("inputs") if sample.op_type == operator and needs_constants(sample)]
    assert refused
    for sample in refused:
        with pytest.raises(UnsupportedError, match=rf"{operator} \(opset"):
            import_model(one_node_model(sample))


def with_shapes(sample: Sample) -> onnx.ModelProto:
    """The sample's model with everything given at run time and the results' types declared."""
    model = one_node_model(as_inputs(sample))
    for value, want in zip(model.graph.output, expected(one_node_model(sample), sample), strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(want.dtype), want.shape))
    return model


@pytest.mark.parametrize("operator", NEED_CONSTANTS)
def test_declared_shapes_stand_in_for_arguments(operator: str) -> None:
    samples = [(name, s) for name, s in SAMPLES if s.op_type == operator and s.constant]
    refused = []
    for name, sample in samples:
        try:
            module = tensorsmith.compile(with_shapes(sample), cache=False, threads=1)
        except UnsupportedError:
            refused.append(name)
            continue
        got = module.run(feeds_of(as_inputs(sample)))
        for value, want in zip(got.values(), expected(one_node_model(sample), sample), strict=True):
            assert_same(value, want)
    assert bool(refused) == (operator in NOT_TOLD_BY_SHAPES), refused
