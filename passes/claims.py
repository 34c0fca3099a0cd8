"""Claims that two graphs compute the same, and the check of one on numbers."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from compiler.errors import InternalError
from compiler.ir.control import type_symbols
from compiler.ir.graph import Array, Constant, Graph, Node, Value
from compiler.ir.interp import bind_attr, interpret
from compiler.ir.intexpr import Dim, evaluate, sym
from compiler.ir.op import lookup
from compiler.ir.types import DType, TensorType

_TOLERANCE = 1e-5
"""Of the largest number in an output."""

_SIZES = (5, 16, 37, 3, 2, 1, 100, 300)
"""What sizes that only a run knows are tried at: the first, each symbol one more than the one before, at which nothing is empty or refused."""


@dataclass(frozen=True, eq=False)
class Claim:
    """``sides`` makes two graphs that have the same inputs, of floats, and compute the same outputs up to rounding. ``name`` says of what."""

    name: str
    sides: Callable[[], tuple[Graph, Graph]]

    def check(self) -> None:
        """Raises InternalError, naming the claim, where the two differ on random inputs. They compute in float64, with the constants as they are."""
        sides = self.sides()
        sizes = self._sizes(sides)
        before, after = (_in_float64(graph, sizes) for graph in sides)
        rng = np.random.default_rng(0)
        feeds = {value.name: rng.standard_normal(value.type.static_shape) for value in before.inputs}
        expected, got = interpret(before, feeds), interpret(after, feeds)
        for one, other in zip(before.outputs, after.outputs, strict=True):
            difference = _relative_difference(got[other.name], expected[one.name])
            if not difference <= _TOLERANCE:
                raise InternalError(f"{one.name} differs by {difference:.2g} of its scale", where=self.name, hint="please report this with the model")

    def _sizes(self, sides: tuple[Graph, Graph]) -> Mapping[str, int]:
        """What each symbol is taken for: what an operator needs it to be, or one of ``_SIZES``; all of them the same where they must be."""
        types = [value.type for graph in sides for value in _values(graph)]
        names = sorted({name for type_ in types for name in type_symbols(type_)})
        equal = [pair for graph in sides for pair in _assumed(graph)]
        needed = {name: size for pair in equal for dim, size in (pair, pair[::-1]) for name in names if dim == sym(name) and isinstance(size, int)}
        for step, first in product((1, 0), _SIZES):
            sizes = {name: first + step * number for number, name in enumerate(names)} | needed
            fits = all(evaluate(one, sizes) == evaluate(other, sizes) for one, other in equal)
            if fits and all(evaluate(dim, sizes) > 0 for type_ in types for dim in type_.shape):
                return sizes
        raise InternalError("no sizes are found to check it at", where=self.name, hint="give the inputs fixed shapes")


def _assumed(graph: Graph) -> Iterator[tuple[Dim, Dim]]:
    """Dims that operators take to be equal."""
    for node in graph.nodes:
        yield from lookup(node.op).assumes([None if value is None else value.type for value in node.inputs], node.attrs)


def part_of(graph: Graph, nodes: Container[Node], inputs: Iterable[Value], outputs: Iterable[Value]) -> Graph:
    """The part of graph that computes ``outputs`` from ``inputs`` by these nodes; an input that they compute from another is none. What else
    it reads are inputs too.
    """
    found, results = dict.fromkeys(inputs), tuple(outputs)
    computed: set[Value] = set()
    for node in graph.nodes:
        if node in nodes and any(value in found or value in computed for value in node.present_inputs):
            computed.update(node.outputs)
    needed, taken = set(results), []
    for node in reversed(graph.nodes):
        if any(value in needed and (value in computed or value not in found) for value in node.outputs) and node in nodes:
            taken.append(node)
            needed.update(node.present_inputs)
    made = {value for node in taken for value in node.outputs}
    reads = dict.fromkeys(value for node in reversed(taken) for value in node.present_inputs if value not in made)
    constants = {value: graph.constants[value] for value in reads if value in graph.constants}
    return Graph(graph.name, tuple(value for value in reads if value not in constants), results, tuple(reversed(taken)), constants)


def _relative_difference(got: Array, wanted: Array) -> float:
    scale = float(np.abs(wanted).max(initial=0)) or 1.0
    return float(np.abs(got - wanted).max(initial=0)) / scale


def _values(graph: Graph) -> Iterator[Value]:
    yield from graph.inputs
    for node in graph.nodes:
        yield from node.outputs


def _in_float64(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """graph at these sizes, its floats as float64."""
    twins: dict[Value, Value] = {}

    def twin(value: Value) -> Value:
        if value not in twins:
            shape = tuple(evaluate(dim, sizes) for dim in value.type.shape)
            twins[value] = Value(value.name, TensorType(DType.FLOAT64, shape))
        return twins[value]

    nodes = tuple(
        Node(
            node.op,
            tuple(None if value is None else twin(value) for value in node.inputs),
            tuple(map(twin, node.outputs)),
            {key: bind_attr(attr, sizes) for key, attr in node.attrs.items()},
            name=node.name,
        )
        for node in graph.nodes
    )
    constants = {twin(value): Constant(constant.array.astype(np.float64)) for value, constant in graph.constants.items()}
    return Graph(graph.name, tuple(map(twin, graph.inputs)), tuple(map(twin, graph.outputs)), nodes, constants)
