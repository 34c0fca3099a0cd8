"""Arithmetic on numbers that only a run knows: what can be said of them now.

Symbols ``u1, u2, …`` are bound to data and may be any integer; ``n1, n2, …`` are counts and sizes, never negative. All others are dims of
the model's inputs; they are taken to be at least 1 where only the sign of a result matters.
"""

from __future__ import annotations

import re

from compiler.ir.intexpr import Apply, Dim, Sym, maximum, minimum, symbols

_NUMBERED = re.compile(r"[un]\d+")


def depends_on_run(dim: Dim) -> bool:
    """Whether dim uses a symbol that nodes define: the inputs' shapes alone do not tell it."""
    return any(_NUMBERED.fullmatch(name) for name in symbols(dim))


def lower_bound(dim: Dim, smallest: int = 1) -> int | None:
    """A number that dim is never below where dims of inputs are at least ``smallest``; None where none is known."""
    if isinstance(dim, int):
        return dim
    total = dim.const
    for monomial, coefficient in dim.terms:
        least = 1
        for atom in monomial:
            bound = _least_symbol(atom.name, smallest) if isinstance(atom, Sym) else _least(atom, smallest)
            if bound is None or bound < 0:
                return None
            least *= bound
        if coefficient < 0:
            return None
        total += coefficient * least
    return total


def _least_symbol(name: str, smallest: int) -> int | None:
    if _NUMBERED.fullmatch(name):
        return 0 if name[0] == "n" else None
    return smallest


def _least(atom: Apply, smallest: int) -> int | None:
    left, right = lower_bound(atom.lhs, smallest), lower_bound(atom.rhs, smallest)
    known = [bound for bound in (left, right) if bound is not None]
    match atom.op:
        case "max":
            return max(known, default=None)
        case "min":
            return min(known) if len(known) == 2 else None
        case _:
            return 0 if len(known) == 2 and min(known) >= 0 and right else None


def is_natural(dim: Dim, smallest: int = 1) -> bool:
    """Whether dim is known to be 0 or more where dims of inputs are at least ``smallest``."""
    least = lower_bound(dim, smallest)
    return least is not None and least >= 0


def natural(dim: Dim) -> Dim:
    """dim, or 0 where it is negative."""
    return dim if is_natural(dim, 0) else maximum(dim, 0)


def is_negative(dim: Dim) -> Dim:
    """1 where dim is negative, else 0."""
    if isinstance(dim, int):
        return int(dim < 0)
    return 0 if is_natural(dim) else -minimum(maximum(dim, -1), 0)


def is_positive(dim: Dim) -> Dim:
    """1 where dim is above 0, else 0."""
    return minimum(maximum(dim, 0), 1)


def is_equal(left: Dim, right: Dim) -> Dim:
    """1 where two dims are the same, else 0."""
    difference = left - right
    return 1 - minimum(maximum(difference, -difference), 1)


def wrapped(position: Dim, length: Dim) -> Dim:
    """A position that counts from the end where it is negative."""
    return position + is_negative(position) * length
