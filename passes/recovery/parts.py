"""Pieces that several rules' patterns are made of."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from compiler.ir.intexpr import Dim, product
from compiler.ops.support import attr_ints
from passes.pattern import Match, Pattern, either, number, op


def inverse(x: Pattern) -> Pattern:
    """``1 / x``."""
    return either(op("reciprocal", x), op("div", number(1), x))


def times(*factors: Pattern) -> Pattern:
    """The product of two or more factors, in any order."""
    if len(factors) == 2:
        return op("mul", *factors)
    pairs = combinations(range(len(factors)), 2)
    return either(*(times(op("mul", factors[i], factors[j]), *(f for k, f in enumerate(factors) if k not in (i, j))) for i, j in pairs))


def scaled(x: Pattern, factor: float) -> Pattern:
    """``x * factor``, perhaps as a division."""
    return either(op("mul", x, number(factor)), op("div", x, number(1 / factor)))


@dataclass(frozen=True)
class Reduced:
    """``kind`` of a value over some axes, which stay as 1, as a pattern; ``name`` captures the result, ``name.reduce`` the reduction."""

    name: str
    of: Pattern
    kind: str = "sum"

    @property
    def pattern(self) -> Pattern:
        reduction = op("reduce", self.of, kind=self.kind, name=f"{self.name}.reduce")
        return either(reduction, op("reshape", reduction))

    def axes(self, match: Match) -> tuple[int, ...]:
        """The axes."""
        return attr_ints(match.node(f"{self.name}.reduce").attrs, "axes")

    def extents(self, match: Match) -> list[Dim]:
        """The dims of those axes."""
        shape = match.node(f"{self.name}.reduce").present_inputs[0].type.shape
        return [shape[axis] for axis in self.axes(match)]

    def not_kept(self, match: Match, result: str) -> str | None:
        """Why the value captured as ``result`` does not keep the reduced axes as 1; None where it does."""
        source = match.node(f"{self.name}.reduce").present_inputs[0].type.shape
        axes, shape = self.axes(match), match[result].type.shape
        if shape != tuple(1 if axis in axes else dim for axis, dim in enumerate(source)):
            return f"%{match[result].name} does not keep the reduced axes {list(axes)} as 1"
        return None


@dataclass(frozen=True)
class Mean:
    """A sum over axes times a number, divided by one, or as it is, as a pattern; ``name`` captures it, ``share`` says what it is of a mean."""

    name: str
    of: Pattern

    @property
    def reduced(self) -> Reduced:
        return Reduced(f"{self.name}.sum", self.of)

    @property
    def pattern(self) -> Pattern:
        total = self.reduced.pattern
        count = either(number(name=f"{self.name}.count"), op("cast", op("dims", name=f"{self.name}.dims")))
        part = either(op("mul", total, number(name=f"{self.name}.factor")), op("div", total, count), total)
        return either(part, op("reshape", part), name=self.name)

    def share(self, match: Match) -> float | None:
        """The factor between the mean and this: 1 for a mean, the number of elements for a sum; None where it depends on a run, or there is none."""
        count = product(self.reduced.extents(match))
        if f"{self.name}.dims" in match:
            return 1.0 if match.node(f"{self.name}.dims").attrs["values"] == (count,) else None
        if not isinstance(count, int) or count == 0:
            return None
        if f"{self.name}.factor" in match:
            return match.number(f"{self.name}.factor") * count
        divisor = match.number(f"{self.name}.count") if f"{self.name}.count" in match else 1.0
        return count / divisor if divisor else None
