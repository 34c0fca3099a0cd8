"""IrWriter: appends LLVM instructions as text and names their results."""

from __future__ import annotations

import struct

import numpy as np

from compiler.errors import InternalError
from compiler.ir.loop import VecType
from compiler.ir.scalar import cast_array
from compiler.ir.types import DType, is_coded

_SCALARS = {
    DType.FLOAT64: "double",
    DType.FLOAT32: "float",
    DType.FLOAT16: "half",
    DType.BFLOAT16: "bfloat",
    DType.INT64: "i64",
    DType.UINT64: "i64",
    DType.INT32: "i32",
    DType.UINT32: "i32",
    DType.INT16: "i16",
    DType.UINT16: "i16",
    DType.INT8: "i8",
    DType.UINT8: "i8",
    DType.BOOL: "i1",
    **{dtype: "i8" for dtype in DType if is_coded(dtype)},
}


def llvm_type(type_: VecType) -> str:
    """The LLVM spelling of a register's type; BOOL lanes are i1 in registers (and bytes in memory)."""
    scalar = _SCALARS[type_.dtype]
    return scalar if type_.lanes == 1 else f"<{type_.lanes} x {scalar}>"


def literal(value: float | int | bool, dtype: DType) -> str:
    """A scalar constant's LLVM spelling; floats as exact bit patterns, types below a byte as their codes."""
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if is_coded(dtype):
        return str(int(cast_array(np.asarray(value), dtype).view(np.uint8)))
    if not dtype.is_float:
        return str(int(value))
    if dtype in (DType.FLOAT32, DType.FLOAT64):
        wide = float(value)
        if dtype is DType.FLOAT32:
            wide = float(DType.FLOAT32.numpy.type(wide))  # rounds once to float32
        return f"0x{struct.unpack('<Q', struct.pack('<d', wide))[0]:016X}"
    bits = dtype.numpy.type(value).tobytes()
    prefix = {DType.FLOAT16: "0xH", DType.BFLOAT16: "0xR"}[dtype]
    return f"{prefix}{int.from_bytes(bits, 'little'):04X}"


class IrWriter:
    """Lines of one function body, with fresh result names. Intrinsics used are collected in ``declarations``."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.declarations: dict[str, str] = {}
        self._count = 0

    def name(self) -> str:
        """A fresh SSA name."""
        self._count += 1
        return f"%t{self._count}"

    def ins(self, text: str) -> str:
        """Append ``name = text``; the name."""
        name = self.name()
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Append an instruction without a result."""
        self.lines.append(f"  {text}")

    def binary(self, opcode: str, type_: VecType, lhs: str, rhs: str) -> str:
        """``opcode lhs, rhs`` (fadd, fmul, add, and, shl, ``fcmp olt``, …)."""
        return self.ins(f"{opcode} {llvm_type(type_)} {lhs}, {rhs}")

    def fma(self, type_: VecType, a: str, b: str, c: str) -> str:
        """``a * b + c`` rounded once."""
        return self.intrinsic("fma", type_, a, b, c)

    def intrinsic(self, stem: str, type_: VecType, *args: str) -> str:
        """A call of ``llvm.<stem>`` overloaded on type_, all arguments and the result of that type."""
        ty = llvm_type(type_)
        name = f"llvm.{stem}.{suffix(type_)}"
        return self.call(name, ty, [(ty, a) for a in args])

    def call(self, function: str, result: str, args: list[tuple[str, str]]) -> str:
        """A call of a named function, declared on first use."""
        self.declare(function, result, [ty for ty, _ in args])
        return self.ins(f"call {result} @{function}({', '.join(f'{ty} {a}' for ty, a in args)})")

    def declare(self, function: str, result: str, args: list[str]) -> None:
        self.declarations[function] = f"declare {result} @{function}({', '.join(args)})"

    def constant(self, value: float | int | bool, type_: VecType) -> str:
        """A literal operand (no instruction): a scalar, or one repeated in every lane."""
        scalar = literal(value, type_.dtype)
        if type_.lanes == 1:
            return scalar
        return f"splat ({_SCALARS[type_.dtype]} {scalar})"

    def select(self, type_: VecType, condition: str, yes: str, no: str) -> str:
        """Lane-wise choice; condition is i1 lanes."""
        ty = llvm_type(type_)
        return self.ins(f"select {llvm_type(VecType(DType.BOOL, type_.lanes))} {condition}, {ty} {yes}, {ty} {no}")

    def bitcast(self, from_: VecType, to: VecType, value: str) -> str:
        return self.ins(f"bitcast {llvm_type(from_)} {value} to {llvm_type(to)}")


def suffix(type_: VecType) -> str:
    """The overload suffix of intrinsics: ``v8f32``, ``f32``, ``v4i64``."""
    scalar = _SCALARS[type_.dtype]
    stem = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(scalar, scalar)
    if stem == "ptr":
        raise InternalError("pointers have no intrinsic suffix", where="backends.llvm.writer")
    return stem if type_.lanes == 1 else f"v{type_.lanes}{stem}"
