"""Pointwise (1 x 1) convolution of any spatial rank, dense or grouped, as a matrix multiplication over pixels.

The input is blocked or row-major, the output blocked: a row of the multiplication is a pixel, its vectors are channel blocks.
A blocked input may be computed: rows of pixels, into scratch.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim, product
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.strided import Strided
from compiler.ir.types import DType, compute_dtype
from compiler.kernels import gemm as g
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, flat_axis, physical_strides, register_family
from compiler.kernels.gemm_operands import Batch, Gemm, Source
from compiler.kernels.loops import pack_plain
from compiler.kernels.windows import window_pads
from compiler.target import Target


class PointwiseConv:
    """The family; its schedule is ``GemmSchedule``."""

    name = "pointwise_conv"

    def supports(self, workload: Workload, target: Target) -> bool:
        """1 x 1 kernels without padding, constant float weights, blocked output; groups of whole channel blocks. What is computed is blocked."""
        x, (w,), out = workload.x, workload.others, workload.output
        group = workload.int("group")
        if not (
            w.constant
            and compute_dtype(x.dtype) is w.type.dtype is DType.FLOAT32
            and out.block == target.lanes
            and out.block == workload.anchor.block
        ):
            return False
        aligned = group == 1 or (w.type.static_shape[0] // group % out.block == 0 and w.type.static_shape[1] % out.block == 0)
        return (
            aligned
            and all(k == 1 for k in w.type.static_shape[2:])
            and not any(pad != 0 for pad in window_pads(workload))
            and x.block in ((1, out.block) if workload.prologue is None else (out.block,))
        )

    def heuristic(self, workload: Workload, target: Target) -> g.GemmSchedule:
        return g.heuristic(_gemm(workload), target, workload.threads)

    def space(self, workload: Workload, target: Target) -> Sequence[g.GemmSchedule]:
        return g.space(_gemm(workload), target, workload.threads)

    def pack(self, workload: Workload, schedule: g.GemmSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        packed, number, group = pack_plain(workload, constants), len(workload.inputs) - 1, workload.int("group")
        weights = constants[number]
        if weights is not None:
            per_group = weights.reshape(group, weights.shape[0] // group, -1).transpose(0, 2, 1)
            packed[number] = g.pack_panels(per_group, schedule.nv, workload.output.block).reshape(-1)
        return packed

    def build(self, workload: Workload, schedule: g.GemmSchedule, target: Target, name: str) -> Function:
        builder, gemm = LoopBuilder(name), _gemm(workload)
        size = workload.int("group") * gemm.k * gemm.vectors * gemm.lanes
        inputs, operands, out = declare_buffers(builder, workload, {len(workload.inputs) - 1: size})
        epilogue = Epilogue(builder, workload, operands, row_axes=range(2, len(workload.output.physical_shape) - 1))
        g.GemmWriter(builder, gemm, schedule, workload.threads, (*inputs, out), epilogue).write()
        return builder.function()

    def flops(self, workload: Workload) -> Dim:
        (w,) = workload.others
        return workload.anchor.with_block(1).elements * (2 * w.type.static_shape[1])


def _gemm(workload: Workload) -> Gemm:
    x, (weights,), out = workload.x, workload.others, workload.output
    w, block, group = weights.type.static_shape, out.block, workload.int("group")
    batch, outputs = x.shape[0], out.shape[2:]
    channels, filters = w[1], w[0] // group
    strides = physical_strides(x)
    blocked = x.block != 1
    channel_block, lane = (strides[1], 1) if blocked else (strides[1] * block, strides[1])
    group_step = channels // block * strides[1] if blocked else channels * strides[1]
    row_axes = range(2, 2 + len(outputs))
    computed = [] if workload.prologue is None else [broadcast_strides(operand.type, x) for operand in workload.inputs[:-1]]
    walk = flat_axis(workload, row_axes) if all(s == 1 for s in workload.ints("strides")) else None
    flat = [Strided(outputs, table[2:-1], 0, 0).reshaped((product(outputs),)) for table in computed]
    merged = walk is not None and None not in flat
    row_extents = [] if merged else list(outputs[:-1])
    steps = _pixel_steps(workload, strides)
    vectors = -(-filters // block)
    batches = [Batch(batch, strides[0], 0), Batch(group, group_step, channels * vectors * block)]
    batches += [Batch(extent, step, 0) for extent, step in zip(row_extents, steps, strict=False)]
    inner = product(outputs if merged else outputs[-1:])

    def coordinates(indices: Sequence[Dim], m: Dim, vector: Dim) -> tuple[Dim, ...]:
        rows: list[Dim] = [m if axis == walk else 0 for axis in row_axes] if merged else [*indices[2:], m]
        return (indices[0], indices[1] * vectors + vector, *rows, 0)

    def source(table: Sequence[Dim], pixels: Strided | None) -> Source:
        *rows, row = _pixel_steps(workload, table) if pixels is None or not merged else pixels.strides
        return Source(0, (table[0], channels // block * table[1], *rows), row, table[-1], table[1])

    a_row = (block if blocked else 1) if merged else steps[-1]
    sources = tuple(map(source, computed, flat))
    return Gemm(
        batches=tuple(batches),
        m=inner,
        n=filters,
        k=channels,
        lanes=block,
        dtype=workload.anchor.dtype,
        a_row=a_row,
        a_block=channel_block,
        a_lane=lane,
        b_row=None,
        coordinates=coordinates,
        sources=sources,
        prologue=None if workload.prologue is None else workload.prologue.element,
    )


def _pixel_steps(workload: Workload, strides: Sequence[Dim]) -> list[Dim]:
    """What a step along each spatial axis of the output adds to an index with these strides along the physical axes of the input."""
    return [step * stride for step, stride in zip(strides[2:], workload.ints("strides"), strict=False)]


register_family(PointwiseConv())
