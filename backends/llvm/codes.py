"""Types whose elements are codes of at most eight bits: conversions from and to the types they are computed in, by integer arithmetic.

A code stands in an i8 lane; bits above its width are ignored where it is read and zero where it is made. No step depends on denormal
float32 numbers, which are flushed while compiled code runs. https://onnx.ai/onnx/technical/float8.html
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.llvm.vecmath_lanes import Bits, Lane, Lanes
from backends.llvm.writer import IrWriter, llvm_type
from compiler.ir.loop import VecType
from compiler.ir.types import DType

_INFINITY = 0x7F800000
_QUIET = 0x400000


@dataclass(frozen=True)
class _Format:
    """A binary float of ``bits`` with a sign. Codes without their sign: the ``largest`` number's, what greater ones become, NaN's.

    A NaN of the sign's bit alone takes the code of the negative zero, which such a format may (``fnuz``) or may not replace by it.
    """

    bits: int
    mantissa: int
    bias: int
    largest: int
    overflow: int
    nan: int
    signed_zero: bool = True

    @property
    def sign(self) -> int:
        return 1 << self.bits - 1


_FORMATS = {
    DType.FLOAT8E4M3FN: _Format(8, 3, 7, largest=0x7E, overflow=0x7F, nan=0x7F),
    DType.FLOAT8E4M3FNUZ: _Format(8, 3, 8, largest=0x7F, overflow=0x80, nan=0x80, signed_zero=False),
    DType.FLOAT8E5M2: _Format(8, 2, 15, largest=0x7B, overflow=0x7C, nan=0x7E),
    DType.FLOAT8E5M2FNUZ: _Format(8, 2, 16, largest=0x7F, overflow=0x80, nan=0x80, signed_zero=False),
    DType.FLOAT6E2M3: _Format(6, 3, 1, largest=0x1F, overflow=0x1F, nan=0x20),
    DType.FLOAT6E3M2: _Format(6, 2, 3, largest=0x1F, overflow=0x1F, nan=0x20),
    DType.FLOAT4E2M1: _Format(4, 1, 1, largest=0x7, overflow=0x7, nan=0x8),
}


def decode(w: IrWriter, type_: VecType, code: str) -> str:
    """The value of codes of ``type_``, of its ``compute_dtype``."""
    if not type_.dtype.is_float:
        return _decode_integer(w, type_, code)
    m = Lanes(w, VecType(DType.FLOAT32, type_.lanes))
    bits = Bits(m, w.ins(f"zext {llvm_type(type_)} {code} to {llvm_type(m.bits_type)}"))
    if type_.dtype is DType.FLOAT8E8M0:
        return m.float(_decode_power(m, bits)).name
    return m.float(_decode_float(m, _FORMATS[type_.dtype], bits)).name


def encode(w: IrWriter, type_: VecType, value: str) -> str:
    """The codes of ``type_`` for values of its ``compute_dtype``: floats round to nearest, integers wrap."""
    if not type_.dtype.is_float:
        byte = VecType(DType.UINT8, type_.lanes)
        return w.binary("and", byte, value, w.constant((1 << type_.dtype.bits) - 1, byte))
    m = Lanes(w, VecType(DType.FLOAT32, type_.lanes))
    bits = m.bits(Lane(m, value))
    code = _encode_power(m, bits) if type_.dtype is DType.FLOAT8E8M0 else _encode_float(m, _FORMATS[type_.dtype], bits)
    return w.ins(f"trunc {llvm_type(m.bits_type)} {code.name} to {llvm_type(type_)}")


def _decode_integer(w: IrWriter, type_: VecType, code: str) -> str:
    byte = VecType(DType.UINT8, type_.lanes)
    unused = w.constant(8 - type_.dtype.bits, byte)
    return w.binary("ashr" if type_.dtype.is_signed else "lshr", byte, w.binary("shl", byte, code, unused), unused)


def _decode_float(m: Lanes, f: _Format, code: Bits) -> Bits:
    """A denormal number is its mantissa as an integer times the format's smallest number; all others only change their bias."""
    sign = (code & f.sign) << 32 - f.bits
    magnitude = code & f.sign - 1
    normal = (magnitude << m.mantissa - f.mantissa) + (m.bias - f.bias << m.mantissa)
    whole = Lane(m, m.writer.ins(f"sitofp {llvm_type(m.bits_type)} {magnitude.name} to {llvm_type(m.type)}"))
    denormal = m.bits(whole * 2.0 ** (1 - f.bias - f.mantissa))
    value = m.select_bits(m.compare_bits(magnitude, "ult", 1 << f.mantissa), denormal, normal) | sign
    if not f.signed_zero:
        return m.select_bits(m.compare_bits(code, "eq", f.nan), m.sign | _INFINITY | _QUIET, value)
    if f.largest == f.sign - 1:
        return value
    if f.overflow != f.nan:
        value = m.select_bits(m.compare_bits(magnitude, "eq", f.overflow), sign | _INFINITY, value)
        return m.select_bits(m.compare_bits(magnitude, "ugt", f.overflow), sign | (_INFINITY | _QUIET), value)
    return m.select_bits(m.compare_bits(magnitude, "ugt", f.largest), sign | (_INFINITY | _QUIET), value)


def _encode_float(m: Lanes, f: _Format, bits: Bits) -> Bits:
    """Adding a power of two whose unit in the last place is the format's smallest number rounds what becomes denormal."""
    sign = (bits >> 32 - f.bits) & f.sign
    magnitude = bits & m.sign - 1
    dropped = m.mantissa - f.mantissa
    odd = (magnitude >> dropped) & 1
    normal = (magnitude + odd + ((1 << dropped - 1) - 1 - (m.bias - f.bias << m.mantissa))) >> dropped
    unit = 1 - f.bias + dropped
    denormal = m.bits(m.float(magnitude) + 2.0**unit) - (m.bias + unit << m.mantissa)
    small = m.compare_bits(magnitude, "ult", m.bias + 1 - f.bias << m.mantissa)
    code = m.select_bits(small, denormal, normal)
    code = m.select_bits(m.compare_bits(code, "ugt", f.largest), f.overflow, code)
    code = m.select_bits(m.compare_bits(magnitude, "ugt", _INFINITY), f.nan, code)
    if f.signed_zero:
        return code ^ sign
    return m.select_bits(m.compare_bits(code - 1, "ult", f.largest), code | sign, code)


def _decode_power(m: Lanes, code: Bits) -> Bits:
    """A code is a float32's exponent; 0 is half of the smallest normal number, 255 is NaN."""
    ends = m.compare_bits(code + 1 & 0xFF, "ult", 2)
    return m.select_bits(ends, (code << m.mantissa) | _QUIET, code << m.mantissa)


def _encode_power(m: Lanes, bits: Bits) -> Bits:
    """The nearest power of two, of two the greater, but of denormal numbers the smaller; NaN for what is not positive or out of range."""
    normal = m.compare_bits(bits, "uge", 1 << m.mantissa)
    nearest = (bits + m.select_bits(normal, _QUIET, _QUIET - 1)) >> m.mantissa
    return m.select_bits(m.compare_bits(bits - 1, "uge", _INFINITY - 1), 0xFF, nearest)
