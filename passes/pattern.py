"""Patterns over producers: a small expression of operators that a value may be the result of.

A pattern is built bottom up from ``value``, ``number``, ``op`` and ``either``, and matched from its root down. Using one
pattern object twice asks for the same value at both places; operands of commutative operators match in either order::

    x = value("x")
    mish = op("mul", x, op("tanh", op("softplus", x)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations
from math import isclose

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Attr, Node, Value

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "and", "or", "xor", "bitwise_and", "bitwise_or", "bitwise_xor", "equal"})
"""Elementwise operators of two operands whose order does not matter."""

_CLOSE = 1e-6
"""How far, relatively, a number of a model may be from the one a pattern asks for: float32 has it to 6e-8."""


@dataclass(frozen=True, eq=False)
class Anything:
    """Any value; ``name`` captures it."""

    name: str


@dataclass(frozen=True, eq=False)
class Literal:
    """A constant of one number everywhere: ``expected``, or any where that is None. ``name`` captures it."""

    name: str
    expected: float | None


@dataclass(frozen=True, eq=False)
class Operation:
    """The result of a node of one of ``ops`` whose inputs match ``operands`` and whose attributes have the values in ``attrs``.

    ``name`` captures the node's result.
    """

    ops: tuple[str, ...]
    operands: tuple[Pattern, ...]
    attrs: Mapping[str, Attr]
    name: str


@dataclass(frozen=True, eq=False)
class Either:
    """What the first of ``patterns`` that fits matches; ``name`` captures it."""

    patterns: tuple[Pattern, ...]
    name: str


Pattern = Anything | Literal | Operation | Either


def value(name: str) -> Pattern:
    """Any value, captured."""
    return Anything(name)


def number(expected: float | None = None, name: str = "") -> Pattern:
    """A constant that holds one number everywhere, ``expected`` or any, and does not widen what it is combined with."""
    return Literal(name, expected)


def op(ops: str, *operands: Pattern, name: str = "", **attrs: Attr) -> Operation:
    """The result of an operator; ``ops`` may name several, separated by ``|``."""
    return Operation(tuple(ops.split("|")), operands, attrs, name)


def either(*patterns: Pattern, name: str = "") -> Pattern:
    """Alternatives, tried in order."""
    return Either(patterns, name)


@cache
def operations(pattern: Pattern) -> frozenset[Operation]:
    """The operators that every match has: of alternatives, those of the smallest."""
    match pattern:
        case Operation():
            return frozenset({pattern}).union(*map(operations, pattern.operands))
        case Either(patterns):
            return min(map(operations, patterns), key=len)
        case _:
            return frozenset()


@dataclass(frozen=True)
class Match:
    """What a pattern has been found in: values by name, and the nodes that make up the match, ``root`` first."""

    builder: GraphBuilder
    root: Node
    values: Mapping[str, Value] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    bound: Mapping[Pattern, Value] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def producer(self, value: Value) -> Node | None:
        """The node that makes a value; the root is not in the builder yet."""
        return self.root if value in self.root.outputs else self.builder.producer(value)

    def node(self, name: str) -> Node:
        """The node that makes a captured result."""
        return next(node for node in self.nodes if self.values[name] in node.outputs)

    def number(self, name: str) -> float:
        """The one number in a captured constant."""
        return float(self.array(name).reshape(-1)[0])

    def array(self, name: str) -> Array:
        """The data of a captured constant."""
        return self.builder.constants[self.values[name]].array


Failure = Callable[[Match, Callable[[], str]], None]
"""Told, for each thing that does not fit, how far the match had come and what is wrong."""


def matches(pattern: Pattern, found: Value, match: Match, failure: Failure) -> Iterator[Match]:
    """Every way in which ``found`` is what the pattern says, continuing ``match``."""
    known = match.bound.get(pattern)
    if known is not None:
        if known is found:
            yield match
        else:
            failure(match, lambda: f"%{found.name} is not %{known.name}")
        return
    match pattern:
        case Either(patterns, name):
            for each in patterns:
                for inner in matches(each, found, match, failure):
                    yield from _named(inner, pattern, found, name, failure)
        case Anything(name):
            yield from _named(match, pattern, found, name, failure)
        case Literal():
            reason = _literal(pattern, found, match.builder)
            if reason is None:
                yield from _named(match, pattern, found, pattern.name, failure)
            else:
                failure(match, lambda: reason)
        case Operation():
            yield from _operation(pattern, found, match, failure)


def _bind(match: Match, pattern: Pattern, found: Value, name: str) -> Match:
    values = {**match.values, name: found} if name else match.values
    return replace(match, values=values, bound={**match.bound, pattern: found})


def _named(match: Match, pattern: Pattern, found: Value, name: str, failure: Failure) -> Iterator[Match]:
    """The match with found under that name, which stands for one value wherever it is used."""
    known = match.values.get(name, found) if name else found
    if known is found:
        yield _bind(match, pattern, found, name)
    else:
        failure(match, lambda: f"%{found.name} is not %{known.name}")


def _literal(pattern: Literal, found: Value, builder: GraphBuilder) -> str | None:
    """Why a value is not the constant asked for; None where it is."""
    array = builder.array(found)
    if array is None:
        return f"%{found.name} is not a constant"
    if array.size == 0 or array.dtype.kind not in "fiuV" or (array.size > 1 and bool(np.any(array != array.reshape(-1)[0]))):
        return f"%{found.name} is not one number everywhere"
    got = float(array.reshape(-1)[0])
    if pattern.expected is not None and not isclose(got, pattern.expected, rel_tol=_CLOSE):
        return f"%{found.name} is {got:.8g}, not {pattern.expected:.8g}"
    return None


def _operation(pattern: Operation, found: Value, match: Match, failure: Failure) -> Iterator[Match]:
    node = match.producer(found)
    wanted = " or ".join(pattern.ops)
    if node is None or node.op not in pattern.ops:
        failure(match, lambda: f"%{found.name} is {'given' if node is None else f'made by {node.op}'}, not made by {wanted}")
        return
    wrong = next((key for key, attr in pattern.attrs.items() if not _equal(node.attrs.get(key), attr)), None)
    inputs = node.present_inputs
    if wrong is not None or len(inputs) != len(pattern.operands):
        what = f"{len(inputs)} operands" if wrong is None else f"{wrong} = {node.attrs.get(wrong)}"
        failure(match, lambda: f"%{found.name}, made by {node.op}, has {what}")
        return
    begun = replace(_bind(match, pattern, found, pattern.name), nodes=(*match.nodes, node))
    orders = permutations(inputs) if node.op in COMMUTATIVE else iter((inputs,))
    for order in dict.fromkeys(orders):
        if _widened(pattern.operands, order, node):
            failure(begun, lambda: f"a constant broadcasts the operands of %{found.name}")
        else:
            yield from _operands(pattern.operands, order, begun, failure)


def _equal(got: Attr, wanted: Attr) -> bool:
    """Whether an attribute is what a pattern asks for; floats but for rounding."""
    if isinstance(got, float) and isinstance(wanted, float):
        return isclose(got, wanted, rel_tol=_CLOSE)
    return got == wanted


def _widened(patterns: tuple[Pattern, ...], inputs: tuple[Value, ...], node: Node) -> bool:
    """Whether an operand that is to be one number gives the result a shape that no other operand has."""
    others = [v for each, v in zip(patterns, inputs, strict=True) if not isinstance(each, Literal)]
    return 0 < len(others) < len(inputs) and all(v.type.shape != node.output.type.shape for v in others)


def _operands(patterns: tuple[Pattern, ...], inputs: tuple[Value, ...], match: Match, failure: Failure) -> Iterator[Match]:
    """The operands one after another, constants first: they decide soonest."""
    if not patterns:
        yield match
        return
    at = next((index for index, each in enumerate(patterns) if isinstance(each, Literal)), 0)
    for first in matches(patterns[at], inputs[at], match, failure):
        yield from _operands(patterns[:at] + patterns[at + 1 :], inputs[:at] + inputs[at + 1 :], first, failure)
