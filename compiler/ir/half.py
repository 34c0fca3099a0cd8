"""Half precision: float16 and bfloat16 are what values are stored in, float32 is what they are computed in.

A fused chain of half-precision operations is one expression in float32, rounded where its result is stored. A cast to a half type
rounds wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from compiler.ir.scalar import Arg, Call, Const, Scalar, cast
from compiler.ir.types import DType

HALF = (DType.FLOAT16, DType.BFLOAT16)


def compute_dtype(dtype: DType) -> DType:
    """The type that arithmetic on values of dtype is done in."""
    return DType.FLOAT32 if dtype in HALF else dtype


def widen(expr: Scalar, args: Mapping[int, Arg] | None = None) -> Scalar:
    """expr with everything in half precision computed in float32 and the result rounded to its type once.

    ``args`` says which operands arrive in another type than expr reads them in. A mere copy stays one.
    """
    wide = _widened(expr, args or {})
    if expr.dtype not in HALF:
        return wide
    if isinstance(wide, Call) and wide.fn == "cast" and wide.args[0].dtype is expr.dtype:
        return wide.args[0]
    return cast(wide, expr.dtype)


def _widened(expr: Scalar, args: Mapping[int, Arg]) -> Scalar:
    dtype = compute_dtype(expr.dtype)
    if isinstance(expr, Arg):
        return cast(args.get(expr.index, expr), dtype)
    if isinstance(expr, Const):
        return Const(expr.value, dtype)
    operands = tuple(_widened(a, args) for a in expr.args)
    if expr.fn == "cast":
        return cast(cast(operands[0], expr.dtype), dtype)
    return Call(expr.fn, operands, dtype)
