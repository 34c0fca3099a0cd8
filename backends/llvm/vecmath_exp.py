"""Exponentials, logarithms, hyperbolic functions, erf and powers.

Coefficients are minimax (Remez) fits in the forms stated beside them; docs/vector-math.md gives degrees and errors.
"""

from __future__ import annotations

import math

from backends.llvm.vecmath_lanes import Lane, Lanes
from compiler.ir.loop import VecType
from compiler.ir.types import DType

_LN2_HIGH = (0.6931471824645996, 0.6931471805599453)
_LN2_LOW = (-1.904654299957768e-09, 2.3190468138462996e-17)
_LOG2E = 1 / math.log(2)

# exp(r) = 1 + r + r² P(r), |r| <= ln(2)/2
_EXP_32 = (0.49999997, 0.16666538, 0.041667774, 0.008367239, 0.0013833506)
_EXP_64 = (
    0.5000000000000006,
    0.1666666666666563,
    0.04166666666656541,
    0.008333333334179363,
    0.0013888888936048032,
    0.0001984126770469747,
    2.4801499546636125e-05,
    2.755942628887283e-06,
    2.7628350295684514e-07,
    2.4357929417971908e-08,
)

# 1 - 2^-r = r P(r), |r| <= 1/2
_EXP2_COMPLEMENT_32 = (0.6931472, -0.24022649, 0.055503573, -0.009618238, 0.0013390735, -0.00015403533)
_EXP2_COMPLEMENT_64 = (
    0.6931471805599453,
    -0.24022650695910097,
    0.055504108664821236,
    -0.00961812910760706,
    0.0013333558146531768,
    -0.00015403530441487456,
    1.5252733701102697e-05,
    -1.3215442721132429e-06,
    1.0178121343194292e-07,
    -7.072562187529251e-09,
    4.445530725347051e-10,
)

# -log2(erfc(x)) = x P(x), 0 <= x <= 3.93 (float32) or 5.93 (float64), where erf rounds to 1
_ERF_LIMIT = (3.93, 5.93)
_ERFC_EXPONENT_32 = (1.627907, 0.9184447, 0.14832158, -0.027852345, 0.0002654189, 0.0018278542, -0.00055720814, 5.9728703e-05)
_ERFC_EXPONENT_64 = (
    1.627907028611115,
    0.9184481885265612,
    0.14826952512327965,
    -0.027596515643123414,
    -0.00030180407626323485,
    0.002447108255625486,
    -0.0008513709963491704,
    3.733829847844217e-05,
    9.302295653878774e-05,
    -4.282505269802025e-05,
    4.797783289110493e-06,
    4.266787933120946e-06,
    -2.713867657271763e-06,
    6.638964378487624e-07,
    7.308777653359776e-08,
    -1.3535584549002161e-07,
    6.43912654305787e-08,
    -1.9626898744727737e-08,
    4.2990574121134035e-09,
    -6.909795574881051e-10,
    8.012193484962749e-11,
    -6.3698267999049234e-12,
    3.1134331852517713e-13,
    -7.0600563287919854e-15,
)

# log(1 + f) = 2 s + s³ P(s²) with s = f / (2 + f), sqrt(1/2) <= 1 + f < sqrt(2)
_LOG_32 = (0.6666666, 0.40000975, 0.28498495, 0.24285835)
_LOG_64 = (
    0.6666666666666666,
    0.40000000000004926,
    0.2857142856940964,
    0.22222222607290945,
    0.1818177832285105,
    0.15386990519561133,
    0.13252105841675108,
    0.13235196779943023,
)

# sinh(x) = x + x³ P(x²), |x| <= 1
_SINH_32 = (0.16666716, 0.008330271, 0.00020373377)
_SINH_64 = (
    0.16666666666666669,
    0.00833333333333291,
    0.0001984126984159547,
    2.755731910587924e-06,
    2.505213117046699e-08,
    1.605664345682262e-10,
    7.777144036536102e-13,
)


def exp(m: Lanes, x: Lane) -> Lane:
    """e^x: infinity past the largest finite result, 0 where the result is below about 1.4 times the smallest normal number."""
    return _exp(m, x)


def _exp(m: Lanes, x: Lane, sign: int = 1, halvings: int = 0, tail: Lane | None = None) -> Lane:
    """``exp(sign * x + tail) / 2**halvings``; tail is at most an ulp of x.

    The scale is half the power of two and the polynomial doubled: the largest n then overflows to infinity, and the smallest gives
    the bit pattern of 0, without a comparison.
    """
    top, bottom = (m.bias + 1 + halvings + 0.25) / _LOG2E, (halvings + 1 - m.bias - 0.25) / _LOG2E
    x = m.at_least(m.at_most(x, max(sign * top, sign * bottom)), min(sign * top, sign * bottom))
    magic = m.integer_magic + m.bias - 1 - halvings
    shifted = m.fma(x, sign * _LOG2E, magic)
    n = shifted - magic
    scale = m.float(m.bits(shifted) << m.mantissa)
    r = m.fma(n, -sign * _LN2_HIGH[m.wide], x)
    r = m.fma(n, -sign * _LN2_LOW[m.wide], r)
    if tail is not None:
        r = r + tail
    doubled = [2 * sign**power * c for power, c in enumerate((1.0, 1.0, *m.pick(_EXP_32, _EXP_64)))]
    return m.polynomial(r, doubled) * scale


