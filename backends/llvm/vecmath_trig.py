"""Circular functions and remainders. Coefficients are minimax (Remez) fits in the forms stated beside them."""

from __future__ import annotations

import math

from backends.llvm.vecmath_lanes import Bits, Lane, Lanes

_HALF_PI_32 = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15)
_HALF_PI_64 = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)

# sin(r) = r + r³ P(r²), |r| <= pi/4
_SIN_32 = (-0.16666654, 0.008332106, -0.00019507836)
_SIN_64 = (
    -0.1666666666666663,
    0.008333333333321842,
    -0.00019841269829360582,
    2.7557313539334996e-06,
    -2.5050734525649862e-08,
    1.5895441384889838e-10,
)

# cos(r) = 1 - r²/2 + r⁴ P(r²), |r| <= pi/4
_COS_32 = (0.041666646, -0.0013887308, 2.4432089e-05)
_COS_64 = (
    0.04166666666666659,
    -0.0013888888888872186,
    2.4801587288295694e-05,
    -2.7557314015368257e-07,
    2.0875678148115893e-09,
    -1.1357341982285199e-11,
)

# asin(x) = x + x³ P(x²), |x| <= 1/2
_ASIN_32 = (0.16666752, 0.074953094, 0.045469157, 0.02418471, 0.042158462)
_ASIN_64 = (
    0.1666666666666541,
    0.07500000000336646,
    0.04464285682853414,
    0.030381959130235343,
    0.022371758200395213,
    0.017359702445147628,
    0.01388525998304841,
    0.012169037187221333,
    0.006528791099120713,
    0.019525869413239496,
    -0.016220254605332253,
    0.03190938053653744,
)

# atan(x) = x + x³ P(x²), |x| <= 1
_ATAN_32 = (-0.33333153, 0.19993767, -0.14211, 0.10665756, -0.075516135, 0.043203954, -0.016362581, 0.0029192367)
_ATAN_64 = (
    -0.3333333333333186,
    0.1999999999975519,
    -0.14285714271341718,
    0.11111110678892401,
    -0.09090901237141744,
    0.07692212943741039,
    -0.06665860424084759,
    0.058773079106762875,
    -0.052392328350122516,
    0.04673946973926383,
    -0.04092627305351443,
    0.034067533029780224,
    -0.02582630651777598,
    0.01697741568910072,
    -0.009183995628608109,
    0.00385561468971671,
    -0.0011639177853466295,
    0.00022298284634675439,
    -2.025393304066077e-05,
)


def _reduce(m: Lanes, a: Lane) -> tuple[Lane, Bits]:
    """r in [-pi/4, pi/4] and bits whose lowest two are the quadrant n mod 4, with a = r + n pi/2, for a >= 0.

    The first fma is exact: a and n times the first constant are multiples of the same power of two. Past the range of this
    reduction r is clamped, so that results stay between -1 and 1.
    """
    shifted = m.fma(a, 2 / math.pi, m.integer_magic)
    n = shifted - m.integer_magic
    r = a
    for part in m.pick(_HALF_PI_32, _HALF_PI_64):
        r = m.fma(n, -part, r)
    return m.at_least(m.at_most(r, 1.0), -1.0), m.bits(shifted)


def _sin_cos(m: Lanes, r: Lane) -> tuple[Lane, Lane]:
    """sin and cos of r in [-pi/4, pi/4]."""
    u = r * r
    sine = m.fma(r * u, m.polynomial(u, m.pick(_SIN_32, _SIN_64)), r)
    cosine = m.fma(u * u, m.polynomial(u, m.pick(_COS_32, _COS_64)), m.fma(u, -0.5, 1.0))
    return sine, cosine


def _sign_place(m: Lanes) -> int:
    return m.sign.bit_length() - 1


def sin(m: Lanes, x: Lane) -> Lane:
    """Sine of radians."""
    r, quadrant = _reduce(m, m.abs(x))
    sine, cosine = _sin_cos(m, r)
    place = _sign_place(m)
    value = m.select(m.is_negative(quadrant << place), cosine, sine)
    return m.flip(value, ((quadrant << (place - 1)) ^ m.bits(x)) & m.sign)


