"""Bodies of ONNX function operators, from the standard's own schemas and from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import defs

from compiler.ir.graph import Value
from compiler.ops.support import ONNX_DTYPES

_NUMBER = {dtype: number for number, dtype in ONNX_DTYPES.items()}


def standard_body(node: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]) -> onnx.FunctionProto | None:
    """The standard's body of a function operator for these operands; None where the operator has none."""
    try:
        schema = defs.get_schema(node.op_type, opset, domain)
    except defs.SchemaError:
        return None
    version = max((v for v in schema.function_opset_versions if v <= opset), default=None)
    if version is not None:
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))
    version = max((v for v in schema.context_dependent_function_opset_versions if v <= opset), default=None)
    if version is None:
        return None
    types = [_type(value).SerializeToString() for value in inputs]
    body = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
    return onnx.FunctionProto.FromString(body) if body else None


def _type(value: Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    dims = [dim if isinstance(dim, int) else str(dim) for dim in value.type.shape]
    return onnx.helper.make_tensor_type_proto(_NUMBER[value.type.dtype], dims)


def call_attributes(function: onnx.FunctionProto, node: onnx.NodeProto, outer: Mapping[str, onnx.AttributeProto]) -> dict[str, onnx.AttributeProto]:
    """The attributes a function's body sees: its defaults, then those of the calling node."""
    given = {attribute.name: attribute for attribute in resolved(node, outer)}
    return {attribute.name: attribute for attribute in function.attribute_proto} | given


def resolved(node: onnx.NodeProto, outer: Mapping[str, onnx.AttributeProto]) -> list[onnx.AttributeProto]:
    """The attributes of a node in a function's body: those that refer to the function's own are replaced; absent ones are dropped."""
    found = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            found.append(attribute)
        elif attribute.ref_attr_name in outer:
            copy = onnx.AttributeProto()
            copy.CopyFrom(outer[attribute.ref_attr_name])
            copy.name = attribute.name
            found.append(copy)
    return found
