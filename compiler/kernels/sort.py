"""Sorting along an axis: the positions of the largest or smallest elements, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compiler.ir.intexpr import Dim, floordiv, minimum, mod
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Epilogue, Workload, declare_buffers, physical_strides, register_family
from compiler.kernels.loops import number, pack_plain, parallel_nest
from compiler.kernels.texts import Texts
from compiler.target import Target

_INDEX = VecType(DType.INT64, 1)

_INSERTED = 64
"""The largest k for which insertion is the heuristic: on rows of 32,000 random floats it takes a tenth of the time of merging for k = 40."""


_MOST_DOUBLINGS = 46
"""Merges until a run is as long as any row in memory."""


Before = Callable[[Reg, Reg], Reg]
"""Whether an element that stands later belongs before another one."""


@dataclass(frozen=True)
class MergeSortSchedule:
    """``run``: elements sorted in registers before merging begins; 0: no merging, each element is inserted among the first k so far."""

    run: int


class MergeSort:
    """The family: params ``axis``, ``k``, ``largest``; the int64 positions of the first k elements of each row along axis in sorted order.

    Equal elements stay in order; NaN counts as the largest. A bottom-up merge sort between the halves of scratch rows of keys and positions; since
    nothing beyond the first k of a run can come to the front, runs are cut to k elements. For small k, insertion: most elements only lose
    against the last of the first k.
    """

    name = "merge_sort"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors."""
        return workload.inputs[0].type.block == workload.output.block == 1

    def heuristic(self, workload: Workload, target: Target) -> MergeSortSchedule:
        k, length = workload.dim("k"), workload.inputs[0].type.shape[workload.int("axis")]
        few = isinstance(k, int) and k <= _INSERTED and (not isinstance(length, int) or 4 * k <= length)
        return MergeSortSchedule(0 if few else 4)

    def space(self, workload: Workload, target: Target) -> Sequence[MergeSortSchedule]:
        chosen = self.heuristic(workload, target)
        return [chosen, *(MergeSortSchedule(run) for run in (4, 0, 1, 2, 8) if run != chosen.run)]

    def pack(self, workload: Workload, schedule: MergeSortSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: MergeSortSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        (x,), operands, out = declare_buffers(b, workload)
        if workload.output.elements == 0:
            return b.function()
        epilogue = Epilogue(b, workload, operands)
        axis, k = workload.int("axis"), workload.dim("k")
        shape = workload.inputs[0].type.shape
        length, strides = shape[axis], physical_strides(workload.inputs[0].type)
        # Merging goes to and fro between the halves of each buffer.
        size = length if schedule.run == 0 else length * 2
        rows = _Rows(b.buffer("keys", x.dtype, size, Access.SCRATCH), b.buffer("positions", DType.INT64, size, Access.SCRATCH))
        sorter = _Sorter(b, self.order(b, x.dtype, bool(workload.attrs["largest"])), rows, length, k)
        others = [*shape[:axis], *shape[axis + 1 :]]
        with parallel_nest(b, others, workload.threads) as point:
            start: Dim = 0
            for index, stride in zip(point, [*strides[:axis], *strides[axis + 1 :]], strict=True):
                start = start + index * stride
            if schedule.run == 0:
                sorter.insert_all(x, start, strides[axis])
                first: Dim = 0
            else:
                sorter.runs(x, start, strides[axis], schedule.run)
                first = sorter.merge_all(schedule.run)
            with b.loop("o", 0, k) as loop:
                position = b.load(rows.positions, first + loop.var)
                epilogue.store(out, position, [*point[:axis], loop.var, *point[axis:]])
        return b.function()

    def order(self, b: LoopBuilder, dtype: DType, largest: bool) -> Before:
        """How elements compare."""

        def before(later: Reg, earlier: Reg) -> Reg:
            wins = b.op("gt" if largest else "lt", later, earlier)
            if dtype.is_float:
                nan, other = (later, earlier) if largest else (earlier, later)
                wins = b.op("or", wins, b.op("and", b.op("isnan", nan), b.op("not", b.op("isnan", other))))
            return wins

        return before

    def flops(self, workload: Workload) -> Dim:
        return 0


class MergeSortTexts(MergeSort):
    """The family for strings, all of them, in ascending order of their code points."""

    name = "merge_sort_texts"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major tensors, of which every element is asked for: no place is read that was not written."""
        whole = workload.dim("k") == workload.inputs[0].type.shape[workload.int("axis")]
        return super().supports(workload, target) and whole and not workload.attrs["largest"]

    def order(self, b: LoopBuilder, dtype: DType, largest: bool) -> Before:
        texts = Texts(b)
        return lambda later, earlier: texts.less(b.bind(later), b.bind(earlier))


@dataclass(frozen=True)
class _Rows:
    """Elements and their positions, in scratch."""

    keys: Buffer
    positions: Buffer


class _Sorter:
    """Writes the passes over one row of ``length`` elements, of which the first ``k`` are wanted, in ``rows``."""

    def __init__(self, b: LoopBuilder, before: Before, rows: _Rows, length: Dim, k: Dim) -> None:
        self._b = b
        self._before = before
        self._rows = rows
        self._length = length
        self._k = k

    def runs(self, x: Buffer, start: Dim, stride: Dim, size: int) -> None:
        """Copy a row of x, each ``size`` elements sorted by exchanges of neighbours in registers."""
        b, whole, rest = self._b, floordiv(self._length, size), mod(self._length, size)
        with b.loop("r", 0, whole) as loop:
            self._run(x, start, stride, loop.var * size, size)
        for left in range(1, size):
            if isinstance(rest, int) and left != rest:
                continue
            with b.if_less(left - 1, rest), b.if_less(rest, left + 1):
                self._run(x, start, stride, whole * size, left)

    def _run(self, x: Buffer, start: Dim, stride: Dim, first: Dim, size: int) -> None:
        b = self._b
        keys = [b.load(x, start + (first + i) * stride) for i in range(size)]
        positions = [b.index_value(first + i) for i in range(size)]
        for end in range(1, size):
            for i in range(end, 0, -1):
                swap = self._before(keys[i], keys[i - 1])
                for values in (keys, positions):
                    low, high = values[i - 1], values[i]
                    values[i - 1], values[i] = b.op("select", swap, high, low), b.op("select", swap, low, high)
        for i, (key, position) in enumerate(zip(keys, positions, strict=True)):
            b.store(self._rows.keys, first + i, key)
            b.store(self._rows.positions, first + i, position)

    def insert_all(self, x: Buffer, start: Dim, stride: Dim) -> None:
        """Leave the first k elements of a row of x in order."""
        b, k, to = self._b, self._k, self._rows
        with b.loop("i", 0, k) as loop:
            key, position = self._insert(b.load(x, start + loop.var * stride), b.index_value(loop.var), loop.var)
            b.store(to.keys, loop.var, key)
            b.store(to.positions, loop.var, position)
        with b.loop("i", k, self._length) as loop:
            key = b.load(x, start + loop.var * stride)
            wins = b.bind(b.cast(self._before(key, b.load(to.keys, k - 1)), DType.INT64))
            with b.if_less(0, wins):
                self._insert(key, b.index_value(loop.var), k)

    def _insert(self, key: Reg, position: Reg, count: Dim) -> tuple[Reg, Reg]:
        """Put an element in its place among ``count`` sorted ones, moving those behind it by one; what falls off the end."""
        b, to = self._b, self._rows
        placed = b.const(False, VecType(DType.BOOL, 1))
        with b.loop("j", 0, count, carried=[key, position, placed]) as loop:
            key, position, placed = loop.carried
            old, old_position = b.load(to.keys, loop.var), b.load(to.positions, loop.var)
            placed = b.op("or", placed, self._before(key, old))
            b.store(to.keys, loop.var, b.op("select", placed, key, old))
            b.store(to.positions, loop.var, b.op("select", placed, position, old_position))
            loop.yield_([b.op("select", placed, old, key), b.op("select", placed, old_position, position), placed])
        key, position, _ = loop.results
        return key, position

    def merge_all(self, width: int) -> Dim:
        """Merge sorted runs of ``width`` elements until one is left; where in the rows it begins."""
        b, length = self._b, self._length
        start = [b.const(width, _INDEX), b.const(0, _INDEX)]
        with b.loop("w", 0, _MOST_DOUBLINGS if not isinstance(length, int) else _doublings(width, length), carried=start) as loop:
            run, source = (b.bind(value) for value in loop.carried)
            with b.if_less(run, length):
                self._merge(source, -source + length, run)
            again = b.op("lt", loop.carried[0], b.index_value(length))
            target = b.op("select", again, b.index_value(-source + length), loop.carried[1])
            loop.yield_([b.op("add", loop.carried[0], loop.carried[0]), target])
        return b.bind(loop.results[1])

    def _merge(self, source: Dim, target: Dim, width: Dim) -> None:
        """Merge neighbouring runs of ``width`` elements pairwise, from one half of the rows to the other; a last run without a neighbour is
        merged with nothing."""
        b, length, rows, kept = self._b, self._length, self._rows, minimum(width, self._k)
        with b.loop("m", 0, floordiv(width * 2 + length - 1, width * 2)) as pair:
            left = pair.var * width * 2
            right = minimum(left + width, length)
            left_end, right_end = minimum(left + kept, right), minimum(right + kept, length)
            size = minimum(left_end - left + right_end - right, self._k)
            ends = [b.index_value(end) for end in (left_end, right_end)]
            limits = [number(b, length - 1, DType.INT64), b.const(1, _INDEX)]
            with b.loop("o", left, left + size, carried=[b.index_value(left), b.index_value(right)]) as loop:
                i, j = loop.carried
                at = [b.bind(b.op("min", place, limits[0])) for place in (i, j)]
                keys = [b.load(rows.keys, source + place) for place in at]
                positions = [b.load(rows.positions, source + place) for place in at]
                wins = b.op("or", self._before(keys[1], keys[0]), b.op("ge", i, ends[0]))
                taken = b.op("and", wins, b.op("lt", j, ends[1]))
                b.store(rows.keys, target + loop.var, b.op("select", taken, keys[1], keys[0]))
                b.store(rows.positions, target + loop.var, b.op("select", taken, positions[1], positions[0]))
                step = b.op("select", taken, limits[1], b.const(0, _INDEX))
                loop.yield_([b.op("sub", b.op("add", i, limits[1]), step), b.op("add", j, step)])


def _doublings(width: int, length: int) -> int:
    """How often runs of ``width`` are merged until one of ``length`` elements is left."""
    return max(0, -(-length // width) - 1).bit_length()


register_family(MergeSort())
register_family(MergeSortTexts())
