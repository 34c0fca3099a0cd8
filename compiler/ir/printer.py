"""Graph IR as text, one node a line; ``parser`` reads it back.

    graph @net(arena_bytes = 64) {
      input %x: f32[N, 3]
      const %w: f32[3] = [1.0, 2.0, 3.0]
      const %k: f32[3, 64] = @f0c1a5f25e8e3c7d
      bind(%n) {symbols = ["u1"]}
      %y: f32[N, 3] = add(%x, %w) {offset = 0} "the model's name of the node"
      return %y
    }

Constants of at most 16 elements stand in the text, exactly; larger ones are their digest, and their arrays go beside the text
(``constants_of``). A node's regions follow it, indented, each written as a graph with the word ``region``.
Names other than letters, digits and ``_ . / - :`` are quoted as in JSON; symbolic dims stand in ``<>`` among attributes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from compiler.errors import InternalError
from compiler.ir.graph import Array, Attr, Constant, Graph, Node, Region, Value
from compiler.ir.intexpr import IntExpr
from compiler.ir.scalar import Arg, Call, Const, Scalar, parts
from compiler.ir.types import DType

INLINE_ELEMENTS = 16
"""Constants up to this size are printed in full."""

BARE_NAME = r"[\w./-]+(?::+[\w./-]+)*"
"""A name that needs no quotes."""

_BARE = re.compile(BARE_NAME)
_WORD = re.compile(r"[A-Za-z_]\w*")


def print_graph(graph: Graph, names: Mapping[Value, str] | None = None) -> str:
    """The graph's text, with a newline at its end. ``names`` replaces the names of some values."""
    return "\n".join(_graph_lines(graph, "graph", "", names or {})) + "\n"


def equal_graphs(left: Graph, right: Graph) -> bool:
    """Whether two graphs are the same but for the names of values inside: nodes in order, types, attributes, constants' contents.

    The names of their inputs and outputs, which are their interface, must agree.
    """
    interfaces = [[v.name for v in (*graph.inputs, *graph.outputs)] for graph in (left, right)]
    texts = [print_graph(graph, {v: str(i) for i, v in enumerate(_definitions(graph))}) for graph in (left, right)]
    return interfaces[0] == interfaces[1] and texts[0] == texts[1]


def _definitions(graph: Graph) -> Iterator[Value]:
    yield from (*graph.inputs, *graph.constants)
    for node in graph.nodes:
        yield from node.outputs
        for region in node.regions:
            yield from _definitions(region)


def constants_of(graph: Graph) -> dict[str, Array]:
    """The arrays that ``print_graph`` refers to, by digest: what ``parse_graph`` needs beside the text."""
    found: dict[str, Array] = {}
    for constant in graph.constants.values():
        if not is_inline(constant):
            found[constant.digest] = constant.array
    for node in graph.nodes:
        for region in node.regions:
            found.update(constants_of(region))
    return found


def is_inline(constant: Constant) -> bool:
    """Whether the printed form holds the data itself."""
    return constant.array.size <= INLINE_ELEMENTS


def print_value(value: Value, names: Mapping[Value, str] = MappingProxyType({})) -> str:
    """``%name: type``, as where a value is defined."""
    return f"{reference(value, names)}: {value.type}"


def reference(value: Value | None, names: Mapping[Value, str] = MappingProxyType({})) -> str:
    """``%name``, as where a value is read; ``none`` for an absent one."""
    return "none" if value is None else "%" + quoted(names.get(value, value.name))


def quoted(name: str) -> str:
    """A name, in quotes where it needs them."""
    return name if _BARE.fullmatch(name) else json.dumps(name)


def print_node(node: Node, names: Mapping[Value, str] = MappingProxyType({})) -> str:
    """A node's own line, without its regions."""
    results = ", ".join(print_value(v, names) for v in node.outputs)
    operands = ", ".join(reference(v, names) for v in node.inputs)
    attrs = f" {{{_attr_list(node.attrs)}}}" if node.attrs else ""
    name = f" {json.dumps(node.name)}" if node.name else ""
    return f"{results}{' = ' if results else ''}{node.op}({operands}){attrs}{name}"


