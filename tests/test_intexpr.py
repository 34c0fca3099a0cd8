"""Symbolic integers against Python's own arithmetic."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import SYMBOLS, dims

from compiler.ir.intexpr import ceildiv, evaluate, floordiv, maximum, minimum, mod, parse, product, substitute, sym, symbols

VALUES = st.fixed_dictionaries({name: st.integers(1, 50) for name in SYMBOLS})
OPERATIONS = {
    "add": (operator.add, operator.add),
    "sub": (operator.sub, operator.sub),
    "mul": (operator.mul, operator.mul),
    "min": (minimum, min),
    "max": (maximum, max),
}


@given(st.sampled_from(sorted(OPERATIONS)), dims(), dims(), VALUES)
def test_operations_mean_what_they_mean_on_integers(name: str, a: Any, b: Any, values: dict[str, int]) -> None:
    symbolic, concrete = OPERATIONS[name]
    assert evaluate(symbolic(a, b), values) == concrete(evaluate(a, values), evaluate(b, values))


@given(dims(), st.integers(-9, 9).filter(bool), VALUES)
def test_division_rounds_down_and_mod_is_its_rest(a: Any, divisor: int, values: dict[str, int]) -> None:
    number = evaluate(a, values)
    assert evaluate(floordiv(a, divisor), values) == number // divisor
    assert evaluate(mod(a, divisor), values) == number % divisor
    assert evaluate(ceildiv(a, abs(divisor)), values) == -(-number // abs(divisor))


@given(dims())
def test_text_reads_back(a: Any) -> None:
    assert parse(str(a)) == a


@given(dims(), dims(), VALUES)
def test_substitution_commutes_with_evaluation(a: Any, b: Any, values: dict[str, int]) -> None:
    replaced = substitute(a, {"N": b})
    assert "N" not in set(symbols(replaced)) - set(symbols(b))
    assert evaluate(replaced, values) == evaluate(a, {**values, "N": evaluate(b, values)})


@given(dims(), dims(), dims())
def test_equal_polynomials_are_one_value(a: Any, b: Any, c: Any) -> None:
    assert a + b - b == a
    assert (a + b) * c == c * b + a * c
    assert hash(a + b) == hash(b + a)


def test_terms_that_divide_leave_the_division() -> None:
    n, m = sym("N"), sym("M")
    assert floordiv(8 * n + m + 3, 8) == n + floordiv(m + 3, 8)
    assert mod(8 * n + 3, 8) == 3
    assert floordiv(n, n) == 1
    assert product((n, 2, m)) == 2 * m * n
    assert minimum(n + 1, n) == n


def test_what_folds_is_a_plain_int() -> None:
    n = sym("N")
    assert type(n - n) is int
    assert type(n * 0) is int
    assert type(floordiv(4 * n + 2, 4) - n) is int


def test_division_by_zero_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        floordiv(sym("N"), 0)


def test_a_symbol_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="M"):
        evaluate(sym("N") + sym("M"), {"N": 1})


@pytest.mark.parametrize("text", ["", "N +", "2 ** N", "min(N)", "min(N, 2", "N M", "(N", "$", "3)"])
def test_text_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)
