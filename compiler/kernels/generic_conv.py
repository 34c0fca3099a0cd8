"""Convolution of any rank, grouping and dtype, with weights known now or at run time: the family for what is not float32 in blocks.

Row-major in and out. A vector holds neighbouring filters of one group at one output position; taps outside the input are cut off
by the bounds of the tap loops. Constant weights are packed so that these filters lie side by side; others are read as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.loops import load_as, pack_plain
from compiler.kernels.tiles import sections
from compiler.kernels.windows import spatial_axes, tap_bounds
from compiler.target import Target


@dataclass(frozen=True)
class GenericSchedule:
    """Lanes of a vector of filters, and the most vectors accumulated at once."""

    lanes: int
    vectors: int


class GenericConv:
    """The family."""

    name = "generic_conv"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Weights of a known shape, row-major, one dtype of 32 or 64 bits."""
        x, w = workload.inputs[0].type, workload.inputs[1].type
        dtypes = (DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64)
        same = compute_dtype(x.dtype) is compute_dtype(w.dtype) is workload.anchor.dtype and workload.anchor.dtype in dtypes
        return workload.prologue is None and same and w.is_static and x.block == w.block == workload.output.block == 1

    def heuristic(self, workload: Workload, target: Target) -> GenericSchedule:
        lanes = target.vector_bits // (8 * workload.anchor.dtype.itemsize)
        filters = workload.inputs[1].type.static_shape[0] // workload.int("group")
        while lanes > 1 and lanes >= 2 * filters:
            lanes //= 2
        return GenericSchedule(lanes, 4)

    def space(self, workload: Workload, target: Target) -> Sequence[GenericSchedule]:
        first = self.heuristic(workload, target)
        return [first, *(GenericSchedule(first.lanes, v) for v in (1, 2, 8))]

    def pack(self, workload: Workload, schedule: GenericSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        weights, packed = constants[1], pack_plain(workload, constants)
        if weights is not None:
            group = workload.int("group")
            filters = weights.shape[0] // group
            grouped = weights.reshape(group, filters, -1)
            padded = np.zeros((group, grouped.shape[2], -(-filters // schedule.lanes) * schedule.lanes), weights.dtype)
            padded[:, :, :filters] = grouped.transpose(0, 2, 1)
            packed[1] = padded.reshape(-1)
        return packed

    def build(self, workload: Workload, schedule: GenericSchedule, target: Target, name: str) -> Function:
        return _Writer(workload, schedule, name).write()

    def flops(self, workload: Workload) -> Dim:
        return workload.anchor.elements * (2 * prod(workload.inputs[1].type.static_shape[1:]))


@dataclass(frozen=True)
class _Steps:
    """How far apart in the weights the next group, channel, tap and filter are, in elements."""

    group: int
    channel: int
    tap: int
    filter: int


class _Writer:
    def __init__(self, workload: Workload, schedule: GenericSchedule, name: str) -> None:
        x, w = workload.inputs[0].type, workload.inputs[1].type.static_shape
        self._builder = LoopBuilder(name)
        self._workload = workload
        self._schedule = schedule
        self._group = workload.int("group")
        self._filters, self._channels = w[0] // self._group, w[1]
        self._kernel = w[2:]
        self._padded = -(-self._filters // schedule.lanes) * schedule.lanes
        self._axes = spatial_axes(workload, w[2:])
        taps = prod(self._kernel)
        if workload.inputs[1].constant:
            sizes = {1: self._group * self._channels * taps * self._padded}
            self._steps = _Steps(self._channels * taps * self._padded, taps * self._padded, self._padded, 1)
        else:
            sizes = {}
            self._steps = _Steps(self._filters * self._channels * taps, taps, 1, self._channels * taps)
        (self._x, self._w), operands, self._out = declare_buffers(self._builder, workload, sizes)
        self._x_strides = physical_strides(x)
        self._epilogue = Epilogue(self._builder, workload, operands)

    def write(self) -> Function:
        b, out = self._builder, self._workload.output.shape
        rows = out[2] if len(out) > 2 else 1
        with b.loop("i", 0, out[0] * self._group * rows, parallel=True) as i:
            images, y = i.var // rows, i.var % rows
            place: list[Dim] = [images // self._group, images % self._group]
            self._positions([*place, y][: len(out)])
        return b.function()

    def _positions(self, place: list[Dim]) -> None:
        """``place`` is (image, group, spatial positions so far)."""
        at = len(place) - 2
        if at < len(self._axes):
            with self._builder.loop("x", 0, self._axes[at].out) as x:
                self._positions([*place, x.var])
            return
        for section in sections(self._padded // self._schedule.lanes, self._schedule.vectors):
            for tile in range(section.count):
                self._tile(place, section.start + tile * section.size, section.size)

    def _tile(self, place: list[Dim], first: int, vectors: int) -> None:
        b, lanes = self._builder, self._schedule.lanes
        type_ = VecType(self._workload.anchor.dtype, lanes)
        x_base = place[0] * self._x_strides[0] + place[1] * (self._x_strides[1] * self._channels)
        w_base = place[1] * self._steps.group + first * lanes * self._steps.filter
        counts = [min(lanes, self._filters - (first + v) * lanes) for v in range(vectors)]
        zero = b.const(0, type_)
        with b.loop("k", 0, self._channels, carried=[zero] * vectors) as k:
            x_at, w_at = x_base + k.var * self._x_strides[1], w_base + k.var * self._steps.channel
            k.yield_(self._taps(place[2:], x_at, w_at, counts, list(k.carried)))
        for v, acc in enumerate(k.results):
            start = (first + v) * lanes
            for lane in range(counts[v]):
                value = b.let("extract", (acc,), VecType(type_.dtype, 1), lane) if lanes > 1 else acc
                channel = place[1] * self._filters + (start + lane)
                self._epilogue.store(self._out, value, (place[0], channel, *place[2:]))

    def _taps(self, place: Sequence[Dim], x_at: Dim, w_at: Dim, counts: Sequence[int], accs: list[Reg], depth: int = 0) -> list[Reg]:
        b, lanes = self._builder, self._schedule.lanes
        if depth == len(self._axes):
            left = load_as(b, accs[0].type.dtype, self._x, x_at, lanes, stride=0)
            right = [self._weights(w_at + v * lanes * self._steps.filter, count) for v, count in enumerate(counts)]
            return [b.fma(left, r, acc) for r, acc in zip(right, accs, strict=True)]
        axis = self._axes[depth]
        first = axis.first(place[depth])
        low, high = tap_bounds(axis, first)
        step = prod(self._kernel[depth + 1 :]) * self._steps.tap
        with b.loop("w", low, high, carried=accs) as tap:
            x_next = x_at + (first + tap.var * axis.dilation) * self._x_strides[2 + depth]
            tap.yield_(self._taps(place, x_next, w_at + tap.var * step, counts, list(tap.carried), depth + 1))
        return list(tap.results)

    def _weights(self, at: Dim, count: int) -> Reg:
        """One vector of neighbouring filters; packed ones are padded to whole vectors."""
        lanes, step = self._schedule.lanes, self._steps.filter
        return load_as(self._builder, self._workload.anchor.dtype, self._w, at, lanes, stride=step, count=None if step == 1 else count)


register_family(GenericConv())
