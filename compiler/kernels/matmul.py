"""Matrix multiplication of row-major tensors, numpy's semantics: batches broadcast, one-dimensional operands are a row or a column."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim, ceildiv, product
from compiler.ir.loop import Function
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType, compute_dtype
from compiler.kernels import gemm as g
from compiler.kernels.base import Epilogue, Workload, declare_buffers, flat_axis, pack_operands, register_family
from compiler.target import Target

_DTYPES = (DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64, DType.UINT32, DType.UINT64)


class MatMul:
    """The family; its schedule is ``GemmSchedule``. A constant right operand is packed into panels, any other is read in place."""

    name = "matmul"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major operands of one dtype, computed in 32 or 64 bits, row-major."""
        a, b = workload.inputs[0].type, workload.inputs[1].type
        types = (a, b, workload.output, workload.anchor)
        same = compute_dtype(a.dtype) is compute_dtype(b.dtype) is workload.anchor.dtype
        return same and workload.anchor.dtype in _DTYPES and all(t.block == 1 for t in types)

    def heuristic(self, workload: Workload, target: Target) -> g.GemmSchedule:
        return g.heuristic(_gemm(workload, _lanes(workload, target)), target, workload.threads)

    def space(self, workload: Workload, target: Target) -> Sequence[g.GemmSchedule]:
        return g.space(_gemm(workload, _lanes(workload, target)), target, workload.threads)

    def pack(self, workload: Workload, schedule: g.GemmSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        b = constants[1]
        packed: Array | None = None
        if b is not None:
            packed = g.pack_panels(b if b.ndim > 1 else b[:, None], schedule.nv, schedule.lanes).reshape(-1)
        return [constants[0], packed, *pack_operands(workload, constants[2:])]

    def build(self, workload: Workload, schedule: g.GemmSchedule, target: Target, name: str) -> Function:
        builder, gemm = LoopBuilder(name), _gemm(workload, schedule.lanes)
        b_type = workload.inputs[1].type
        sizes: dict[int, Dim] = {}
        if workload.inputs[1].constant:
            sizes[1] = product(b_type.shape[:-2]) * gemm.k * gemm.vectors * gemm.lanes
        (a, b), operands, out = declare_buffers(builder, workload, sizes)
        columns = 0 if b_type.rank == 1 else 1
        epilogue = Epilogue(builder, workload, operands, row_axes=range(workload.output.rank - columns))
        g.GemmWriter(builder, gemm, schedule, workload.threads, (a, b, out), epilogue).write()
        return builder.function()

    def flops(self, workload: Workload) -> Dim:
        return workload.anchor.elements * workload.inputs[0].type.shape[-1] * 2


def _lanes(workload: Workload, target: Target) -> int:
    return target.vector_bits // (8 * workload.anchor.dtype.itemsize)


def _gemm(workload: Workload, lanes: int) -> g.Gemm:
    a, b, out = workload.inputs[0].type.shape, workload.inputs[1].type.shape, workload.output
    row_vector, column_vector = len(a) == 1, len(b) == 1
    a = (1, *a) if row_vector else a
    b = (*b, 1) if column_vector else b
    depth, columns = b[-2:]
    batch = _broadcast(a[:-2], b[:-2])
    packed = workload.inputs[1].constant
    matrix = depth * (ceildiv(columns, lanes) * lanes if packed else columns)
    row_axes = range(out.rank if column_vector else out.rank - 1)
    walk = flat_axis(workload, row_axes) if product(b[:-2]) == 1 and not row_vector else None
    merged = walk is not None
    rows = a[-2] * (product(batch) if merged else 1)
    a_steps, b_steps = _steps(a[:-2], len(batch), a[-2] * depth), _steps(b[:-2], len(batch), matrix)
    batches = () if merged else tuple(g.Batch(*values) for values in zip(batch, a_steps, b_steps, strict=True))

    def coordinates(indices: Sequence[Dim], m: Dim, vector: Dim) -> tuple[Dim, ...]:
        if merged:
            place: list[Dim] = [m if axis == walk else 0 for axis in row_axes]
        else:
            place = list(indices) if row_vector else [*indices, m]
        return tuple(place) if column_vector else (*place, vector * lanes)

    b_row = None if packed else columns
    return g.Gemm(batches, rows, columns, depth, lanes, workload.anchor.dtype, depth, 8, 8, 1, b_row, coordinates)


def _broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(left), len(right))
    ones: tuple[Dim, ...] = (1,) * rank
    pairs = zip(ones[len(left) :] + left, ones[len(right) :] + right, strict=True)
    return tuple(y if x == 1 else x for x, y in pairs)


def _steps(shape: tuple[Dim, ...], rank: int, matrix: Dim) -> list[Dim]:
    """What one step of each batch axis adds to an operand's index; 0 where it broadcasts."""
    steps: list[Dim] = []
    step = matrix
    for dim in reversed(shape):
        steps.append(0 if dim == 1 else step)
        step = step * dim
    return [*[0] * (rank - len(shape)), *reversed(steps)]


register_family(MatMul())
