"""Regions whose channels are their source's in another order, perhaps by phases: every n-th row takes them from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import lcm, prod

from compiler.ir.graph import Region
from compiler.ir.intexpr import Apply, Dim, ceildiv, substitute, sym, symbols

_MOST_PHASES = 16
"""Phases of a region at most: kernels have code for each."""


@dataclass(frozen=True)
class Phase:
    """Every ``steps[k]``-th position of each axis k of an output, from ``region``'s offset on; its extent and index count these."""

    region: Region
    steps: tuple[int, ...]


def phases(region: Region) -> tuple[Phase, ...] | None:
    """A region as phases in each of which the source's channel depends on the output's alone, and nothing else does.

    None where there are none such, or too many.
    """
    if not region.index:
        return None
    channel, rank = region.index[1], len(region.extent)
    steps = tuple(1 if axis == 1 else lcm(*_moduli(channel, f"i{axis}")) for axis in range(rank))
    if prod(steps) > _MOST_PHASES:
        return None
    found = []
    for starts in product(*map(range, steps)):
        axes = list(zip(starts, steps, strict=True))
        values = {f"i{axis}": sym(f"i{axis}") * step + start for axis, (start, step) in enumerate(axes) if step != 1}
        index = tuple(substitute(coordinate, values) for coordinate in region.index)
        if {*symbols(index[1])} != {"i1"} or any("i1" in symbols(coordinate) for axis, coordinate in enumerate(index) if axis != 1):
            return None
        offset = tuple(first + start for first, start in zip(region.offset, starts, strict=True))
        extent = tuple(ceildiv(dim - start, step) for dim, (start, step) in zip(region.extent, axes, strict=True))
        found.append(Phase(replace(region, offset=offset, extent=extent, index=index), steps))
    return tuple(found)


def _moduli(expr: Dim, symbol: str) -> Iterator[int]:
    """The numbers by which what depends on a symbol is divided for its rest."""
    if isinstance(expr, int):
        return
    for monomial, _ in expr.terms:
        for atom in monomial:
            if isinstance(atom, Apply):
                if atom.op == "mod" and isinstance(atom.rhs, int) and symbol in symbols(atom.lhs):
                    yield atom.rhs
                yield from _moduli(atom.lhs, symbol)
                yield from _moduli(atom.rhs, symbol)
