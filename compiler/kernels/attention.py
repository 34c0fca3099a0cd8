"""Attention in one kernel: no score leaves a worker's scratch.

A task is some rows of queries of the heads that share one head of keys. The keys come panel by panel, brought into lanes once for all rows;
the scores of a row with all keys become weights where they lie, and the values are summed with them. The sums are divided by the weights'
total as they are stored; where weights are changed first, these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, ceildiv, floordiv, minimum, product
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.narrow import widen
from compiler.ir.scalar import Arg, Array, Call, Const, Scalar
from compiler.ir.types import DType, compute_dtype
from compiler.kernels.base import Epilogue, Workload, declare_buffers, register_family
from compiler.kernels.folds import LONGEST_FLOAT32_CHAIN, Fold, accumulator_dtype, identity
from compiler.kernels.loops import Chunk, fewer, load_as, mask_tail, pack_plain, unflatten, used_lanes, vector_loop
from compiler.kernels.products import Counts, Matrix, Products
from compiler.kernels.tiles import imbalance, panel_tiles, register_rows, row_tiles, sections, supposed
from compiler.target import Target

_MOST_ROWS = 256
"""Rows of scores in a task: bringing the keys into lanes is then less than a tenth of using them."""

_MOST_IN_TILE = 14
"""Rows of a register tile, as of other products."""

_LINE_BYTES = 64
"""Of a cache: rows of scores are an odd number of lines apart, so that those of a register tile do not meet in a few sets."""

_ROWS_OF_WEIGHTS = 4
"""Rows that become weights together: their exponentials, and the folds across lanes at the ends, hide each other's latency (7 to 10 % of a kernel
with 25 to 77 keys; AMD EPYC, Zen 4)."""


@dataclass(frozen=True)
class AttentionSchedule:
    """``rows`` of queries in a task; ``scores`` and ``sums``: the largest register tile of the two products, rows by vectors of ``lanes``."""

    rows: int
    scores: tuple[int, int]
    sums: tuple[int, int]
    lanes: int


@dataclass(frozen=True)
class _Shape:
    """The sizes of a workload. ``groups`` of ``repeats`` heads share keys; ``rows`` are a head's queries.

    Where each head has one query only, the heads of a group are its rows (``swapped``).
    """

    batch: Dim
    groups: Dim
    repeats: int
    rows: Dim
    keys: Dim
    size: Dim
    columns: Dim
    swapped: bool
    dtype: DType


def _shape(workload: Workload) -> _Shape:
    (batch, heads, rows, size), (_, groups, keys, columns) = (workload.inputs[n].type.shape for n in (0, 2))
    repeats = heads // groups if isinstance(heads, int) and isinstance(groups, int) and groups else 1
    swapped = rows == 1 and repeats > 1
    if swapped:
        repeats, rows = 1, repeats
    return _Shape(batch, groups, repeats, rows, keys, size, columns, swapped, workload.anchor.dtype)


class Attention:
    """The family: params ``score``, ``weight``, which may be absent, and ``perm``, inputs as the operator's, each in whatever strides it has."""

    name = "attention"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Row-major operands; queries, keys and values computed in one type of 32 or 64 bits."""
        types = [operand.type for operand in workload.inputs]
        same = {compute_dtype(t.dtype) for t in types[:3]} == {workload.anchor.dtype}
        return same and workload.anchor.dtype in (DType.FLOAT32, DType.FLOAT64) and all(t.block == 1 for t in (*types, workload.output))

    def heuristic(self, workload: Workload, target: Target) -> AttentionSchedule:
        """Tasks whose scores fit half of the second cache, small enough to leave no worker idle."""
        shape = _shape(workload)
        lanes = target.vector_bits // (8 * shape.dtype.itemsize)
        vectors, rows = -(-supposed(shape.keys) // lanes), supposed(shape.rows)
        scores = _tile(target, vectors, rows)
        row_bytes = max(1, vectors * lanes * shape.dtype.itemsize * shape.repeats)
        most = min(_MOST_ROWS, max(scores[0], target.l2_bytes // 2 // row_bytes))
        sums = _tile(target, -(-supposed(shape.columns) // lanes), rows)
        return AttentionSchedule(_balanced(shape, rows, most, scores[0], workload.threads), scores, sums, lanes)

    def space(self, workload: Workload, target: Target) -> Sequence[AttentionSchedule]:
        first = self.heuristic(workload, target)
        tiles = [(register_rows(target, nv), nv) for nv in (1, 2, 3)]
        rows = sorted({first.rows, -(-first.rows // 2), -(-first.rows // 4)})
        found = [AttentionSchedule(most, scores, sums, first.lanes) for most in rows for scores in tiles for sums in tiles]
        return list(dict.fromkeys([first, *found]))

    def pack(self, workload: Workload, schedule: AttentionSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: AttentionSchedule, target: Target, name: str) -> Function:
        b = LoopBuilder(name)
        inputs, operands, out = declare_buffers(b, workload)
        if workload.output.elements != 0:
            _Writer(b, workload, schedule, inputs, out, Epilogue(b, workload, operands)).write()
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        batch, heads, rows, size = workload.inputs[0].type.shape
        keys, columns = workload.inputs[2].type.shape[2:]
        return batch * heads * rows * keys * (size * 2 + columns * 2 + 12)


def _tile(target: Target, vectors: int, rows: int) -> tuple[int, int]:
    """The register tile for rows of so many vectors."""
    nv = min(2, max(1, vectors))
    return max(1, min(register_rows(target, nv), _MOST_IN_TILE, rows)), nv


def _balanced(shape: _Shape, rows: int, most: int, tile: int, threads: int) -> int:
    """Rows of a task: as many as are allowed that leave no worker idle for a tenth of the time."""
    heads = _known_product((shape.batch, shape.groups))
    fewest = -(-max(1, rows) // most)
    for parts in range(fewest, max(fewest, rows // tile) + 1):
        if imbalance([heads * parts], threads) <= 1.1:
            return -(-max(1, rows) // parts)
    return -(-max(1, rows) // fewest)


def _known_product(dims: Sequence[Dim]) -> int:
    """The product of the dims that are known, and not 0."""
    total = 1
    for dim in dims:
        total *= dim if isinstance(dim, int) and dim else 1
    return total


@dataclass(frozen=True)
class _Task:
    """The ``rows`` from ``first`` on of each head of a group."""

    batch: Dim
    group: Dim
    first: Dim
    rows: Dim


def _expression(workload: Workload, name: str) -> Scalar:
    """The parameter ``score`` or ``weight``, of the operands as they arrive."""
    found = workload.attrs[name]
    if not isinstance(found, Arg | Call | Const):
        raise InternalError(f"{found!r} is not a scalar expression", where="compiler.kernels.attention")
    return widen(found, {1 + i: Arg(1 + i, o.type.dtype) for i, o in enumerate(workload.inputs[3:])})


class _Writer:
    """Writes the loops of one kernel."""

    def __init__(
        self, b: LoopBuilder, workload: Workload, schedule: AttentionSchedule, inputs: Sequence[Buffer], out: Buffer, epilogue: Epilogue
    ) -> None:
        self._b = b
        self._schedule = schedule
        self._inputs = inputs
        self._views = [operand.strided for operand in workload.inputs]
        self._out = out
        self._epilogue = epilogue
        self._shape = shape = _shape(workload)
        self._lanes = lanes = schedule.lanes
        self._width = ceildiv(shape.keys, lanes) * lanes
        line = max(lanes, _LINE_BYTES // shape.dtype.itemsize)
        self._stride = (floordiv(ceildiv(shape.keys, line), 2) * 2 + 1) * line
        self._perm = workload.ints("perm")
        self._score = _expression(workload, "score")
        self._weight = _expression(workload, "weight") if "weight" in workload.attrs else None
        self._products = Products(b, shape.dtype, lanes)
        rows = fewer(schedule.rows, shape.rows) * shape.repeats
        self._scores = self._scratch("scores", self._stride * rows)
        self._scales = self._scratch("scales", rows)
        self._size = ceildiv(shape.size, lanes) * lanes
        self._queries = None if inputs[0].dtype is shape.dtype else self._scratch("queries", self._size * rows)
        self._keys = None if self._in_lanes(1, 2) else self._scratch("keys", shape.size * self._panel(schedule.scores[1], shape.keys))
        self._values = None if self._in_lanes(2, 3) else self._scratch("values", shape.keys * self._panel(schedule.sums[1], shape.columns))

    def _scratch(self, name: str, size: Dim) -> Buffer:
        return self._b.buffer(name, self._shape.dtype, size, Access.SCRATCH)

    def _in_lanes(self, operand: int, axis: int) -> bool:
        """Whether an operand can be read in vectors along an axis where it lies."""
        return self._inputs[operand].dtype is self._shape.dtype and self._views[operand].strides[axis] == 1

    def _panel(self, vectors: int, extent: Dim) -> int:
        """Elements of a row of a panel."""
        return fewer(vectors, extent, self._lanes) * self._lanes

    def write(self) -> None:
        """Emit everything."""
        shape, most = self._shape, self._schedule.rows
        if isinstance(shape.rows, int):
            for section in sections(shape.rows, most):
                with self._tasks(section.count) as (batch, group, part):
                    self._write_task(_Task(batch, group, part * section.size + section.start, section.size))
        else:
            with self._tasks(ceildiv(shape.rows, most)) as (batch, group, part):
                self._write_task(_Task(batch, group, part * most, minimum(most, shape.rows - part * most)))

    @contextmanager
    def _tasks(self, parts: Dim) -> Iterator[list[Dim]]:
        extents = (self._shape.batch, self._shape.groups, parts)
        with self._b.loop("p", 0, product(extents), parallel=True) as task:
            yield unflatten(task.var, extents)

    def _write_task(self, task: _Task) -> None:
        b, shape = self._b, self._shape
        with self._each_head() as repeat:
            self._convert_queries(task, repeat)
        for first, counts in self._each_panel(shape.keys, self._schedule.scores[1]):
            keys = self._in_memory(1, task.batch, task.group, 2).moved(0, first)
            if self._keys is not None:
                keys = self._products.bring(keys, shape.size, counts, self._keys)
            for repeat, row, rows in self._each_tile(task, self._schedule.scores[0]):
                self._write_scores(task, repeat, row, rows, keys, first, counts)
        for tiles in row_tiles(task.rows * shape.repeats, _ROWS_OF_WEIGHTS):
            with b.loop("r", 0, tiles.count) as each:
                self._write_weights(each.var * tiles.size + tiles.start, tiles.size)
        if self._weight is not None:
            for repeat, row, rows in self._each_tile(task, _ROWS_OF_WEIGHTS):
                self._change_weights(task, repeat, row, rows, self._weight)
        for first, counts in self._each_panel(shape.columns, self._schedule.sums[1]):
            values = self._in_memory(2, task.batch, task.group, 3).moved(0, first)
            if self._values is not None:
                values = self._products.bring(values, shape.keys, counts, self._values)
            for repeat, row, rows in self._each_tile(task, self._schedule.sums[0]):
                self._write_sums(task, repeat, row, rows, values, first, counts)

    # -- loops --------------------------------------------------------------------------------------------------

    @contextmanager
    def _each_head(self) -> Iterator[Dim]:
        """The heads of a group, as loops."""
        if self._shape.repeats == 1:
            yield 0
        else:
            with self._b.loop("g", 0, self._shape.repeats) as loop:
                yield loop.var

    def _each_panel(self, extent: Dim, most: int) -> Iterator[tuple[Dim, Counts]]:
        """Panels of at most so many vectors: their first elements and the lanes in use, inside a loop each."""
        lanes, vectors = self._lanes, ceildiv(extent, self._lanes)
        for tiles in panel_tiles(extent, lanes, most, padded=False):
            with self._b.loop("v", 0, tiles.count) as loop:
                first = (loop.var * tiles.size + tiles.start) * lanes
                counts: list[Dim | None] = [None] * tiles.size
                if tiles.ragged:
                    counts = [used_lanes(first, extent, lanes)]
                elif isinstance(extent, int) and tiles.start + tiles.count * tiles.size == vectors:
                    counts[-1] = extent % lanes or None
                yield first, counts

    def _each_tile(self, task: _Task, most: int) -> Iterator[tuple[Dim, Dim, int]]:
        """Tiles of the rows of each head of a task: the head in its group, the first row and their number, inside loops."""
        with self._each_head() as repeat:
            for tiles in row_tiles(task.rows, most):
                with self._b.loop("m", 0, tiles.count) as loop:
                    yield repeat, loop.var * tiles.size + tiles.start, tiles.size

    # -- the three parts ----------------------------------------------------------------------------------------

    def _write_scores(self, task: _Task, repeat: Dim, row: Dim, rows: int, keys: Matrix, first: Dim, counts: Counts) -> None:
        b, lanes = self._b, self._lanes
        products = self._products.multiply(self._rows_of_queries(task, repeat, row), keys, rows, counts, self._shape.size)
        lowest = b.const(identity("max", self._shape.dtype), VecType(self._shape.dtype, lanes))
        loads: dict[object, Reg] = {}
        for r in range(rows):
            head, query = self._head(task, repeat, row + r)
            for v, count in enumerate(counts):
                key = first + v * lanes
                others = [self._element(n, (task.batch, head, query, key), count, loads) for n in range(3, len(self._inputs))]
                score = b.scalar(self._score, [products[r * len(counts) + v], *others])
                score = mask_tail(b, score, lanes if count is None else count, lowest)
                b.store(self._scores, (repeat * task.rows + row + r) * self._stride + key, score)

    def _write_weights(self, first: Dim, rows: int) -> None:
        """Scores less the largest one of their row, as exponentials; what their total is to be multiplied with to give one."""
        b, lanes, dtype = self._b, self._lanes, self._shape.dtype
        extent, stride = self._width, self._stride
        unroll = min(4, max(1, -(-extent // (lanes * LONGEST_FLOAT32_CHAIN)))) if isinstance(extent, int) else 1
        largest = Fold(b, "max", dtype)
        total = Fold(b, "sum", accumulator_dtype("sum", dtype, floordiv(extent, lanes * unroll)))

        def scores(position: Dim, _: Dim) -> list[Reg]:
            return [b.load(self._scores, (first + r) * stride + position, lanes) for r in range(rows)]

        def weights(position: Dim, _: Dim) -> list[Reg]:
            found = [b.op("exp", b.op("sub", score, top)) for score, top in zip(scores(position, lanes), tops, strict=True)]
            for r, weight in enumerate(found):
                b.store(self._scores, (first + r) * stride + position, weight)
            return [b.cast(weight, total.dtype) for weight in found]

        found = largest.join(largest.along(extent, lanes, [[largest.start(lanes)] * rows] * unroll, scores))
        tops = [b.splat(largest.across(top), lanes) for top in found]
        sums = total.join(total.along(extent, lanes, [[total.start(lanes)] * rows] * unroll, weights))
        one = b.const(1, VecType(total.dtype, 1))
        for r, value in enumerate(sums):
            # The largest score's weight is one, so a smaller total is that of no keys at all.
            b.store(self._scales, first + r, b.cast(b.op("div", one, b.op("max", total.across(value), one)), dtype))

    def _change_weights(self, task: _Task, repeat: Dim, row: Dim, rows: int, weight: Scalar) -> None:
        """Weights of which each row's total is one, as what the values are summed with."""
        b = self._b

        def change(chunks: list[Chunk]) -> None:
            for position, count in chunks:
                loads: dict[object, Reg] = {}
                for r in range(rows):
                    place = repeat * task.rows + row + r
                    head, query = self._head(task, repeat, row + r)
                    scale = b.load(self._scales, place, self._lanes, stride=0)
                    share = b.op("mul", b.load(self._scores, place * self._stride + position, self._lanes), scale)
                    others = [self._element(n, (task.batch, head, query, position), count, loads) for n in range(3, len(self._inputs))]
                    b.store(self._scores, place * self._stride + position, b.scalar(weight, [share, *others]))

        vector_loop(b, self._shape.keys, self._lanes, 1, change)

    def _write_sums(self, task: _Task, repeat: Dim, row: Dim, rows: int, values: Matrix, first: Dim, counts: Counts) -> None:
        b, lanes = self._b, self._lanes
        place = repeat * task.rows + row
        weights = Matrix(self._scores, place * self._stride, self._stride, 1)
        sums = self._products.multiply(weights, values, rows, counts, self._shape.keys)
        loads: dict[object, Reg] = {}
        for r in range(rows):
            scale = b.load(self._scales, place + r, lanes, stride=0) if self._weight is None else None
            head, query = self._head(task, repeat, row + r)
            for v, count in enumerate(counts):
                at = (task.batch, head, query, first + v * lanes)
                result = sums[r * len(counts) + v] if scale is None else b.op("mul", sums[r * len(counts) + v], scale)
                self._epilogue.store(self._out, result, [at[axis] for axis in self._perm], count, loads, self._perm.index(3))

    # -- operands -----------------------------------------------------------------------------------------------

    def _head(self, task: _Task, repeat: Dim, row: Dim) -> tuple[Dim, Dim]:
        """The head and query of a task's row."""
        shape, row = self._shape, task.first + row
        return (task.group * shape.rows + row, 0) if shape.swapped else (task.group * shape.repeats + repeat, row)

    def _in_memory(self, operand: int, batch: Dim, head: Dim, lane_axis: int) -> Matrix:
        """The matrix of one head of an operand whose columns are along an axis, that is 2 or 3."""
        strides = self._views[operand].strides
        base = self._views[operand].offset + batch * strides[0] + head * strides[1]
        return Matrix(self._inputs[operand], base, strides[5 - lane_axis], strides[lane_axis])

    def _rows_in_memory(self, task: _Task, repeat: Dim) -> Matrix:
        """A task's rows of queries."""
        head, query = self._head(task, repeat, 0)
        matrix = self._in_memory(0, task.batch, head, 3).moved(query)
        strides = self._views[0].strides
        return Matrix(matrix.buffer, matrix.base, strides[1], strides[3]) if self._shape.swapped else matrix

    def _rows_of_queries(self, task: _Task, repeat: Dim, row: Dim) -> Matrix:
        if self._queries is None:
            return self._rows_in_memory(task, repeat).moved(row)
        return Matrix(self._queries, (repeat * task.rows + row) * self._size, self._size, 1)

    def _convert_queries(self, task: _Task, repeat: Dim) -> None:
        """Bring a task's queries into scratch in the type computed in, where they are of another: each is used for all keys."""
        b, target = self._b, self._queries
        if target is None:
            return
        source = self._rows_in_memory(task, repeat)
        with b.loop("r", 0, task.rows) as row:

            def convert(chunks: list[Chunk]) -> None:
                for position, count in chunks:
                    place = source.at(row.var, position)
                    value = load_as(b, self._shape.dtype, source.buffer, place, self._lanes, stride=source.column_step, count=count)
                    b.store(target, (repeat * task.rows + row.var) * self._size + position, value)

            vector_loop(b, self._shape.size, self._lanes, 1, convert)

    def _element(self, number: int, at: Sequence[Dim], count: Dim | None, loads: dict[object, Reg]) -> Reg:
        """The elements of an operand of the score, along the keys."""
        view = self._views[number]
        strides = [0 if dim == 1 else stride for dim, stride in zip(view.shape, view.strides, strict=True)]
        index = view.offset
        for position, stride in zip(at, strides, strict=True):
            index = index + position * stride
        if (number, index) not in loads:
            along = strides[3]
            loads[number, index] = self._b.load(self._inputs[number], index, self._lanes, stride=along, count=None if along == 0 else count)
        return loads[number, index]


register_family(Attention())
