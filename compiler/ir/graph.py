"""Graph IR: values, nodes and graphs in SSA form. All are immutable; passes build new graphs.

A graph's text form is in ``printer`` and ``parser``, its rules are in ``verify``, its meaning is in ``interp``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Union

import numpy as np

from compiler.ir.intexpr import IntExpr
from compiler.ir.scalar import Scalar
from compiler.ir.types import Array as Array
from compiler.ir.types import DType, TensorType


@dataclass(frozen=True)
class Region:
    """One box of an index-mapping op's output: ``out[offset + i] = input[source][index(i)]`` for ``0 <= i < extent``.

    ``index`` is in the symbols ``i0, i1, …`` (one per output axis, relative to the box). ``source is None`` fills with ``fill``.
    """

    offset: tuple[int | IntExpr, ...]
    extent: tuple[int | IntExpr, ...]
    source: int | None
    index: tuple[int | IntExpr, ...] = ()
    fill: float | int | bool = 0


Attr = Union[int, float, str, bool, None, DType, IntExpr, Scalar, Region, tuple["Attr", ...]]


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """An SSA value; identity is the value, names are unique within a top-level graph."""

    name: str
    type: TensorType

    def __repr__(self) -> str:
        return f"%{self.name}:{self.type}"


@dataclass(frozen=True, eq=False)
class Constant:
    """Tensor data by reference: the array is never copied, and may be mapped from a file. It is in logical (row-major) order."""

    array: Array

    @cached_property
    def digest(self) -> str:
        """A content hash: dtype, shape and bytes (sha256, 16 hex digits)."""
        hasher = hashlib.sha256(f"{self.array.dtype}{self.array.shape}".encode())
        if self.array.dtype == DType.STRING.numpy:
            hasher.update(repr(self.array.tolist()).encode())
            return hasher.hexdigest()[:16]
        hasher.update(np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data)
        return hasher.hexdigest()[:16]


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operation. ``name`` is the model's own name of the node, for messages; optional inputs that are absent are None."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    regions: tuple[Graph, ...] = ()
    name: str = ""

    @property
    def output(self) -> Value:
        """The only output of a node that has one."""
        (value,) = self.outputs
        return value

    @property
    def present_inputs(self) -> tuple[Value, ...]:
        """The inputs that are there."""
        return tuple(v for v in self.inputs if v is not None)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order, with named inputs, outputs and constants.

    Regions take all the values they read as inputs; the symbols of their types and attributes may be those known around them.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[Value, Constant] = field(default_factory=dict)
    attrs: Mapping[str, Attr] = field(default_factory=dict)

    @cached_property
    def producers(self) -> Mapping[Value, Node]:
        """The node that makes each value."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def users(self) -> Mapping[Value, tuple[Node, ...]]:
        """The nodes that read each value (regions included), in order; a node that reads it twice stands once."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(reads(node)):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    def with_(self, **changes: Any) -> Graph:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def constant_array(self, value: Value | None) -> Array | None:
        """The data of a constant value; None for anything else."""
        if value is None:
            return None
        constant = self.constants.get(value)
        return None if constant is None else constant.array


def reads(node: Node) -> Iterator[Value]:
    """Every value node reads: its inputs, then what its regions take from around them."""
    yield from node.present_inputs
    for region in node.regions:
        yield from captured(region)


def ancestors(graph: Graph, values: Iterable[Value], last: Node | None = None) -> set[Node]:
    """The nodes of a graph that compute values, but for ``last`` and those before it."""
    found: set[Node] = set()
    pending = [*values]
    while pending:
        node = graph.producers.get(pending.pop())
        if node is not None and node is not last and node not in found:
            found.add(node)
            pending += node.present_inputs
    return found


def captured(region: Graph) -> Iterator[Value]:
    """The values a region reads from the graphs around it."""
    own = set(region.inputs) | set(region.constants)
    for node in region.nodes:
        for value in reads(node):
            if value not in own:
                yield value
        own.update(node.outputs)
    for value in region.outputs:
        if value not in own:
            yield value
