"""Normalisation over any axes, in any layout, in groups, against numpy in float64; large means; what the layout pass makes of it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_basic import BLOCK, F32, TARGET, normals, run, workload

from compiler.ir.scalar import Arg, call
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Workload, family

EPSILON = 1e-3
FAMILY = family("normalize")


def expected(x: np.ndarray, axes: tuple[int, ...], groups: int, center: bool) -> np.ndarray:
    """Every group by itself, in float64."""
    parts = []
    for part in np.split(x.astype(np.float64), groups, axes[0]):
        centered = part - part.mean(axes, keepdims=True) if center else part
        parts.append(centered / np.sqrt((centered**2).mean(axes, keepdims=True) + EPSILON))
    return np.concatenate(parts, axes[0])


def normalized(x: np.ndarray, axes: tuple[int, ...], groups: int, block: int, center: bool = True, scale: np.ndarray | None = None) -> Workload:
    """A kernel of the family, with a factor behind it."""
    dtype = DType.of(x.dtype)
    params = {"axes": axes, "groups": groups, "epsilon": EPSILON, "center": center}
    output = TensorType(dtype, x.shape, block)
    if scale is None:
        return workload("normalize", params, [(x, block)], output)
    factor = block if scale.shape[1] != 1 else 1
    return workload("normalize", params, [(x, block)], output, call("mul", Arg(0, dtype), Arg(1, dtype)), [(scale, factor)])


def compare(results: list[np.ndarray], want: np.ndarray, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    for result in results:
        np.testing.assert_allclose(result.astype(np.float64), want, rtol=0, atol=tolerance * scale)


@st.composite
def cases(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """A shape, axes, groups and a layout in which the family has it."""
    block = draw(st.sampled_from((1, BLOCK, BLOCK)))
    rank = draw(st.integers(2, 4))
    shape = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 2, 3, 4, 6, 8, 12, 15, 16, 24, 35, 40))),
        *(draw(st.sampled_from((1, 2, 3, 5, 9, 17))) for _ in range(rank - 2)),
    )
    subsets = [axes for size in range(1, rank + 1) for axes in combinations(range(rank), size)]
    whole = tuple(range(1, rank))
    axes = draw(st.sampled_from([a for a in subsets if block == 1 or a[0] > 1 or a in ((1,), whole)]))
    dim = shape[axes[0]]
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    free = block == 1 or (axes == whole and axes[0] == 1)
    return shape, axes, draw(st.sampled_from(divisors)) if free else 1, block


@settings(max_examples=150, deadline=None)
@given(cases(), st.data(), st.sampled_from((F32, F32, DType.FLOAT64, DType.FLOAT16)), st.booleans())
def test_any_axes_groups_and_layouts(case: tuple[tuple[int, ...], tuple[int, ...], int, int], data: Any, dtype: DType, center: bool) -> None:
    shape, axes, groups, block = case
    x = (normals(shape) * 3 + 1).astype(dtype.numpy)
    scale = None
    if data.draw(st.booleans()):
        scale = normals([data.draw(st.sampled_from((1, dim))) for dim in shape], 1).astype(dtype.numpy)
    work = normalized(x, axes, groups, block, center, scale)
    tensors = [(x, block)] if scale is None else [(x, block), (scale, work.operands[0].type.block)]
    want = expected(x, axes, groups, center) * (1 if scale is None else scale)
    compare(run(work, tensors), want, 4e-3 if dtype is DType.FLOAT16 else 1e-5)


LARGE = [
    ((2, 64, 9, 11), (1, 2, 3), 1, BLOCK),
    ((1, 20, 9, 11), (1, 2, 3), 1, BLOCK),
    ((1, 24, 9, 11), (1, 2, 3), 4, BLOCK),
    ((1, 24, 9, 11), (2, 3), 1, BLOCK),
    ((1, 30, 5, 7), (1,), 1, BLOCK),
    ((1, 30, 5, 7), (1,), 1, 1),
    ((4, 33), (1,), 1, 1),
    ((2, 5000), (1,), 1, 1),
]


@pytest.mark.parametrize(("shape", "axes", "groups", "block"), LARGE)
@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_a_large_mean_costs_no_accuracy(shape: tuple[int, ...], axes: tuple[int, ...], groups: int, block: int, mean: float) -> None:
    x = (normals(shape) + mean).astype(np.float32)
    compare(run(normalized(x, axes, groups, block), [(x, block)]), expected(x, axes, groups, True))


@pytest.mark.parametrize(("shape", "axes", "groups", "block"), LARGE)
def test_constant_rows_are_zero(shape: tuple[int, ...], axes: tuple[int, ...], groups: int, block: int) -> None:
    x = np.full(shape, 1234.567, np.float32)
    compare(run(normalized(x, axes, groups, block), [(x, block)]), np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("shape", "axes", "groups", "block"), LARGE)
def test_what_is_not_a_number_stays_in_its_row(
    shape: tuple[int, ...], axes: tuple[int, ...], groups: int, block: int, center: bool, value: float
) -> None:
    x = normals(shape)
    x.reshape(-1)[3] = value
    with np.errstate(all="ignore"):
        want = expected(x, axes, groups, center)
    for result in run(normalized(x, axes, groups, block, center), [(x, block)]):
        np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "axes", "groups", "block"), [LARGE[0], LARGE[2], LARGE[4], LARGE[5], LARGE[7]])
def test_every_schedule(shape: tuple[int, ...], axes: tuple[int, ...], groups: int, block: int) -> None:
    x = normals(shape)
    work = normalized(x, axes, groups, block)
    for schedule in FAMILY.space(work, TARGET):
        compare(run(work, [(x, block)], schedule), expected(x, axes, groups, True))


@pytest.mark.parametrize(("axes", "groups"), [((1,), 2), ((1, 2), 1), ((0, 1, 2, 3), 1), ((1, 3), 1)])
def test_what_blocks_of_channels_cannot_be_normalized_over(axes: tuple[int, ...], groups: int) -> None:
    x = normals((2, 16, 3, 3))
    assert not FAMILY.supports(normalized(x, axes, groups, BLOCK), TARGET)
    compare(run(normalized(x, axes, groups, 1), [(x, 1)]), expected(x, axes, groups, True))
