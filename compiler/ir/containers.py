"""Sequences and optional values at a graph's borders: what its attributes say of the tensors that stand for them.

``input_names`` and ``output_names`` name the tensors of a graph's borders; ``input_containers`` and ``output_containers`` are there where
some of them stand for a sequence or an optional value, and say of each what ``Container`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.graph import Attr, Graph


@dataclass(frozen=True)
class Container:
    """``count`` tensors from number ``first`` on. ``dims`` are those of the tensor, or of the elements of a sequence."""

    first: int
    count: int
    name: str
    optional: bool
    sequence: bool
    dims: tuple[int | str, ...]

    @property
    def attr(self) -> Attr:
        """It as an attribute of a graph."""
        return (self.first, self.count, self.name, self.optional, self.sequence, self.dims)


def containers(graph: Graph, role: str) -> Iterator[Container]:
    """Those of the graph's inputs or outputs (role ``input`` or ``output``), in order."""
    found = graph.attrs.get(f"{role}_containers", ())
    for item in found if isinstance(found, tuple) else ():
        match item:
            case (int(first), int(count), str(name), bool(optional), bool(sequence), tuple(dims)):
                shape = tuple(dim for dim in dims if isinstance(dim, int | str))
                yield Container(first, count, name, optional, sequence, shape)
            case _:
                raise InternalError(f"{item!r} does not say what stands at a border", where=f"graph {graph.name}")
