"""Float vectors with Python's operators: each operation appends one instruction to an IrWriter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from backends.llvm.writer import IrWriter, llvm_type
from compiler.ir.loop import VecType
from compiler.ir.types import DType


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A float vector (or scalar) in a register; arithmetic with numbers uses them as constants in every lane."""

    math: Lanes
    name: str

    def __add__(self, other: Operand) -> Lane:
        return self.math.binary("fadd", self, other)

    def __radd__(self, other: float) -> Lane:
        return self.math.binary("fadd", other, self)

    def __sub__(self, other: Operand) -> Lane:
        return self.math.binary("fsub", self, other)

    def __rsub__(self, other: float) -> Lane:
        return self.math.binary("fsub", other, self)

    def __mul__(self, other: Operand) -> Lane:
        return self.math.binary("fmul", self, other)

    def __rmul__(self, other: float) -> Lane:
        return self.math.binary("fmul", self, other)

    def __truediv__(self, other: Operand) -> Lane:
        return self.math.binary("fdiv", self, other)

    def __rtruediv__(self, other: float) -> Lane:
        return self.math.binary("fdiv", other, self)

    def __neg__(self) -> Lane:
        return Lane(self.math, self.math.writer.ins(f"fneg {llvm_type(self.math.type)} {self.name}"))


@dataclass(frozen=True, slots=True)
class Bits:
    """A float vector's bit patterns as integers of the same width."""

    math: Lanes
    name: str

    def __add__(self, other: Bits | int) -> Bits:
        return self.math.integer("add", self, other)

    def __sub__(self, other: Bits | int) -> Bits:
        return self.math.integer("sub", self, other)

    def __and__(self, other: Bits | int) -> Bits:
        return self.math.integer("and", self, other)

    def __or__(self, other: Bits | int) -> Bits:
        return self.math.integer("or", self, other)

    def __xor__(self, other: Bits | int) -> Bits:
        return self.math.integer("xor", self, other)

    def __lshift__(self, places: int) -> Bits:
        return self.math.integer("shl", self, places)

    def __rshift__(self, places: int) -> Bits:
        return self.math.integer("lshr", self, places)


@dataclass(frozen=True, slots=True)
class Mask:
    """One truth value a lane."""

    math: Lanes
    name: str

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.math, self.math.writer.binary("and", self.math.mask_type, self.name, other.name))


Operand = Union[Lane, float]


