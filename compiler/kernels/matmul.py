"""Matrix multiplication of row-major tensors, numpy's semantics: batches broadcast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compiler.ir.intexpr import Dim, ceildiv, product
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.strided import Shape, Strided
from compiler.ir.types import DType, compute_dtype
from compiler.kernels import gemm as g
from compiler.kernels.base import Epilogue, Panels, Workload, declare_buffers, flat_axis, register_family
from compiler.kernels.gemm_operands import Batch, Gemm, Source
from compiler.kernels.loops import pack_plain
from compiler.target import Target

_DTYPES = (DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64, DType.UINT32, DType.UINT64)


class MatMul:
    """The family; its schedule is ``GemmSchedule``. A constant right operand is packed into panels, any other is read in place.

    The left operand may be computed: tiles of rows, into scratch.
    """

    name = "matmul"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major operands of one dtype, computed in 32 or 64 bits, row-major."""
        a, (b,) = workload.x, (operand.type for operand in workload.others)
        types = (*(operand.type for operand in workload.inputs), workload.output, workload.anchor)
        same = compute_dtype(a.dtype) is compute_dtype(b.dtype) is workload.anchor.dtype
        return same and workload.anchor.dtype in _DTYPES and all(t.block == 1 for t in types)

    def heuristic(self, workload: Workload, target: Target) -> g.GemmSchedule:
        return g.heuristic(_gemm(workload, _lanes(workload, target)), target, workload.threads)

    def space(self, workload: Workload, target: Target) -> Sequence[g.GemmSchedule]:
        return g.space(_gemm(workload, _lanes(workload, target)), target, workload.threads)

    def pack(self, workload: Workload, schedule: g.GemmSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        packed, number = pack_plain(workload, constants), len(workload.inputs) - 1
        b = constants[number]
        if b is not None:
            packed[number] = g.pack_panels(b, schedule.nv, schedule.lanes).reshape(-1)
        return packed

    def packed(self, workload: Workload, schedule: g.GemmSchedule) -> tuple[int, Panels] | None:
        (right,) = workload.others
        return (len(workload.inputs) - 1, Panels(schedule.nv, schedule.lanes)) if right.constant else None

    def build(self, workload: Workload, schedule: g.GemmSchedule, target: Target, name: str) -> Function:
        builder, gemm = LoopBuilder(name), _gemm(workload, schedule.lanes)
        (right,) = workload.others
        sizes: dict[int, Dim] = {}
        if right.constant:
            sizes[len(workload.inputs) - 1] = product(right.type.shape[:-2]) * gemm.k * gemm.vectors * gemm.lanes
        inputs, operands, out = declare_buffers(builder, workload, sizes)
        epilogue = Epilogue(builder, workload, operands, row_axes=range(workload.output.rank - 1))
        g.GemmWriter(builder, gemm, schedule, workload.threads, (*inputs, out), epilogue).write()
        return builder.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.anchor.elements * workload.x.shape[-1] * 2


def _lanes(workload: Workload, target: Target) -> int:
    return target.vector_bits // (8 * workload.anchor.dtype.itemsize)


def _gemm(workload: Workload, lanes: int) -> Gemm:
    (right,) = workload.others
    x, out, b = workload.x.shape, workload.output, right.strided
    depth, columns = b.shape[-2:]
    if right.constant:
        b = Strided.row_major((*b.shape[:-1], ceildiv(columns, lanes) * lanes))
    batch = _broadcast(x[:-2], b.shape[:-2])
    row_axes = range(out.rank - 1)
    sources = [_over(operand.strided, x) for operand in workload.inputs[:-1]]
    walk = flat_axis(workload, row_axes) if product(b.shape[:-2]) == 1 else None
    flat = [source.reshaped((product(x[:-1]), x[-1])) for source in sources]
    merged = walk is not None and None not in flat
    if merged:
        sources = [source for source in flat if source is not None]
        batch = ()
    a_steps = [_steps(source, len(batch)) for source in sources]
    batches = tuple(Batch(*values) for values in zip(batch, a_steps[0], _steps(b, len(batch)), strict=True))

    def coordinates(indices: Sequence[Dim], m: Dim, vector: Dim) -> tuple[Dim, ...]:
        place: Iterable[Dim] = (m if axis == walk else 0 for axis in row_axes) if merged else (*indices, m)
        return (*place, vector * lanes)

    a = sources[0]
    return Gemm(
        batches=batches,
        m=a.shape[-2],
        n=columns,
        k=depth,
        lanes=lanes,
        dtype=workload.anchor.dtype,
        a_start=a.offset,
        a_row=a.strides[-2],
        a_block=a.strides[-1] * lanes,
        a_lane=a.strides[-1],
        b_start=b.offset,
        b_row=None if right.constant else b.strides[-2],
        coordinates=coordinates,
        prologue=None if workload.prologue is None else workload.prologue.element,
        sources=tuple(_source(s, steps, lanes) for s, steps in zip(sources, a_steps, strict=True)) if workload.prologue is not None else (),
    )


def _source(view: Strided, steps: Sequence[Dim], lanes: int) -> Source:
    """A matrix that elements of a are computed from; ``steps`` are those of the batch axes."""
    row, k = view.strides[-2:]
    return Source(view.offset, tuple(steps), row, k, k * lanes)


def _over(view: Strided, shape: Shape) -> Strided:
    """A view broadcast to a shape."""
    strides = (0 if dim == 1 else stride for dim, stride in zip(view.shape, view.strides, strict=True))
    return Strided(shape, ((0,) * (len(shape) - len(view.shape)) + tuple(strides)), view.offset, view.elements)


def _steps(view: Strided, rank: int) -> list[Dim]:
    """What one step of each of ``rank`` batch axes adds to the index of an element of a matrix; 0 where it broadcasts."""
    steps = [0 if dim == 1 else stride for dim, stride in zip(view.shape[:-2], view.strides, strict=False)]
    return [*[0] * (rank - len(steps)), *steps][:rank]


def _broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(left), len(right))
    ones: tuple[Dim, ...] = (1,) * rank
    pairs = zip(ones[len(left) :] + left, ones[len(right) :] + right, strict=True)
    return tuple(y if x == 1 else x for x, y in pairs)


register_family(MatMul())