def sigmoid(m: Lanes, x: Lane) -> Lane:
    """1 / (1 + e^-x)."""
    return 1.0 / (_exp(m, x, sign=-1) + 1.0)


def tanh(m: Lanes, x: Lane) -> Lane:
    """h / (h + 1) with h = (e^2x - 1) / 2, which loses nothing near 0."""
    limit = 19.1 if m.wide else 9.02
    x = m.at_least(m.at_most(x, limit), -limit)
    magic = m.integer_magic + m.bias
    shifted = m.fma(x, 2 * _LOG2E, magic)
    scale = m.float(m.bits(shifted) << m.mantissa)
    r = m.fma(shifted - magic, -0.5 * math.log(2), x)
    scaled = [2.0**power * c for power, c in enumerate((1.0, *m.pick(_EXP_32, _EXP_64)))]
    half = r * m.polynomial(r, scaled)
    h = m.fma(half, scale, -m.fma(scale, -0.5, 0.5))
    return h / (h + 1.0)


def erf(m: Lanes, x: Lane) -> Lane:
    """1 - 2^-v with v = -log2(erfc(|x|)), a smooth function that vanishes at 0: relative accuracy holds down to 0."""
    a = m.at_most(m.abs(x), _ERF_LIMIT[m.wide])
    v = a * m.polynomial(a, m.pick(_ERFC_EXPONENT_32, _ERFC_EXPONENT_64))
    magic = m.integer_magic + m.bias
    shifted = magic - v
    scale = m.float(m.bits(shifted) << m.mantissa)
    r = v + (shifted - magic)
    complement = r * m.polynomial(r, m.pick(_EXP2_COMPLEMENT_32, _EXP2_COMPLEMENT_64))
    return m.copysign(m.fma(scale, complement, 1.0 - scale), x)


def _split(m: Lanes, x: Lane) -> tuple[Lane, Lane]:
    """k and f with x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for positive normal x."""
    one = m.bias << m.mantissa
    root_half = one - (1 << m.mantissa) + int((math.sqrt(2) - 1) * 2**m.mantissa)
    raised = m.bits(x) + (one - root_half)
    exponent = (raised >> m.mantissa) | ((m.bias + m.mantissa) << m.mantissa)
    k = m.float(exponent) - (2.0**m.mantissa + m.bias)
    return k, m.float((raised & ((1 << m.mantissa) - 1)) + root_half) - 1.0


def _split_any(m: Lanes, x: Lane) -> tuple[Lane, Lane]:
    """As ``_split``, for subnormal x too."""
    subnormal = m.compare(x, "olt", 2.0 ** (1 - m.bias))
    k, f = _split(m, m.select(subnormal, x * 2.0**m.mantissa, x))
    return k - m.select(subnormal, float(m.mantissa), 0.0), f


def _log(m: Lanes, k: Lane, f: Lane) -> Lane:
    """``k ln(2) + log(1 + f)`` (the arrangement of FreeBSD's e_log.c)."""
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    tail = m.fma(s, m.fma(z, m.polynomial(z, m.pick(_LOG_32, _LOG_64)), half_square), k * _LN2_LOW[m.wide])
    return m.fma(k, _LN2_HIGH[m.wide], f - (half_square - tail))


def log(m: Lanes, x: Lane) -> Lane:
    """Natural logarithm: -infinity at 0, NaN below."""
    finite = m.select(m.compare(x, "olt", math.inf), _log(m, *_split_any(m, x)), x)
    outside = m.select(m.compare(x, "oeq", 0.0), -math.inf, math.nan)
    return m.select(m.compare(x, "ogt", 0.0), finite, outside)


def _log1p(m: Lanes, y: Lane) -> Lane:
    """log(1 + y) for y >= 0; the rounding error of 1 + y is added back."""
    u = y + 1.0
    lost = (y - (u - 1.0)) / u
    return m.select(m.compare(y, "olt", math.inf), _log(m, *_split(m, u)) + lost, y)


def sinh(m: Lanes, x: Lane) -> Lane:
    """(e^x - e^-x) / 2, by a polynomial up to 1."""
    a = m.abs(x)
    half = _exp(m, a, halvings=1)
    u = x * x
    small = m.fma(x * u, m.polynomial(u, m.pick(_SINH_32, _SINH_64)), x)
    return m.select(m.compare(a, "olt", 1.0), small, m.copysign(half - 0.25 / half, x))


