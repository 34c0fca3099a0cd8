"""Bodies of ONNX function operators, from the standard's own schemas and from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from compiler.ir.graph import Value
from compiler.ops.support import ONNX_DTYPES
from frontend.onnx.schema import schema_of

_NUMBER = {dtype: number for number, dtype in ONNX_DTYPES.items()}


def has_body(op_type: str, opset: int, domain: str) -> bool:
    """Whether the standard defines an operator by a body (perhaps not for every use of it)."""
    schema = schema_of(op_type, opset, domain)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def unknown_operator(op_type: str, opset: int, domain: str) -> str:
    """Why an operator without a form cannot be imported."""
    if schema_of(op_type, opset, domain) is None:
        return "no operator of that name is known in this opset"
    return "the operator is not supported"


def standard_body(node: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]) -> onnx.FunctionProto | None:
    """The standard's body of a function operator for these operands; None where the operator has none."""
    schema = schema_of(node.op_type, opset, domain)
    if schema is None:
        return None
    body = b""
    if version := max((v for v in schema.function_opset_versions if v <= opset), default=0):
        body = schema.get_function_with_opset_version(version)
    elif version := max((v for v in schema.context_dependent_function_opset_versions if v <= opset), default=0):
        types = [_type(value).SerializeToString() for value in inputs]
        body = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
    if not body:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(body)
    return function


def _type(value: Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    dims = [dim if isinstance(dim, int) else str(dim) for dim in value.type.shape]
    return onnx.helper.make_tensor_type_proto(_NUMBER[value.type.dtype], dims)


def call_attributes(
    function: onnx.FunctionProto, node: onnx.NodeProto, opset: int | None, outer: Mapping[str, onnx.AttributeProto]
) -> dict[str, onnx.AttributeProto]:
    """The attributes a function's body sees: its defaults (the standard's, where it is an operator of opset), then the calling node's."""
    given = {attribute.name: attribute for attribute in resolved(node, outer)}
    defaults = {attribute.name: attribute for attribute in function.attribute_proto}
    schema = None if opset is None else schema_of(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
    if schema is not None:
        defaults |= {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    return defaults | given


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
