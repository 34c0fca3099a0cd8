"""Lengths and positions of Resize are rounded as ONNX Runtime rounds them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from symbolic_models import check, compiled, model_of, random

TRANSFORMS = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SCALES = [0.1, 0.2, 0.3, 0.6, 0.7, 1.1, 1.2, 1.3, 1.4, 1.6, 1.7, 2.2, 2.3, 3.3, 1 / 3, 2 / 3, 4 / 3, 5 / 3]


def resize(length: int | str, transform: str, mode: str, scale: float) -> bytes:
    attrs = f'coordinate_transformation_mode = "{transform}", ' + (
        f'mode = "nearest", nearest_mode = "{mode}"' if mode in ROUNDINGS else 'mode = "linear"'
    )
    return model_of(
        f"g (float[1, 2, {length}, 3] x) => (float[a, b, c, d] y) {{ y = Resize<{attrs}>(x, , scales) }}", 18, scales=np.float32([1, 1, scale, 1])
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 64), st.sampled_from(TRANSFORMS), st.sampled_from([*ROUNDINGS, "linear"]), st.sampled_from(SCALES))
def test_lengths_and_positions(length: int, transform: str, mode: str, scale: float) -> None:
    assume(int(length * scale) not in (0, length))
    check(resize(length, transform, mode, scale), {"x": random(1, 2, length, 3)}, 1)


@pytest.mark.parametrize(
    ("length", "scale", "resized"),
    [
        (36, 5 / 3, 60),
        (10, 1.3, 13),
        (90, 1.3, 116),
        (27, 7 / 3, 62),
        (30, 2.3, 69),
        (18, 4 / 3, 24),
        (8, 0.3, 2),
        (190, 1.5, 285),
        (1024, 1025 / 1024, 1025),
    ],
)
def test_a_scale_that_float32_does_not_hold_exactly(length: int, scale: float, resized: int) -> None:
    for given_length in (length, "n"):
        model, x = resize(given_length, "half_pixel", "linear", scale), random(1, 2, length, 3)
        assert compiled(model, 1).run({"x": x})["y"].shape[2] == resized
        check(model, {"x": x}, 1)