class Lanes:
    """Arithmetic on one float type, of dtype FLOAT32 or FLOAT64 and any number of lanes."""

    def __init__(self, writer: IrWriter, type_: VecType) -> None:
        self.writer = writer
        self.type = type_
        self.wide = type_.dtype is DType.FLOAT64
        self.bits_type = VecType(DType.INT64 if self.wide else DType.INT32, type_.lanes)
        self.mask_type = VecType(DType.BOOL, type_.lanes)
        self.mantissa = 52 if self.wide else 23
        self.bias = 1023 if self.wide else 127
        self.sign = 1 << (63 if self.wide else 31)
        self.integer_magic = 1.5 * 2.0**self.mantissa
        """Adding it rounds to the nearest integer, which then stands in the low bits."""

    def pick(self, single: Sequence[float], double: Sequence[float]) -> Sequence[float]:
        """The table of this precision."""
        return double if self.wide else single

    def name(self, value: Operand) -> str:
        return value.name if isinstance(value, Lane) else self.writer.constant(value, self.type)

    def constant(self, value: float) -> Lane:
        return Lane(self, self.writer.constant(value, self.type))

    def binary(self, opcode: str, a: Operand, b: Operand) -> Lane:
        return Lane(self, self.writer.binary(opcode, self.type, self.name(a), self.name(b)))

    def integer(self, opcode: str, a: Bits, b: Bits | int) -> Bits:
        right = b.name if isinstance(b, Bits) else self.writer.constant(b, self.bits_type)
        return Bits(self, self.writer.binary(opcode, self.bits_type, a.name, right))

    def fma(self, a: Operand, b: Operand, c: Operand) -> Lane:
        """``a * b + c`` rounded once."""
        return Lane(self, self.writer.fma(self.type, self.name(a), self.name(b), self.name(c)))

    def polynomial(self, x: Lane, coefficients: Sequence[float]) -> Lane:
        """``c[0] + c[1] x + …``: Horner's rule; from degree 7 on, all but the first two terms as two halves in x² side by side.

        Two more instructions nearly halve the chain of dependent ones, whose waiting fills the core's scheduler; the terms that
        decide the rounding keep Horner's order.
        """
        if len(coefficients) < 8:
            return self._horner(x, coefficients)
        square = x * x
        rest = self.fma(self._horner(square, coefficients[3::2]), x, self._horner(square, coefficients[2::2]))
        return self.fma(self.fma(rest, x, coefficients[1]), x, coefficients[0])

    def _horner(self, x: Lane, coefficients: Sequence[float]) -> Lane:
        result = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, coefficient)
        return result

    def intrinsic(self, stem: str, *args: Operand) -> Lane:
        """An LLVM intrinsic that is one instruction on vector units (``floor``, ``sqrt``, ``fabs``, …)."""
        return Lane(self, self.writer.intrinsic(stem, self.type, *(self.name(a) for a in args)))

    def abs(self, x: Lane) -> Lane:
        return self.intrinsic("fabs", x)

    def copysign(self, x: Operand, sign: Lane) -> Lane:
        """x's magnitude with the sign bit of the other."""
        return self.intrinsic("copysign", x, sign)

    def compare(self, a: Operand, predicate: str, b: Operand) -> Mask:
        """An ``fcmp`` predicate: ``olt`` is false and ``ult`` true where an operand is NaN."""
        return Mask(self, self.writer.binary(f"fcmp {predicate}", self.type, self.name(a), self.name(b)))

    def select(self, mask: Mask, yes: Operand, no: Operand) -> Lane:
        return Lane(self, self.writer.select(self.type, mask.name, self.name(yes), self.name(no)))

    def at_most(self, x: Lane, limit: Operand) -> Lane:
        """The smaller of the two; one instruction on x86 (``vminps``); NaN in x stays."""
        return self.select(self.compare(limit, "olt", x), limit, x)

    def at_least(self, x: Lane, limit: Operand) -> Lane:
        """The larger of the two; one instruction on x86 (``vmaxps``); NaN in x stays."""
        return self.select(self.compare(limit, "ogt", x), limit, x)

    def convert(self, x: Lane) -> Lane:
        """x in this precision."""
        source = x.math
        if source.wide == self.wide:
            return x
        opcode = "fpext" if self.wide else "fptrunc"
        return Lane(self, self.writer.ins(f"{opcode} {llvm_type(source.type)} {x.name} to {llvm_type(self.type)}"))

    def bits(self, x: Lane) -> Bits:
        return Bits(self, self.writer.bitcast(self.type, self.bits_type, x.name))

    def float(self, bits: Bits) -> Lane:
        return Lane(self, self.writer.bitcast(self.bits_type, self.type, bits.name))

    def compare_bits(self, a: Bits, predicate: str, b: Bits | int) -> Mask:
        """An ``icmp`` predicate."""
        return Mask(self, self.integer(f"icmp {predicate}", a, b).name)

    def select_bits(self, mask: Mask, yes: Bits | int, no: Bits | int) -> Bits:
        names = (value.name if isinstance(value, Bits) else self.writer.constant(value, self.bits_type) for value in (yes, no))
        return Bits(self, self.writer.select(self.bits_type, mask.name, *names))

    def is_negative(self, bits: Bits) -> Mask:
        """Lanes whose top bit is set."""
        return Mask(self, self.writer.binary("icmp slt", self.bits_type, bits.name, self.writer.constant(0, self.bits_type)))

    def flip(self, x: Lane, sign: Bits) -> Lane:
        """x negated where the top bit (the only one that may be set) of sign is."""
        return self.float(self.bits(x) ^ sign)
