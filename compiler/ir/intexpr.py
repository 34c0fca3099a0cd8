"""Symbolic integers: tensor dims and loop indices, as canonical polynomials.

An ``IntExpr`` is ``const + sum(coefficient * product(atoms))``. Atoms are symbols and the non-polynomial operations
``floordiv``, ``mod``, ``min`` and ``max`` of two dims. Equal polynomials are equal objects by value, so ``a + b - a == b``.
Anything that folds to a constant is a plain ``int``; ``Dim`` is either. Division rounds towards minus infinity, as Python's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Union


@dataclass(frozen=True, slots=True)
class Sym:
    """A named unknown: a symbolic dim, a loop variable or a run-time argument."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Apply:
    """A non-polynomial operation on two dims: op is ``floordiv``, ``mod``, ``min`` or ``max``."""

    op: str
    lhs: Dim
    rhs: Dim

    def __str__(self) -> str:
        return f"{self.op}({self.lhs}, {self.rhs})"


Atom = Union[Sym, Apply]
Monomial = tuple[Atom, ...]


class IntExpr:
    """A non-constant integer polynomial; build one with ``sym`` and arithmetic."""

    __slots__ = ("_hash", "_text", "const", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...], const: int) -> None:
        self.terms = terms
        self.const = const
        self._hash: int | None = None
        self._text: str | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.terms, self.const))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntExpr) and self.const == other.const and self.terms == other.terms

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            return IntExpr(self.terms, self.const + other)
        merged = dict(self.terms)
        for monomial, coefficient in other.terms:
            merged[monomial] = merged.get(monomial, 0) + coefficient
        return _make(merged, self.const + other.const)

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 0:
                return 0
            return IntExpr(tuple((m, c * other) for m, c in self.terms), self.const * other)
        merged: dict[Monomial, int] = {}
        for left, a in (*self.terms, ((), self.const)):
            for right, b in (*other.terms, ((), other.const)):
                monomial = tuple(sorted(left + right, key=str)) if left and right else left + right
                merged[monomial] = merged.get(monomial, 0) + a * b
        const = merged.pop((), 0)
        return _make(merged, const)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        if self._text is None:
            self._text = self._written()
        return self._text

    def _written(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            factors = "*".join(map(str, monomial))
            sign = "-" if coefficient < 0 else "+"
            size = abs(coefficient)
            parts.append((sign, factors if size == 1 else f"{size}*{factors}"))
        if self.const:
            parts.append(("-" if self.const < 0 else "+", str(abs(self.const))))
        text = "".join(f" {sign} {body}" for sign, body in parts)
        return text[3:] if text.startswith(" + ") else "-" + text[3:]

    def __repr__(self) -> str:
        return f"IntExpr({self})"


Dim = Union[int, IntExpr]


def _make(terms: Mapping[Monomial, int], const: int) -> Dim:
    kept = [(m, c) for m, c in terms.items() if c]
    if not kept:
        return const
    if len(kept) > 1:
        kept.sort(key=lambda term: tuple(map(str, term[0])))
    return IntExpr(tuple(kept), const)


def _atom(atom: Atom) -> IntExpr:
    return IntExpr((((atom,), 1),), 0)


def sym(name: str) -> IntExpr:
    """The symbol called ``name``."""
    return _atom(Sym(name))


def floordiv(lhs: Dim, rhs: Dim) -> Dim:
    """``lhs // rhs``; terms that ``rhs`` divides are taken out of the division. Raises ZeroDivisionError for a zero divisor."""
    if isinstance(lhs, int) and isinstance(rhs, int):
        return lhs // rhs
    if lhs == rhs:
        return 1
    if isinstance(rhs, int) and isinstance(lhs, IntExpr):
        if rhs == 0:
            raise ZeroDivisionError(f"({lhs}) // 0")
        if rhs == 1:
            return lhs
        if rhs > 0:
            outside, inside = _split(lhs, rhs)
            if isinstance(inside, int):
                return outside + inside // rhs
            if outside != 0:
                return outside + floordiv(inside, rhs)
    if lhs == 0:
        return 0
    return _atom(Apply("floordiv", lhs, rhs))


def mod(lhs: Dim, rhs: Dim) -> Dim:
    """``lhs % rhs``, with terms that ``rhs`` divides dropped."""
    if isinstance(lhs, int) and isinstance(rhs, int):
        return lhs % rhs
    if lhs == rhs or lhs == 0 or rhs == 1:
        return 0
    if isinstance(rhs, int) and isinstance(lhs, IntExpr) and rhs > 0:
        _, inside = _split(lhs, rhs)
        if isinstance(inside, int):
            return inside % rhs
        lhs = inside
    return _atom(Apply("mod", lhs, rhs))


def _split(expr: IntExpr, divisor: int) -> tuple[Dim, Dim]:
    """expr as (outside, inside) with ``expr == outside * divisor + inside`` and no term of inside divisible by divisor."""
    outside = {m: c // divisor for m, c in expr.terms if c % divisor == 0}
    inside = {m: c for m, c in expr.terms if c % divisor}
    return _make(outside, expr.const // divisor), _make(inside, expr.const % divisor)


def minimum(lhs: Dim, rhs: Dim) -> Dim:
    """The smaller of two dims."""
    return _extreme("min", lhs, rhs)


def maximum(lhs: Dim, rhs: Dim) -> Dim:
    """The larger of two dims."""
    return _extreme("max", lhs, rhs)


def _extreme(op: str, lhs: Dim, rhs: Dim) -> Dim:
    difference = lhs - rhs
    if isinstance(difference, int):
        left_wins = difference <= 0 if op == "min" else difference >= 0
        return lhs if left_wins else rhs
    first, second = sorted((lhs, rhs), key=str)
    return _atom(Apply(op, first, second))


def product(dims: Sequence[Dim]) -> Dim:
    """The product of dims; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return total


def ceildiv(lhs: Dim, rhs: int) -> Dim:
    """``lhs / rhs`` rounded up."""
    return floordiv(lhs + (rhs - 1), rhs)


def symbols(expr: Dim) -> Iterator[str]:
    """The names of every symbol in expr, with repeats."""
    if isinstance(expr, int):
        return
    for monomial, _ in expr.terms:
        for atom in monomial:
            if isinstance(atom, Sym):
                yield atom.name
            else:
                yield from symbols(atom.lhs)
                yield from symbols(atom.rhs)


_BINARY = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}


def substitute(expr: Dim, values: Mapping[str, Dim]) -> Dim:
    """expr with each symbol named in ``values`` replaced; others stay."""
    if isinstance(expr, int):
        return expr
    total: Dim = expr.const
    for monomial, coefficient in expr.terms:
        term: Dim = coefficient
        for atom in monomial:
            if isinstance(atom, Sym):
                term = term * values.get(atom.name, _atom(atom))
            else:
                term = term * _BINARY[atom.op](substitute(atom.lhs, values), substitute(atom.rhs, values))
        total = total + term
    return total


def evaluate(expr: Dim, values: Mapping[str, int]) -> int:
    """The number expr stands for; a zero divisor counts as one, as in compiled code. Raises KeyError for a symbol without a value."""
    if isinstance(expr, int):
        return expr
    total = expr.const
    for monomial, coefficient in expr.terms:
        total += coefficient * prod(_atom_value(atom, values) for atom in monomial)
    return total


def _atom_value(atom: Atom, values: Mapping[str, int]) -> int:
    if isinstance(atom, Sym):
        return values[atom.name]
    lhs, rhs = evaluate(atom.lhs, values), evaluate(atom.rhs, values)
    match atom.op:
        case "floordiv":
            return lhs // (rhs or 1)
        case "mod":
            return lhs % rhs if rhs else lhs
        case "min":
            return min(lhs, rhs)
        case _:
            return max(lhs, rhs)


_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_][A-Za-z0-9_.]*)|([-+*(),]))")


def parse(text: str) -> Dim:
    """The dim that ``str`` printed as ``text``. Raises ValueError where text is not one."""
    tokens: list[str] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"not an integer expression: {text!r} at {position}")
        tokens.append(match.group().strip())
        position = match.end()
    tokens.append("")
    value, rest = _parse_sum(tokens, 0)
    if tokens[rest]:
        raise ValueError(f"unexpected {tokens[rest]!r} in {text!r}")
    return value


def _parse_sum(tokens: list[str], at: int) -> tuple[Dim, int]:
    sign = 1
    if tokens[at] == "-":
        sign, at = -1, at + 1
    value, at = _parse_product(tokens, at)
    total: Dim = value * sign
    while tokens[at] in ("+", "-"):
        sign = 1 if tokens[at] == "+" else -1
        value, at = _parse_product(tokens, at + 1)
        total = total + value * sign
    return total, at


def _parse_product(tokens: list[str], at: int) -> tuple[Dim, int]:
    value, at = _parse_factor(tokens, at)
    while tokens[at] == "*":
        factor, at = _parse_factor(tokens, at + 1)
        value = value * factor
    return value, at


def _parse_factor(tokens: list[str], at: int) -> tuple[Dim, int]:
    token = tokens[at]
    if token.isdigit():
        return int(token), at + 1
    if token == "(":
        value, at = _parse_sum(tokens, at + 1)
        return value, _expect(tokens, at, ")")
    if token in _BINARY and tokens[at + 1] == "(":
        lhs, at = _parse_sum(tokens, at + 2)
        rhs, at = _parse_sum(tokens, _expect(tokens, at, ","))
        return _BINARY[token](lhs, rhs), _expect(tokens, at, ")")
    if not token or not (token[0].isalpha() or token[0] == "_"):
        raise ValueError(f"expected a number or a name, found {token!r}")
    return sym(token), at + 1


def _expect(tokens: list[str], at: int, token: str) -> int:
    if tokens[at] != token:
        raise ValueError(f"expected {token!r}, found {tokens[at]!r}")
    return at + 1
