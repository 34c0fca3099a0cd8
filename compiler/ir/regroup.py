"""What a reshape does to the axes: which run of axes before it becomes which run after it."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim, product

Shape = tuple[Dim, ...]


def runs(before: Shape, after: Shape) -> list[tuple[Shape, slice]] | None:
    """The shortest runs of dims of equal product, in order, as dims before and the axes after; None where symbolic dims hide them.

    From ``[2, 12, 5]`` to ``[2, 3, 4, 5]``: ``[2]`` axis 0, ``[12]`` axes 1 and 2, ``[5]`` axis 3.
    """
    found: list[tuple[Shape, slice]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ends = ((a, b) for a in range(i, len(before) + 1) for b in range(j, len(after) + 1) if (a, b) != (i, j))
        ends = (end for end in sorted(ends, key=sum) if product(before[i : end[0]]) == product(after[j : end[1]]))
        end = next(ends, None)
        if end is None:
            return None
        found.append((before[i : end[0]], slice(j, end[1])))
        i, j = end
    return found


def carried(operand: Shape, before: Shape, after: Shape) -> Shape | None:
    """The shape to combine an operand with what has the dims ``before``, so that a reshape to ``after`` gives what it was combined with.

    Along each run of axes the operand is one number or has every element. ``[3, 4, 1]`` on ``[2, 3, 4, 5]`` is ``[1, 12, 1]`` on ``[2, 12, 5]``.
    None where it is neither, or the runs are not known.
    """
    aligned: Sequence[Dim] = (*(1,) * (len(after) - len(operand)), *operand)
    found: list[Dim] = []
    for dims, axes in runs(before, after) or ():
        part = tuple(aligned[axes])
        if all(dim == 1 for dim in part):
            found += [1] * len(dims)
        elif part == after[axes]:
            found += dims
        else:
            return None
    return tuple(found) if len(found) == len(before) else None
