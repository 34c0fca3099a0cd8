"""How extents are cut into tiles of nearly equal size, shared by workers and held in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, ceildiv, floordiv, minimum, mod
from compiler.kernels.loops import power_of_two
from compiler.target import Target

_SUPPOSED = 64
"""What a size that is only known at run time is taken for when a schedule is chosen."""


def supposed(extent: Dim) -> int:
    """extent for choosing a schedule."""
    return extent if isinstance(extent, int) else _SUPPOSED


@dataclass(frozen=True)
class Section:
    """``count`` tiles of ``size`` from ``start`` on."""

    start: int
    count: int
    size: int


@dataclass(frozen=True)
class Tiles:
    """A section of rows or vectors whose place and number may be known at run time only.

    ``ragged``: how many lanes the last vector has in use is one of the things not known.
    """

    start: Dim
    count: Dim
    size: int
    ragged: bool = False


def sections(total: int, largest: int) -> list[Section]:
    """``total`` as tiles of at most ``largest``, all of one size or of two that differ by one."""
    if total == 0:
        return []
    tiles = -(-total // largest)
    size = -(-total // tiles)
    small = tiles * size - total
    found = [Section(0, tiles - small, size)]
    if small:
        found.append(Section((tiles - small) * size, small, size - 1))
    return found


def _tiles(found: Sequence[Section]) -> list[Tiles]:
    return [Tiles(section.start, section.count, section.size) for section in found]


def row_tiles(total: Dim, largest: int) -> list[Tiles]:
    """Rows as tiles; where their number is known at run time only, the largest and then what is left in powers of two."""
    if isinstance(total, int):
        return _tiles(sections(total, largest))
    found = [Tiles(0, floordiv(total, largest), largest)]
    start, rest = floordiv(total, largest) * largest, mod(total, largest)
    size = power_of_two(largest) // 2
    while size:
        found.append(Tiles(start, floordiv(rest, size), size))
        start, rest = start + floordiv(rest, size) * size, mod(rest, size)
        size //= 2
    return found


def panel_tiles(n: Dim, lanes: int, largest: int, *, padded: bool) -> list[Tiles]:
    """The vectors of a row of n elements as tiles; where their number is known at run time only, whole ones and then vector by vector.

    Without padding the last tile of a row that does not fill its last vector stands alone.
    """
    if isinstance(n, int):
        found = sections(-(-n // lanes), largest)
        return _tiles(found if padded or n % lanes == 0 else split_last(found))
    whole = floordiv(n, largest * lanes)
    return [Tiles(0, whole, largest), Tiles(whole * largest, ceildiv(n, lanes) - whole * largest, 1, ragged=True)]


def split_last(found: list[Section]) -> list[Section]:
    """The same tiles with the last one in a section of its own."""
    *rest, last = found
    if last.count == 1:
        return found
    return [*rest, Section(last.start, last.count - 1, last.size), Section(last.start + (last.count - 1) * last.size, 1, last.size)]


def register_rows(target: Target, nv: int) -> int:
    """Rows that fit the register file beside ``nv`` vectors of b and one broadcast of a."""
    return max(1, (target.vector_registers - nv - 1) // nv)


def imbalance(counts: list[int], threads: int) -> float:
    """Time of the slowest worker over the ideal when each section's tiles are shared."""
    total = sum(counts)
    return sum(-(-count // threads) for count in counts) * threads / total if total else 1.0


def worker_part(count: Dim, worker: Dim, threads: int, number: int = 0) -> tuple[Dim, Dim]:
    """Which of ``count`` tiles a worker takes: from where on, and the end. Sections of odd ``number`` are dealt from the other end, to even out."""
    share = ceildiv(count, threads)
    turn = worker if number % 2 == 0 else -worker + (threads - 1)
    stop = (turn + 1) * share
    return turn * share, stop if mod(count, threads) == 0 else minimum(stop, count)
