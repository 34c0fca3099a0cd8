"""What the names of one ONNX graph, subgraph or function body stand for while it is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Value
from frontend.onnx.entries import Entry, replaced
from frontend.onnx.reading import Tensor


@dataclass
class Scope:
    """One graph, subgraph or function body being imported into ``builder``.

    ``around`` is the scope that a subgraph also sees; ``taken`` are the values it took from there, by what they are outside. A subgraph
    with a builder of its own becomes a region: what it takes becomes its inputs, or a constant of its own.
    """

    opsets: Mapping[str, int]
    builder: GraphBuilder
    values: dict[str, Entry] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    declared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    prefix: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    around: Scope | None = None
    taken: dict[Value, Value] = field(default_factory=dict)

    def inside(self, name: str, builder: GraphBuilder) -> Scope:
        """The scope of a subgraph of a node called name."""
        prefix = f"{self.prefix}{name}/" if name else self.prefix
        return Scope(self.opsets, builder, attributes=self.attributes, broken=set(self.broken), prefix=prefix, calls=self.calls, around=self)

    def region(self, name: str) -> Scope:
        """The scope of a subgraph that becomes a region."""
        return self.inside(name, GraphBuilder(name or "region", around=self.builder))

    @property
    def captures(self) -> tuple[Value, ...]:
        """The values outside that are inputs of the region, in order."""
        return tuple(outer for outer, inner in self.taken.items() if inner not in self.builder.constants)

    def take(self, entry: Entry) -> Entry:
        """What stands here for an entry of the scope around."""
        return replaced(entry, self.take_value)

    def take_value(self, value: Value) -> Value:
        """What stands here for a value of the scope around."""
        if self.around is None or self.around.builder is self.builder:
            return value
        if value not in self.taken:
            constant, content = self.around.builder.constants.get(value), self.around.builder.content(value)
            if constant is not None:
                inner = self.builder.adopt(Value(self.builder.unique(value.name), value.type), constant)
            else:
                inner = self.builder.input(value.name, value.type)
                if content is not None:
                    self.builder.set_dims(inner, content)
            self.taken[value] = inner
        return self.taken[value]
