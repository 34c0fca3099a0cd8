"""Linear maps between tensors, as convolutions over an input that is zero outside.

Along every spatial axis, output ``p`` of a map reads its input at ``stride * p + low + step * k`` for ``0 <= k < count``: that is a convolution with
begin padding ``-low``, dilation ``step`` and a kernel of ``count``. Where an input ends makes no difference to what is read, so end padding is only
what follows from the number of outputs. A map without spatial axes is a matrix product along the channels.

Maps are expressions: their shapes are known at once, their weights are computed in float64 when they are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd, prod
from typing import Any

import numpy as np

from compiler.ir.graph import Array
from compiler.ir.intexpr import Dim, floordiv


@dataclass(frozen=True)
class Window:
    """What an output reads along one axis. An input of ``n`` elements gives ``floor((n + reach - 1) / stride) + 1`` outputs."""

    low: int = 0
    count: int = 1
    step: int = 1
    stride: int = 1
    reach: Dim = 0

    @property
    def high(self) -> int:
        """The last element that output 0 reads."""
        return self.low + self.step * (self.count - 1)

    @property
    def end_pad(self) -> Dim:
        """The padding behind the input that a convolution needs for this window."""
        return self.reach + self.high

    def union(self, other: Window) -> Window | None:
        """The smallest window that covers both, for one input and one number of outputs; None where no window does."""
        reach = _larger(self.reach, other.reach)
        if self.stride != other.stride or reach is None:
            return None
        low, high = min(self.low, other.low), max(self.high, other.high)
        step = gcd(self.step * (self.count > 1), other.step * (other.count > 1), self.low - other.low) or 1
        return Window(low, (high - low) // step + 1, step, self.stride, reach)

    def after(self, inner: Window) -> Window:
        """The window of this one's outputs on the input of ``inner``, whose outputs it reads."""
        step = gcd(inner.stride * self.step * (self.count > 1), inner.step * (inner.count > 1)) or 1
        low, high = inner.stride * self.low + inner.low, inner.stride * self.high + inner.high
        return Window(low, (high - low) // step + 1, step, self.stride * inner.stride, inner.reach + inner.stride * self.reach)

    def outputs(self, size: Dim) -> Dim:
        """How many outputs an input of that size has."""
        return floordiv(size + self.reach - 1, self.stride) + 1

    def reads_behind(self, size: Dim) -> bool:
        """Whether an output may read behind an input of that size."""
        outputs = self.outputs(size)
        return self.stride * (outputs - 1) + self.high >= size if isinstance(size, int) and isinstance(outputs, int) else self.end_pad != 0

    def is_zero_before(self) -> bool:
        """Whether outputs at negative positions would read nothing but the zeros in front of the input."""
        return self.high < self.stride

    def is_zero_behind(self, size: Dim) -> bool:
        """Whether outputs behind the last one would read nothing but the zeros behind an input of that size."""
        outputs = self.outputs(size)
        first = self.stride * outputs + self.low - size if isinstance(size, int) and isinstance(outputs, int) else self.reach + self.low
        return isinstance(first, int) and first >= 0


def _larger(left: Dim, right: Dim) -> Dim | None:
    if left == right:
        return left
    return max(left, right) if isinstance(left, int) and isinstance(right, int) else None


@dataclass(frozen=True, eq=False)
class LinearMap(ABC):
    """``outputs`` channels from ``inputs`` channels, in ``group`` groups, through one window per spatial axis."""

    outputs: int
    inputs: int
    group: int
    windows: tuple[Window, ...]

    @cached_property
    def weights(self) -> Array:
        """float64 ``[outputs, inputs / group, *counts]``, taps in the order of the windows."""
        with np.errstate(all="ignore"):
            return self._compute()

    @abstractmethod
    def _compute(self) -> Array:
        """The weights."""

    @property
    def exact(self) -> Array:
        """The weights in any type that holds them."""
        return self.weights

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        """The weights in that type, rounded once; what is too large for it is infinite."""
        with np.errstate(all="ignore"):
            return self.exact.astype(dtype)

    @property
    def is_diagonal(self) -> bool:
        """Whether it is a factor for each channel."""
        return self.outputs == self.inputs == self.group and all(window == Window() for window in self.windows)

    @cached_property
    def factor(self) -> float | None:
        """What every channel is multiplied by, where it is that and the same for all."""
        first = float(self.weights.flat[0]) if self.is_diagonal else None
        return first if first is not None and bool(np.all(self.weights == first)) else None

    @property
    def taps(self) -> int:
        """Elements of one channel that an output reads."""
        return prod(window.count for window in self.windows)

    def apply_to_constant(self, vector: Array) -> Array:
        """The output for an input of that value per channel everywhere, as far as windows stay inside it."""
        with np.errstate(all="ignore"):
            read = np.repeat(vector.astype(np.float64).reshape(self.group, -1, 1), self.taps, axis=1)
            return np.asarray(np.matmul(self.exact.reshape(self.group, self.outputs // self.group, -1), read).reshape(self.outputs))


@dataclass(frozen=True, eq=False)
class Weights(LinearMap):
    """A map by its weights."""

    array: Array

    def _compute(self) -> Array:
        return self.array.astype(np.float64)

    @property
    def exact(self) -> Array:
        return self.array


def diagonal(factors: Array, axes: int) -> LinearMap:
    """The map that multiplies each channel by its factor."""
    size = factors.size
    return Weights(size, size, size, (Window(),) * axes, factors.reshape(size, 1, *(1,) * axes))


def identity(channels: int, axes: int) -> LinearMap:
    """The map that changes nothing."""
    return diagonal(np.ones(channels), axes)


@dataclass(frozen=True, eq=False)
class Select(LinearMap):
    """Output channel ``k`` is input channel ``rows[k]``, or zero where that is negative."""

    rows: tuple[int, ...]

    def _compute(self) -> Array:
        return self.of_channels(np.eye(self.inputs)).reshape(self.outputs, self.inputs, *(1,) * len(self.windows))

    def of_channels(self, array: Array) -> Array:
        """The channels of ``array``, its first axis, that it selects."""
        rows = np.array(self.rows)
        return np.where((rows >= 0).reshape(-1, *(1,) * (array.ndim - 1)), array[rows], 0)


def select(rows: Sequence[int], inputs: int, axes: int) -> LinearMap:
    """The map that takes those channels; a negative number makes a channel of zeros."""
    return Select(len(rows), inputs, 1, (Window(),) * axes, tuple(rows))


@dataclass(frozen=True, eq=False)
class _Sum(LinearMap):
    left: LinearMap
    right: LinearMap

    def _compute(self) -> Array:
        total = np.zeros((self.outputs, self.inputs // self.group, *(window.count for window in self.windows)))
        for part in (self.left, self.right):
            places = tuple(_places(inner, outer) for inner, outer in zip(part.windows, self.windows, strict=True))
            total[(slice(None), slice(None), *places)] += regrouped(part, self.group)
        return total


def _places(inner: Window, outer: Window) -> slice:
    """Where the taps of a window stand in a wider one."""
    first, every = (inner.low - outer.low) // outer.step, max(1, inner.step // outer.step)
    return slice(first, first + every * (inner.count - 1) + 1, every)


def add(left: LinearMap, right: LinearMap) -> LinearMap | None:
    """The sum of two maps between the same tensors; None where it is no such map."""
    windows = tuple(a.union(b) for a, b in zip(left.windows, right.windows, strict=True))
    found = tuple(window for window in windows if window is not None)
    if len(found) < len(windows):
        return None
    return _Sum(left.outputs, left.inputs, gcd(left.group, right.group), found, left, right)


@dataclass(frozen=True, eq=False)
class _Product(LinearMap):
    outer: LinearMap
    inner: LinearMap

    def _compute(self) -> Array:
        outer, inner = self.outer, self.inner
        if (scaled := self._scaled(np.dtype(np.float64))) is not None:
            return scaled
        if isinstance(outer, Select):
            return outer.of_channels(regrouped(inner, 1))
        group, middle = self.group, outer.inputs // self.group
        rows, columns = self.outputs // group, self.inputs // group
        first = regrouped(inner, group).reshape(group, middle, -1)
        counts = [window.count for window in inner.windows]
        second = regrouped(outer, group).reshape(group, rows, middle, *(window.count for window in outer.windows))
        total = np.zeros((group, rows, columns, *(window.count for window in self.windows)))
        for tap in np.ndindex(*(window.count for window in outer.windows)):
            product = np.matmul(second[(slice(None),) * 3 + tap], first).reshape(group, rows, columns, *counts)
            total[(slice(None),) * 3 + self._places_at(tap)] += product
        return total.reshape(self.outputs, columns, *total.shape[3:])

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        scaled = self._scaled(dtype)
        return super().rounded(dtype) if scaled is None else scaled

    def _scaled(self, dtype: np.dtype[Any]) -> Array | None:
        """The weights where one of the maps is a factor for each channel. They may be most of a model's: there is no copy of them in float64."""
        outer, inner = self.outer, self.inner
        if outer.is_diagonal:
            weights = inner.exact
            factors = outer.weights.reshape(-1, *(1,) * (weights.ndim - 1))
        elif inner.is_diagonal:
            weights = outer.exact
            factors = np.repeat(inner.weights.reshape(outer.group, 1, -1), outer.outputs // outer.group, axis=1)
            factors = factors.reshape(*weights.shape[:2], *(1,) * len(outer.windows))
        else:
            return None
        with np.errstate(all="ignore"):
            return np.multiply(weights, factors, out=np.empty(weights.shape, dtype), dtype=np.float64, casting="same_kind")

    def _places_at(self, tap: tuple[int, ...]) -> tuple[slice, ...]:
        """Where the inner taps stand that one outer tap reads."""
        axes = zip(tap, self.outer.windows, self.inner.windows, self.windows, strict=True)
        return tuple(_places(replace(i, low=i.low + i.stride * (o.low + o.step * k)), whole) for k, o, i, whole in axes)

    @property
    def work(self) -> int:
        """Multiply-adds to compute the weights."""
        if self.outer.is_diagonal or self.inner.is_diagonal or isinstance(self.outer, Select):
            return 0
        return self.outputs * (self.inputs // self.group) * (self.outer.inputs // self.group) * self.outer.taps * self.inner.taps


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """``outer`` of what ``inner`` gives. It is that as far as ``outer`` does not read padding where ``inner`` would read its input."""
    if outer.is_diagonal and isinstance(inner, _Product) and inner.outer.is_diagonal:  # factors first: weights are multiplied once
        outer, inner = compose(outer, inner.outer), inner.inner
    windows = tuple(after.after(first) for after, first in zip(outer.windows, inner.windows, strict=True))
    return _Product(outer.outputs, inner.inputs, gcd(outer.group, inner.group), windows, outer, inner)


def composition_work(map_: LinearMap) -> int:
    """Multiply-adds to compute the weights of a composition; 0 for any other map."""
    return map_.work if isinstance(map_, _Product) else 0


def regrouped(map_: LinearMap, group: int) -> Array:
    """The weights in fewer groups, with zeros between the old ones."""
    weights = map_.weights
    if group == map_.group:
        return weights
    inside, counts = map_.group // group, weights.shape[2:]
    split = weights.reshape(group, inside, map_.outputs // map_.group, map_.inputs // map_.group, *counts)
    wide = np.zeros((group, inside, split.shape[2], inside, split.shape[3], *counts))
    for block in range(inside):
        wide[:, block, :, block] = split[:, block]
    return np.asarray(wide.reshape(map_.outputs, map_.inputs // group, *counts))
