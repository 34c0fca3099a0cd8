"""Integer expressions as LLVM instructions."""

from __future__ import annotations

from collections.abc import Callable

from backends.llvm.writer import IrWriter
from compiler.ir.intexpr import Atom, Dim, Sym
from runtime.context import OUT_OF_MEMORY

Emit = Callable[[str, object], str]
"""Gives the name of an instruction's result; instructions of equal keys may be there once."""


def apply(emit: Emit, op: str, lhs: str, rhs: str) -> str:
    """``floordiv``, ``mod``, ``min`` or ``max`` of two i64 operands."""
    key = (op, lhs, rhs)
    match op:
        case "min" | "max":
            less = emit(f"icmp slt i64 {lhs}, {rhs}", (*key, "less"))
            first, second = (lhs, rhs) if op == "min" else (rhs, lhs)
            return emit(f"select i1 {less}, i64 {first}, i64 {second}", key)
        case "floordiv" | "mod" if (bits := _shift(rhs)) is not None:
            return emit(f"ashr i64 {lhs}, {bits}" if op == "floordiv" else f"and i64 {lhs}, {int(rhs) - 1}", key)
        case _:
            quotient = _floordiv(emit, lhs, rhs)
            if op == "floordiv":
                return quotient
            scaled = emit(f"mul i64 {quotient}, {rhs}", (*key, "scaled"))
            return emit(f"sub i64 {lhs}, {scaled}", key)


def _shift(rhs: str) -> int | None:
    """The bits by which a shift divides by a literal; None where it is not a power of two."""
    divisor = 0 if rhs.startswith("%") else int(rhs)
    return divisor.bit_length() - 1 if divisor > 0 and divisor & (divisor - 1) == 0 else None


def _floordiv(emit: Emit, lhs: str, rhs: str) -> str:
    key = ("floordiv", lhs, rhs)
    if rhs.startswith("%"):  # neither a dim of zero, where nothing depends on the quotient, nor the least number over -1 may trap
        zero = emit(f"icmp eq i64 {rhs}, 0", ("zero", rhs))
        some = emit(f"select i1 {zero}, i64 1, i64 {rhs}", ("divisor", rhs))
        opposite = emit(f"icmp eq i64 {rhs}, -1", ("opposite", rhs))
        negated = emit(f"sub i64 0, {lhs}", ("negated", lhs))
        lhs = emit(f"select i1 {opposite}, i64 {negated}, i64 {lhs}", (*key, "dividend"))
        rhs = emit(f"select i1 {opposite}, i64 1, i64 {some}", ("positive", rhs))
    quotient = emit(f"sdiv i64 {lhs}, {rhs}", (*key, "quotient"))
    rest = emit(f"srem i64 {lhs}, {rhs}", (*key, "rest"))
    signs = emit(f"xor i64 {rest}, {rhs}", (*key, "signs"))
    negative = emit(f"icmp slt i64 {signs}, 0", (*key, "negative"))
    inexact = emit(f"icmp ne i64 {rest}, 0", (*key, "inexact"))
    below = emit(f"and i1 {negative}, {inexact}", (*key, "below"))
    one = emit(f"sext i1 {below} to i64", (*key, "one"))
    return emit(f"add i64 {quotient}, {one}", key)


_ADDRESSABLE = float(1 << 47)


class IndexWriter(IrWriter):
    """Writes expressions where they stand; ``load`` gives an operand that holds a symbol's value.

    Products of sizes can be more than 64 bits hold: ``size`` is a value that tells, by an estimate of the same expression in floating point.
    ``estimates`` has those of symbols whose value may have wrapped around already.
    """

    def __init__(self, load: Callable[[str], str]) -> None:
        super().__init__()
        self._load = load
        self.estimates: dict[str, str] = {}

    def value(self, expr: Dim) -> str:
        """expr as an i64 operand."""
        if isinstance(expr, int):
            return str(expr)
        total = str(expr.const)
        for monomial, coefficient in expr.terms:
            product = str(coefficient)
            for atom in monomial:
                factor = self._atom(atom)
                product = factor if product == "1" else self.ins(f"mul i64 {product}, {factor}")
            total = product if total == "0" else self.ins(f"add i64 {total}, {product}")
        return total

    def size(self, expr: Dim) -> str:
        """expr as an i64 operand, or ``OUT_OF_MEMORY`` where it is more than can be addressed."""
        value = self.value(expr)
        if isinstance(expr, int):
            return value
        large = self.ins(f"fcmp ogt double {self.estimate(expr)}, {_ADDRESSABLE:e}")
        return self.ins(f"select i1 {large}, i64 {OUT_OF_MEMORY}, i64 {value}")

    def estimate(self, expr: Dim) -> str:
        """expr as a double, about right however large it is."""
        if isinstance(expr, int):
            return f"{float(expr):e}"
        total = f"{float(expr.const):e}"
        for monomial, coefficient in expr.terms:
            product = f"{float(coefficient):e}"
            for atom in monomial:
                product = self.ins(f"fmul double {product}, {self._estimated(atom)}")
            total = self.ins(f"fadd double {total}, {product}")
        return total

    def _estimated(self, atom: Atom) -> str:
        if isinstance(atom, Sym):
            return self.estimates.get(atom.name) or self.ins(f"sitofp i64 {self._load(atom.name)} to double")
        lhs, rhs = self.estimate(atom.lhs), self.estimate(atom.rhs)
        match atom.op:
            case "floordiv":
                return self.ins(f"fdiv double {lhs}, {rhs}")
            case "mod":
                return rhs
            case _:
                less = self.ins(f"fcmp olt double {lhs}, {rhs}")
                first, second = (lhs, rhs) if atom.op == "min" else (rhs, lhs)
                return self.ins(f"select i1 {less}, double {first}, double {second}")

    def _atom(self, atom: Atom) -> str:
        if isinstance(atom, Sym):
            return self._load(atom.name)
        return apply(lambda text, _: self.ins(text), atom.op, self.value(atom.lhs), self.value(atom.rhs))
