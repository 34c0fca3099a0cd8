"""What the ONNX standard says of an operator's operands and attributes, and whether a node keeps to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
from onnx import AttributeProto, defs

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ops.support import ONNX_DTYPES

_TYPE_NAMES = {
    dtype: f"tensor({onnx.TensorProto.DataType.Name(number).lower()})"
    for number, dtype in ONNX_DTYPES.items()
    if number in onnx.TensorProto.DataType.values()
}


def schema_of(op_type: str, opset: int, domain: str) -> Any:
    """The standard's schema of an operator as of opset; None where there is none."""
    try:
        return defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return None


@dataclass(frozen=True)
class _Operand:
    """One declared input: element types it may have; inputs of one ``group`` have the same."""

    name: str
    group: str
    types: frozenset[str]


@dataclass(frozen=True)
class _Rules:
    """What is checked of a node. ``operands`` may be fewer than ``most`` where the last one repeats."""

    operands: tuple[_Operand, ...]
    least: int
    most: int
    attributes: Mapping[str, int]
    required: frozenset[str]


@cache
def _rules(op_type: str, opset: int, domain: str) -> _Rules | None:
    schema = schema_of(op_type, opset, domain)
    if schema is None:
        return None
    operands = tuple(_Operand(i.name, i.type_str if i.is_homogeneous else "", frozenset(i.types)) for i in schema.inputs)
    attributes = {name: int(a.type.value) for name, a in schema.attributes.items()}
    required = frozenset(name for name, a in schema.attributes.items() if a.required)
    return _Rules(operands, schema.min_input, schema.max_input, attributes, required)


def check_node(op_type: str, opset: int, domain: str, inputs: Sequence[Value | None], attributes: Sequence[AttributeProto]) -> None:
    """Raises UnsupportedForm where a node of a standard operator has operands or attributes that the standard rules out."""
    rules = _rules(op_type, opset, domain)
    if rules is None:
        if not domain and (newest := schema_of(op_type, defs.onnx_opset_version(), domain)) is not None:
            raise UnsupportedForm(f"the operator does not exist before opset {_first(newest)}")
        return
    for name, count in Counter(attribute.name for attribute in attributes).items():
        if count > 1:
            raise UnsupportedForm(f"attribute {name} is given twice")
    for attribute in attributes:
        wanted = rules.attributes.get(attribute.name)
        if wanted is None:
            raise UnsupportedForm(f"the operator has no attribute {attribute.name} in opset {opset}")
        if attribute.type != wanted:
            raise UnsupportedForm(f"attribute {attribute.name} is {_kind(attribute.type)}; the operator takes {_kind(wanted)}")
    if missing := rules.required.difference(attribute.name for attribute in attributes):
        raise UnsupportedForm(f"attribute {', '.join(sorted(missing))} is missing")
    if not rules.least <= len(inputs) <= rules.most:
        wanted_count = str(rules.least) if rules.least == rules.most else f"{rules.least} to {rules.most}"
        raise UnsupportedForm(f"it has {len(inputs)} inputs; the operator takes {wanted_count}")
    _check_types(rules.operands, inputs)


def _first(schema: Any) -> int:
    """The opset an operator came with."""
    return min(s.since_version for s in defs.get_all_schemas_with_history() if (s.name, s.domain) == (schema.name, schema.domain))


def _check_types(operands: Sequence[_Operand], inputs: Sequence[Value | None]) -> None:
    groups: dict[str, tuple[str, str]] = {}
    for position, value in enumerate(inputs):
        if value is None:
            continue
        operand = operands[min(position, len(operands) - 1)]
        met = _TYPE_NAMES[value.type.dtype]
        if met not in operand.types:
            raise UnsupportedForm(f"input {operand.name} is a {met}, which the operator does not take in this opset")
        first, agreed = groups.setdefault(operand.group, (operand.name, met)) if operand.group else ("", met)
        if agreed != met:
            raise UnsupportedForm(f"input {operand.name} is a {met} and input {first} a {agreed}; the operator takes the same type for both")


def _kind(number: int) -> str:
    """An attribute's type for messages."""
    try:
        return str(AttributeProto.AttributeType.Name(number))
    except ValueError:
        return f"of type number {number}"