def cosh(m: Lanes, x: Lane) -> Lane:
    """(e^x + e^-x) / 2."""
    half = _exp(m, m.abs(x), halvings=1)
    return half + 0.25 / half


def _log1p_or_doubled(m: Lanes, y: Lane, x: Lane) -> Lane:
    """log(1 + y); log(2 x) where x is so large that squaring it may overflow."""
    large = m.compare(x, "ogt", 2.0 ** (m.mantissa + 2))
    return _log1p(m, m.select(large, x, y)) + m.select(large, math.log(2), 0.0)


def asinh(m: Lanes, x: Lane) -> Lane:
    """log(|x| + sqrt(x² + 1)) with x's sign."""
    a = m.abs(x)
    square = a * a
    y = a + square / (m.intrinsic("sqrt", square + 1.0) + 1.0)
    return m.copysign(_log1p_or_doubled(m, y, a), x)


def acosh(m: Lanes, x: Lane) -> Lane:
    """log(x + sqrt(x² - 1)); NaN below 1."""
    t = x - 1.0
    y = t + m.intrinsic("sqrt", t * (t + 2.0))
    return m.select(m.compare(x, "oge", 1.0), _log1p_or_doubled(m, y, x), math.nan)


def atanh(m: Lanes, x: Lane) -> Lane:
    """log((1 + x) / (1 - x)) / 2; infinite at ±1, NaN beyond."""
    a = m.abs(x)
    double = a + a
    value = _log1p(m, m.fma(double, a / (1.0 - a), double)) * 0.5
    return m.select(m.compare(a, "ole", 1.0), m.copysign(value, x), math.nan)


def power(m: Lanes, x: Lane, y: Lane) -> Lane:
    """x^y by the rules of IEEE 754 (section 9.2.1) and C; float32 is computed in float64."""
    if m.wide:
        return _signed_power(m, x, y, _power_extended(m, m.abs(x), y))
    wide = Lanes(m.writer, VecType(DType.FLOAT64, m.type.lanes))
    base, exponent = wide.convert(x), wide.convert(y)
    magnitude = exp(wide, exponent * log(wide, wide.abs(base)))
    return _signed_power(m, x, y, m.convert(magnitude))


def _power_extended(m: Lanes, a: Lane, y: Lane) -> Lane:
    """a^y for a >= 0 in float64, with log(a) as the sum of two numbers: its error is multiplied by up to 709.

    Names ending in ``_low`` hold what rounding lost in their namesakes.
    """
    k, f = _split_any(m, a)
    d = f + 2.0
    s = f / d
    s_low = (m.fma(-s, d, f) - s * (f - (d - 2.0))) / d
    z = s * s
    z_low = m.fma(s + s, s_low, m.fma(s, s, -z))
    cube = s * z
    cube_low = m.fma(s, z_low, m.fma(s_low, z, m.fma(s, z, -cube)))
    third = cube * _LOG_64[0]
    third_low = m.fma(cube_low, _LOG_64[0], m.fma(cube, _LOG_64[0], -third))
    k_high = k * _LN2_HIGH[1]
    k_low = m.fma(k, _LN2_LOW[1], m.fma(k, _LN2_HIGH[1], -k_high))
    leading, leading_low = _ordered_sum(k_high, s + s)
    leading, cubic_low = _ordered_sum(leading, third)
    rest = m.fma(cube * z, m.polynomial(z, _LOG_64[1:]), m.fma(s_low, 2.0, k_low + third_low))
    high, low = _ordered_sum(leading, rest + (leading_low + cubic_low))
    high = m.select(m.compare(a, "olt", math.inf), m.select(m.compare(a, "oeq", 0.0), -math.inf, high), a)
    product = y * high
    tail = m.fma(y, low, m.fma(y, high, -product))
    in_range = m.compare(m.abs(product), "olt", 2.0**10)
    return _exp(m, product, tail=m.select(in_range, tail, 0.0))


def _ordered_sum(a: Lane, b: Lane) -> tuple[Lane, Lane]:
    """a + b and its rounding error, where |a| >= |b| or a is 0."""
    total = a + b
    return total, b - (total - a)


def _signed_power(m: Lanes, x: Lane, y: Lane, magnitude: Lane) -> Lane:
    """x^y from |x|^y: the sign, and the cases that are 1 or NaN."""
    magnitude = m.select(m.compare(m.abs(x), "oeq", 1.0), 1.0, magnitude)
    fractional = m.compare(m.intrinsic("floor", y), "une", y)
    half = y * 0.5
    even = m.compare(m.intrinsic("floor", half), "oeq", half)
    signed = m.select(fractional, magnitude, m.select(even, magnitude, m.copysign(magnitude, x)))
    undefined = m.compare(x, "olt", 0.0) & m.compare(x, "ogt", -math.inf) & fractional
    result = m.select(undefined, math.nan, signed)
    result = m.select(m.compare(x, "oeq", 1.0), 1.0, result)
    return m.select(m.compare(y, "oeq", 0.0), 1.0, result)
