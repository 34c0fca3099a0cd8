"""Linear attention: the loop over time inside one kernel, the state's columns in vectors.

Columns of a state never meet: a worker takes some vectors of columns of one head through all time steps. The state lies in the rows of
the output that it ends in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from compiler.ir.intexpr import Dim, floordiv, mod
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import pack_plain, vector_lanes
from compiler.kernels.tiles import sections, split_last
from compiler.target import Target

_CHAINS = 8
"""Independent sums that hide the latency of a multiply-add: two units of four cycles."""


@dataclass(frozen=True)
class LinearAttentionSchedule:
    """``nv`` vectors of columns side by side; ``queries`` that read the state in one pass; ``unroll`` rows of it in one iteration."""

    nv: int
    queries: int
    unroll: int


@dataclass(frozen=True)
class _Shape:
    """The sizes of a workload: batch, steps, heads, queries of a head, rows (K) and columns (V) of its state."""

    batch: Dim
    steps: Dim
    heads: int
    queries: int
    rows: int
    columns: int
    names: tuple[str, ...]


def _shape(workload: Workload) -> _Shape:
    names = workload.attrs["operands"]
    batch, steps, queries, rows = workload.inputs[0].type.shape
    heads, _, columns = workload.output.shape[1:]
    known = [dim for dim in (heads, queries, rows, columns) if isinstance(dim, int)]
    heads, queries, rows, columns = known
    return _Shape(batch, steps, heads, queries // max(heads, 1), rows, columns, tuple(map(str, names)) if isinstance(names, tuple) else ())


class LinearAttention:
    """The family. Inputs are those named by param ``operands``, as the operator's."""

    name = "linear_attention"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Float operands of one type; heads, rows and columns are known.

        The kernel reads its own result, so nothing may change it at the store.
        """
        dtype, types = workload.output.dtype, [*(o.type for o in workload.inputs), workload.output]
        plain = all(t.block == 1 and t.dtype is dtype for t in types)
        sizes = (*workload.inputs[0].type.shape[2:], workload.output.shape[1], workload.output.shape[3])
        return plain and all(isinstance(size, int) for size in sizes) and workload.stores_plainly and dtype in (DType.FLOAT32, DType.FLOAT64)

    def heuristic(self, workload: Workload, target: Target) -> LinearAttentionSchedule:
        """As many vectors as keep every worker busy and leave the sums of one pass in registers."""
        shape, lanes = _shape(workload), _lanes(workload, target)
        vectors = max(1, -(-shape.columns // lanes))
        share = max(1, vectors * (shape.batch if isinstance(shape.batch, int) else 1) * shape.heads // workload.threads)
        nv = max(1, min(4, vectors, share))
        return LinearAttentionSchedule(nv, max(1, min(shape.queries, target.vector_registers // 2 // nv)), 2)

    def space(self, workload: Workload, target: Target) -> Sequence[LinearAttentionSchedule]:
        first, shape = self.heuristic(workload, target), _shape(workload)
        found = [first]
        for nv in (1, 2, 4, 8):
            for queries in sorted({1, first.queries, shape.queries}):
                if nv * (queries + 1) < target.vector_registers and queries:
                    found += [LinearAttentionSchedule(nv, queries, unroll) for unroll in (1, 2, 4)]
        return list(dict.fromkeys(found))

    def pack(self, workload: Workload, schedule: LinearAttentionSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        return pack_plain(workload, constants)

    def build(self, workload: Workload, schedule: LinearAttentionSchedule, target: Target, name: str) -> Function:
        b, shape = LoopBuilder(name), _shape(workload)
        inputs, _, out = declare_buffers(b, workload)
        lanes = _lanes(workload, target)
        tail = shape.columns % lanes or None
        found = sections(-(-shape.columns // lanes) if shape.heads else 0, schedule.nv)
        buffers = dict(zip(shape.names, inputs, strict=True))
        for section in split_last(found) if tail and found else found:
            ends = section.start + section.count * section.size == -(-shape.columns // lanes)
            with b.loop("p", 0, shape.batch * shape.heads * section.count, parallel=True) as part:
                head = floordiv(part.var, section.count)
                first = (mod(part.var, section.count) * section.size + section.start) * lanes
                counts = [tail if ends and v == section.size - 1 else None for v in range(section.size)]
                _Writer(b, workload, schedule, buffers, out, head, [(first + v * lanes, count) for v, count in enumerate(counts)], lanes).write()
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        shape = _shape(workload)
        passes = 2 + 2 * shape.queries + ("decay" in shape.names) + 2 * ("beta" in shape.names)
        return shape.batch * shape.steps * shape.heads * shape.rows * shape.columns * passes


def _lanes(workload: Workload, target: Target) -> int:
    return vector_lanes(target, [workload.output.dtype], _shape(workload).columns)


Column = tuple[Dim, int | None]
"""A vector's first column and how many of its lanes are in use, where not all are."""