def cos(m: Lanes, x: Lane) -> Lane:
    """Cosine of radians."""
    r, bits = _reduce(m, m.abs(x))
    sine, cosine = _sin_cos(m, r)
    quadrant = bits + 1
    place = _sign_place(m)
    value = m.select(m.is_negative(quadrant << place), cosine, sine)
    return m.flip(value, (quadrant << (place - 1)) & m.sign)


def tan(m: Lanes, x: Lane) -> Lane:
    """Tangent of radians."""
    r, quadrant = _reduce(m, m.abs(x))
    sine, cosine = _sin_cos(m, r)
    odd = quadrant << _sign_place(m)
    swap = m.is_negative(odd)
    value = m.select(swap, cosine, sine) / m.select(swap, sine, cosine)
    return m.flip(value, odd ^ (m.bits(x) & m.sign))


def _asin_root(m: Lanes, a: Lane) -> Lane:
    """asin(a) for 0 <= a < 1/2, asin(sqrt((1 - a) / 2)) from there on."""
    small = m.compare(a, "olt", 0.5)
    z = m.select(small, a * a, m.fma(a, -0.5, 0.5))
    root = m.select(small, a, m.intrinsic("sqrt", z))
    return m.fma(root * z, m.polynomial(z, m.pick(_ASIN_32, _ASIN_64)), root)


def asin(m: Lanes, x: Lane) -> Lane:
    """Arc sine; NaN beyond ±1."""
    a = m.abs(x)
    p = _asin_root(m, a)
    high, low, _ = m.pick(_HALF_PI_32, _HALF_PI_64)
    return m.copysign(m.select(m.compare(a, "olt", 0.5), p, m.fma(p, -2.0, high) + low), x)


def acos(m: Lanes, x: Lane) -> Lane:
    """Arc cosine; NaN beyond ±1."""
    a = m.abs(x)
    p = m.copysign(_asin_root(m, a), x)
    small = m.compare(a, "olt", 0.5)
    base = m.select(m.compare(x, "olt", 0.0), math.pi, 0.0)
    return m.fma(p, m.select(small, -1.0, 2.0), m.select(small, math.pi / 2, base))


def atan(m: Lanes, x: Lane) -> Lane:
    """Arc tangent: pi/2 minus that of the reciprocal past 1."""
    a = m.abs(x)
    large = m.compare(a, "ogt", 1.0)
    z = m.select(large, 1.0 / a, a)
    u = z * z
    p = m.fma(z * u, m.polynomial(u, m.pick(_ATAN_32, _ATAN_64)), z)
    high, low, _ = m.pick(_HALF_PI_32, _HALF_PI_64)
    return m.copysign(m.select(large, (high - p) + low, p), x)


def fmod(m: Lanes, x: Lane, y: Lane) -> Lane:
    """``x - trunc(x / y) y`` with x's sign (C's fmod): exact up to a quotient of twice the mantissa's bits, NaN beyond."""
    a, b = m.abs(x), m.abs(y)
    rest = m.fma(-m.intrinsic("trunc", a / b), b, a)
    rest = m.fma(-m.intrinsic("floor", rest / b), b, rest)
    rest = m.select(m.compare(rest, "olt", 0.0), rest + b, rest)
    rest = m.select(m.compare(rest, "olt", b), rest, math.nan)
    rest = m.select(m.compare(a, "olt", b), a, rest)
    return m.copysign(rest, x)


def mod(m: Lanes, x: Lane, y: Lane) -> Lane:
    """``x - floor(x / y) y`` from ``fmod``; y's sign (Python's and numpy's %)."""
    rest = fmod(m, x, y)
    opposite = m.is_negative(m.bits(rest) ^ m.bits(y))
    moved = m.select(opposite, rest + y, rest)
    return m.select(m.compare(rest, "oeq", 0.0), m.copysign(0.0, y), moved)
