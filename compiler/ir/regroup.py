"""What a reshape does to the axes: which run of axes before it becomes which run after it."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim
from compiler.ir.strided import Shape as Shape
from compiler.ir.strided import runs as runs


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


def widened(operand: Shape, before: Shape, after: Shape) -> Shape:
    """The shape that an operand of what has the dims ``after`` must be broadcast to before ``carried`` finds it a shape: along each run in which
    it has several numbers, that of the run. ``[4, 1, 1]`` on ``[2, 4, 3, 5]``, which is a reshape of ``[2, 6, 2, 5]``, is ``[1, 4, 3, 1]``.
    """
    aligned: Sequence[Dim] = (*(1,) * (len(after) - len(operand)), *operand)
    found: list[Dim] = []
    for _, axes in runs(before, after) or ():
        part = tuple(aligned[axes])
        found += part if all(dim == 1 for dim in part) else after[axes]
    return tuple(found) if len(found) == len(after) else operand