class _Writer:
    """Writes all time steps of one head for some vectors of columns. ``head`` counts the heads of all batches."""

    def __init__(
        self,
        b: LoopBuilder,
        workload: Workload,
        schedule: LinearAttentionSchedule,
        buffers: Mapping[str, Buffer],
        out: Buffer,
        head: Dim,
        columns: Sequence[Column],
        lanes: int,
    ) -> None:
        self._b = b
        self._shape = shape = _shape(workload)
        self._types = dict(zip(shape.names, (operand.type for operand in workload.inputs), strict=True))
        self._schedule = schedule
        self._buffers = buffers
        self._out = out
        self._head = head
        self._columns = columns
        self._lanes = lanes
        self._result = head * ((shape.steps * shape.queries + shape.rows) * shape.columns)
        self._state = self._result + shape.steps * shape.queries * shape.columns

    def write(self) -> None:
        b, shape = self._b, self._shape
        with b.loop("k", 0, shape.rows) as row:
            source = (self._head * shape.rows + row.var) * shape.columns
            self._store(self._state + row.var * shape.columns, self._vectors(self._buffers["state"], source))
        with b.loop("t", 0, shape.steps) as step:
            self._step(step.var)

    def _step(self, time: Dim) -> None:
        """The first pass updates the state and serves the first queries; others read what it left."""
        shape, most = self._shape, self._schedule.queries
        update = self._update(time)
        for first in range(0, shape.queries, most):
            queries = range(first, min(first + most, shape.queries))
            sums = self._pass(time, queries, update if first == 0 else None)
            for number, query in enumerate(queries):
                row = self._result + (time * shape.queries + query) * shape.columns
                self._store(row, sums[number * len(self._columns) : (number + 1) * len(self._columns)])

    def _update(self, time: Dim) -> list[Reg]:
        """What each column adds to the state, times the key: the value, or how far it is from what the state gives for the key."""
        b, shape = self._b, self._shape
        value = self._vectors(self._buffers["value"], self._at("value", time))
        if "beta" not in shape.names:
            return value
        held = self._over_rows(len(value), lambda row, sums: self._held(time, row, sums))
        rate = self._every_lane("beta", self._at("beta", time))
        return [b.op("mul", rate, b.op("sub", wanted, got)) for wanted, got in zip(value, held, strict=True)]

    def _held(self, time: Dim, row: Dim, sums: list[Reg]) -> list[Reg]:
        key = self._every_lane("key", self._at("key", time) + row)
        return [self._b.fma(key, element, total) for element, total in zip(self._decayed(time, row), sums, strict=True)]

    def _decayed(self, time: Dim, row: Dim) -> list[Reg]:
        """A row of the state before the step, times its decay."""
        elements = self._vectors(self._out, self._state + row * self._shape.columns)
        if "decay" not in self._shape.names:
            return elements
        each = self._width("decay") > 1
        decay = self._every_lane("decay", self._at("decay", time) + (row if each else 0))
        return [self._b.op("mul", element, decay) for element in elements]

    def _pass(self, time: Dim, queries: Sequence[int], update: Sequence[Reg] | None) -> list[Reg]:
        """The sums of the state's rows times those of queries, by query and vector; with ``update`` the rows are renewed first."""
        b, shape, width = self._b, self._shape, len(self._columns)

        def add(row: Dim, sums: list[Reg]) -> list[Reg]:
            place = self._state + row * shape.columns
            if update is None:
                elements = self._vectors(self._out, place)
            else:
                key = self._every_lane("key", self._at("key", time) + row)
                elements = [b.fma(key, new, old) for new, old in zip(update, self._decayed(time, row), strict=True)]
                self._store(place, elements)
            found = []
            for number, query in enumerate(queries):
                factor = self._every_lane("query", self._at("query", time) + (query * shape.rows + row))
                found += [b.fma(factor, element, sums[number * width + v]) for v, element in enumerate(elements)]
            return found

        return self._over_rows(len(queries) * width, add)

    def _over_rows(self, count: int, add: Callable[[Dim, list[Reg]], list[Reg]]) -> list[Reg]:
        """``count`` vectors summed by ``add`` over all rows of the state, in as many chains as hide its latency."""
        b, unroll = self._b, self._schedule.unroll
        chains = min(unroll, max(1, _CHAINS // max(count, 1)))
        zero = b.const(0, VecType(self._out.dtype, self._lanes))
        sums = [[zero] * count for _ in range(chains)]

        def rows(first: Dim, number: int) -> None:
            for row in range(number):
                sums[row % chains] = add(first + row, sums[row % chains])

        blocks, rest = divmod(self._shape.rows, unroll)
        if blocks:
            with b.loop("k", 0, blocks, carried=[total for chain in sums for total in chain]) as loop:
                sums = [list(loop.carried[c * count : (c + 1) * count]) for c in range(chains)]
                rows(loop.var * unroll, unroll)
                loop.yield_([total for chain in sums for total in chain])
            sums = [list(loop.results[c * count : (c + 1) * count]) for c in range(chains)]
        rows(blocks * unroll, rest)
        total = sums[0]
        for chain in sums[1:]:
            total = [b.op("add", left, right) for left, right in zip(total, chain, strict=True)]
        return total

    # -- memory -------------------------------------------------------------------------------------------------

    def _width(self, name: str) -> int:
        """Elements of one head in one step of an operand; one where all heads share it."""
        return max(1, self._row(name) // max(1, self._shape.heads))

    def _row(self, name: str) -> int:
        """Elements of all heads in one step of an operand."""
        return prod(dim for dim in self._types[name].shape[2:] if isinstance(dim, int))

    def _at(self, name: str, time: Dim) -> Dim:
        """Where the head's elements of a step begin in an operand."""
        shape, width = self._shape, self._width(name)
        shared = self._row(name) == 1
        step = floordiv(self._head, shape.heads) * shape.steps + time
        return step if shared else (step * shape.heads + mod(self._head, shape.heads)) * width

    def _vectors(self, buffer: Buffer, row: Dim) -> list[Reg]:
        """The columns' elements of a row."""
        return [self._b.load(buffer, row + first, self._lanes, count=count) for first, count in self._columns]

    def _every_lane(self, name: str, index: Dim) -> Reg:
        return self._b.load(self._buffers[name], index, self._lanes, stride=0)

    def _store(self, row: Dim, values: Sequence[Reg]) -> None:
        for (first, count), value in zip(self._columns, values, strict=True):
            self._b.store(self._out, row + first, value, count=count)


register_family(LinearAttention())
