"""Vector math: scalar functions that no CPU has as an instruction, as inline LLVM code for any number of lanes.

No libm is called. Accuracy, ranges and cost of each function: docs/vector-math.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends.llvm import vecmath_exp, vecmath_trig
from backends.llvm.vecmath_lanes import Lane, Lanes
from backends.llvm.writer import IrWriter
from compiler.errors import InternalError
from compiler.ir.loop import VecType
from compiler.ir.types import DType

FUNCTIONS: dict[str, Callable[..., Lane]] = {
    "exp": vecmath_exp.exp,
    "log": vecmath_exp.log,
    "tanh": vecmath_exp.tanh,
    "sigmoid": vecmath_exp.sigmoid,
    "erf": vecmath_exp.erf,
    "sinh": vecmath_exp.sinh,
    "cosh": vecmath_exp.cosh,
    "asinh": vecmath_exp.asinh,
    "acosh": vecmath_exp.acosh,
    "atanh": vecmath_exp.atanh,
    "pow": vecmath_exp.power,
    "sin": vecmath_trig.sin,
    "cos": vecmath_trig.cos,
    "tan": vecmath_trig.tan,
    "asin": vecmath_trig.asin,
    "acos": vecmath_trig.acos,
    "atan": vecmath_trig.atan,
    "mod": vecmath_trig.mod,
    "fmod": vecmath_trig.fmod,
}
"""Emitters by function name; each takes the arithmetic and one operand an argument."""


def supports(fn: str, dtype: DType) -> bool:
    """Whether ``emit`` has the function in this precision; float16 and bfloat16 are computed in float32 by the caller."""
    return fn in FUNCTIONS and dtype in (DType.FLOAT32, DType.FLOAT64)


def emit(writer: IrWriter, fn: str, type_: VecType, args: Sequence[str]) -> str:
    """Append the instructions of ``fn`` on operands of ``type_``; the result's name. Raises InternalError where it is not supported."""
    if not supports(fn, type_.dtype):
        raise InternalError(f"there is no vector math for {fn} of {type_}", where="backends.llvm.vecmath")
    lanes = Lanes(writer, type_)
    return FUNCTIONS[fn](lanes, *(Lane(lanes, arg) for arg in args)).name
