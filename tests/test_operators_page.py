"""docs/operators.md says what the op files say."""

from __future__ import annotations

import numpy as np
import pytest
from operators_page import PAGE, measured, page, ulps, without_differences


def test_page_is_current(bless: bool) -> None:
    if bless:
        PAGE.write_text(page(measured()))
    assert without_differences(PAGE.read_text()) == without_differences(page({}))


@pytest.mark.parametrize(
    ("got", "want", "units"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0 + 2**-22], [1.0], 2),
        ([1000.0, 2**-33], [1000.0, 0.0], 2**-33 / 2**-17),
        ([np.nan, np.inf, 3.0], [np.nan, np.inf, 3.0], 0),
    ],
)
def test_units_in_the_last_place(got: list[float], want: list[float], units: float) -> None:
    assert ulps(np.array(got, np.float32), np.array(want, np.float32)) == units


def test_units_of_half_precision_and_integers() -> None:
    assert ulps(np.array([1 + 2**-10], np.float16), np.array([1], np.float16)) == 1
    assert ulps(np.array([3, 4]), np.array([3, 6])) == 2