def print_attr(attr: Attr) -> str:
    """An attribute's value, exactly. Raises InternalError for what is not an ``Attr``."""
    match attr:
        case None:
            return "none"
        case bool():
            return "true" if attr else "false"
        case int() | float():
            return number(attr)
        case str():
            return json.dumps(attr)
        case DType():
            return attr.value
        case IntExpr():
            return f"<{attr}>"
        case tuple():
            return f"[{', '.join(map(print_attr, attr))}]"
        case Region():
            return _print_region(attr)
        case Arg() | Const() | Call():
            return print_scalar(attr)
    raise InternalError(f"{attr!r} of type {type(attr).__name__} cannot be an attribute", where="IR text")


def print_scalar(expr: Scalar) -> str:
    """A scalar expression, exactly: ``max:f32($0:f32, 0.0:f32)``; what is used again is named once: ``add:f32(#0 = exp:f32($0:f32), #0)``."""
    uses = Counter(arg for part in parts(expr) if isinstance(part, Call) for arg in part.args)
    names: dict[Scalar, str] = {}

    def text(part: Scalar) -> str:
        match part:
            case Arg():
                return f"${part.index}:{part.dtype.value}"
            case Const():
                return f"{number(part.value)}:{part.dtype.value}"
        if part in names:
            return names[part]
        name = names.setdefault(part, f"#{len(names)}") + " = " if uses[part] > 1 else ""
        return f"{name}{part.fn}:{part.dtype.value}({', '.join(map(text, part.args))})"

    return text(expr)


def number(value: float | int | bool) -> str:
    """A literal that reads back as the same number of the same Python type; numpy scalars count as what they hold."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool):
        return "true" if plain else "false"
    return str(plain) if isinstance(plain, int) else repr(float(plain))


def _print_region(region: Region) -> str:
    parts = [f"offset = {print_attr(region.offset)}", f"extent = {print_attr(region.extent)}"]
    if region.source is not None:
        parts.append(f"source = {region.source}")
    if region.index:
        parts.append(f"index = {print_attr(region.index)}")
    if type(region.fill) is not int or region.fill:
        parts.append(f"fill = {number(region.fill)}")
    return f"box({', '.join(parts)})"


def _attr_list(attrs: Mapping[str, Attr]) -> str:
    return ", ".join(f"{key if _WORD.fullmatch(key) else json.dumps(key)} = {print_attr(attr)}" for key, attr in attrs.items())


def _graph_lines(graph: Graph, word: str, indent: str, names: Mapping[Value, str]) -> Iterator[str]:
    attrs = f"({_attr_list(graph.attrs)})" if graph.attrs else ""
    yield f"{indent}{word} @{quoted(graph.name)}{attrs} {{"
    inner = indent + "  "
    for value in graph.inputs:
        yield f"{inner}input {print_value(value, names)}"
    for value, constant in graph.constants.items():
        yield f"{inner}const {print_value(value, names)} = {_print_data(constant)}"
    for node in graph.nodes:
        yield inner + print_node(node, names)
        for region in node.regions:
            yield from _graph_lines(region, "region", inner + "  ", names)
    yield f"{inner}return {', '.join(reference(v, names) for v in graph.outputs)}".rstrip()
    yield f"{indent}}}"


def _print_data(constant: Constant) -> str:
    if not is_inline(constant):
        return f"@{constant.digest}"
    array = np.ascontiguousarray(constant.array)
    if array.dtype == DType.STRING.numpy:
        return print_attr(tuple(array.reshape(-1).tolist()))
    # The bits of a NaN do not survive as a literal.
    if array.dtype.kind not in "iub" and np.isnan(array).any():
        return f'bytes "{array.tobytes().hex()}"'
    return f"[{', '.join(number(item) for item in array.reshape(-1).astype(_wide(array)).tolist())}]"


def _wide(array: Array) -> np.dtype[np.generic]:
    return array.dtype if array.dtype.kind in "iub" else np.dtype(np.float64)
