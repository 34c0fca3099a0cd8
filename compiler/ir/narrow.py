"""Narrow types: what values are stored in, but not computed in.

Floats of at most 16 bits are computed in float32, integers below a byte in one of 8 bits (``compute_dtype``). A fused chain of operations
on them is one expression in the wider type, rounded (integers: wrapped) where its result is stored. A cast to a narrow type rounds
wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from compiler.ir.scalar import Arg, Call, Const, Scalar, cast, rebuilt
from compiler.ir.types import compute_dtype


def widen(expr: Scalar, args: Mapping[int, Arg] | None = None) -> Scalar:
    """expr with everything narrow computed in its wider type and the result rounded to its type once.

    ``args`` says which operands arrive in another type than expr reads them in. A mere copy stays one.
    """
    wide = widened(expr, args or {})
    if wide.dtype is expr.dtype:
        return wide
    if isinstance(wide, Call) and wide.fn == "cast" and wide.args[0].dtype is expr.dtype:
        return wide.args[0]
    return cast(wide, expr.dtype)


def widened(expr: Scalar, args: Mapping[int, Arg]) -> Scalar:
    """expr as ``widen`` computes it, in the wider type, before it is rounded."""

    def rule(part: Scalar) -> Scalar:
        dtype = compute_dtype(part.dtype)
        if isinstance(part, Arg):
            return cast(args.get(part.index, part), dtype)
        if isinstance(part, Const):
            return Const(part.value, dtype)
        return cast(cast(part.args[0], part.dtype), dtype) if part.fn == "cast" else Call(part.fn, part.args, dtype)

    return rebuilt(expr, rule)
