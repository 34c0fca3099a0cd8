"""Matrix multiplication of row-major tensors, numpy's semantics: batches broadcast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compiler.ir.intexpr import Dim, ceildiv, product
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.strided import row_major
from compiler.ir.types import DType, compute_dtype
from compiler.kernels import gemm as g
from compiler.kernels.base import Epilogue, Workload, broadcast_strides, declare_buffers, flat_axis, register_family
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

    def build(self, workload: Workload, schedule: g.GemmSchedule, target: Target, name: str) -> Function:
        builder, gemm = LoopBuilder(name), _gemm(workload, schedule.lanes)
        (right,) = workload.others
        sizes: dict[int, Dim] = {}
        if right.constant:
            sizes[len(workload.inputs) - 1] = product(right.type.shape[:-2]) * gemm.k * gemm.vectors * gemm.lanes
        inputs, operands, out = declare_buffers(builder, workload, sizes)
        epilogue = Epilogue(builder, workload, operands, row_axes=range(workload.output.rank - 1))
        prologue = None if workload.prologue is None else workload.prologue.element
        g.GemmWriter(builder, gemm, schedule, workload.threads, (*inputs, out), epilogue, prologue).write()
        return builder.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.anchor.elements * workload.x.shape[-1] * 2


def _lanes(workload: Workload, target: Target) -> int:
    return target.vector_bits // (8 * workload.anchor.dtype.itemsize)


def _gemm(workload: Workload, lanes: int) -> g.Gemm:
    (right,) = workload.others
    a, b, out = workload.x.shape, right.type.shape, workload.output
    depth, columns = b[-2:]
    batch = _broadcast(a[:-2], b[:-2])
    packed = right.constant
    matrix = depth * (ceildiv(columns, lanes) * lanes if packed else columns)
    row_axes = range(out.rank - 1)
    computed = [] if workload.prologue is None else [broadcast_strides(operand.type, workload.x) for operand in workload.inputs[:-1]]
    walk = flat_axis(workload, row_axes) if product(b[:-2]) == 1 else None
    merged = walk is not None and all(_row_step(strides, a) is not None for strides in computed)
    rows = a[-2] * (product(batch) if merged else 1)
    a_steps, b_steps = _steps(a[:-2], len(batch), a[-2] * depth), _steps(b[:-2], len(batch), matrix)
    batches = () if merged else tuple(g.Batch(*values) for values in zip(batch, a_steps, b_steps, strict=True))

    def coordinates(indices: Sequence[Dim], m: Dim, vector: Dim) -> tuple[Dim, ...]:
        place: Iterable[Dim] = (m if axis == walk else 0 for axis in row_axes) if merged else (*indices, m)
        return (*place, vector * lanes)

    b_row = None if packed else columns
    sources = tuple(_source(strides, a, len(batches), merged=merged) for strides in computed)
    return g.Gemm(batches, rows, columns, depth, lanes, workload.anchor.dtype, depth, 8, 8, 1, b_row, coordinates, sources)


def _source(strides: Sequence[Dim], shape: Sequence[Dim], batches: int, *, merged: bool) -> g.Source:
    """How a tensor with these strides along the axes of a is walked."""
    if merged:
        return g.Source((), _row_step(strides, shape) or 0, strides[-1])
    *outer, row, k = strides
    return g.Source((*(0,) * (batches - len(outer)), *outer), row, k)


def _row_step(strides: Sequence[Dim], shape: Sequence[Dim]) -> Dim | None:
    """What a step from row to row adds to an index with these strides, all axes of shape but the last walked as one; None where it differs."""
    long = [axis for axis, dim in enumerate(shape[:-1]) if dim != 1]
    step = strides[long[-1]] if long else 0
    return step if all(strides[axis] == step * product(shape[axis + 1 : -1]) for axis in long) else None


def _broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(left), len(right))
    ones: tuple[Dim, ...] = (1,) * rank
    pairs = zip(ones[len(left) :] + left, ones[len(right) :] + right, strict=True)
    return tuple(y if x == 1 else x for x, y in pairs)


def _steps(shape: tuple[Dim, ...], rank: int, matrix: Dim) -> list[Dim]:
    """What one step of each batch axis adds to an operand's index; 0 where it broadcasts."""
    steps = (0 if dim == 1 else step for dim, step in zip(shape, row_major(shape, matrix), strict=True))
    return [*[0] * (rank - len(shape)), *steps]


register_family(MatMul())
