"""Recurrent cells: the loop over time inside one kernel, the gates of a unit fused with the sums they are made of.

A time step needs all of the step before, and workers meet only between kernels; so the workers share the batch and the directions, and
the hidden units of one sequence stay with one worker. Constant recurrent weights are packed, for each direction, stage and tile of
units, into panels ``[k][gate][nv * lanes]``, read once a step from the first byte to the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.recurrence import QUANTIZED_STEPS, Read, Stage, stages_from, state_rows
from compiler.ir.scalar import Array
from compiler.ir.types import DType
from compiler.kernels.base import Workload, declare_buffers, register_family
from compiler.kernels.loops import number, pack_plain, vector_lanes
from compiler.kernels.tiles import Section, row_tiles, sections, split_last
from compiler.target import Target

_CHAINS = 8
"""Independent sums that hide the latency of a multiply-add: two units of four cycles."""


@dataclass(frozen=True)
class RecurrenceSchedule:
    """``mr`` sequences by ``nv`` vectors of units side by side; ``unroll`` units of the old state in one iteration; ``lanes`` of a vector."""

    mr: int
    nv: int
    unroll: int
    lanes: int


@dataclass(frozen=True)
class _Shape:
    """The sizes of a workload and what its params say."""

    time: Dim
    directions: int
    batch: Dim
    size: int
    names: tuple[str, ...]
    steps: tuple[tuple[Stage, ...], ...]
    reverse: tuple[bool, ...]

    @property
    def gates(self) -> int:
        """The most sums that one stage makes for a unit."""
        return max(len(stage.gates) for stages in self.steps for stage in stages)

    @property
    def columns(self) -> int:
        """Gates that are packed for a direction."""
        return sum(len(stage.gates) for stage in self.steps[0])


def _shape(workload: Workload) -> _Shape:
    names, steps, reverse = (workload.attrs[key] for key in ("operands", "steps", "reverse"))
    _, directions, batch, size = workload.output.shape
    return _Shape(
        time=workload.inputs[0].type.shape[0],
        directions=_known(directions),
        batch=batch,
        size=_known(size),
        names=tuple(map(str, names)) if isinstance(names, tuple) else (),
        steps=tuple(map(stages_from, steps)) if isinstance(steps, tuple) else (),
        reverse=tuple(map(bool, reverse)) if isinstance(reverse, tuple) else (),
    )


def _known(dim: Dim) -> int:
    """A size that ``supports`` asks to be known."""
    if not isinstance(dim, int):
        raise InternalError(f"a size of a recurrence is {dim}", where="compiler.kernels")
    return dim


class Recurrence:
    """The family. Inputs are those named by param ``operands``; params ``steps`` and ``reverse`` are as the operator's."""

    name = "recurrence"

    def supports(self, workload: Workload, target: Target) -> bool:
        """Float32 or float64 operands; directions, gates and units are known.

        The kernel reads its own result, so nothing may change it at the store.
        """
        dtype, types = workload.output.dtype, [*(o.type for o in workload.inputs), workload.output]
        plain = all(t.block == 1 and (t.dtype is dtype or not t.dtype.is_float) for t in types)
        sizes = (workload.output.shape[1], workload.output.shape[3], workload.inputs[0].type.shape[2])
        return plain and all(isinstance(size, int) for size in sizes) and workload.stores_plainly and dtype in (DType.FLOAT32, DType.FLOAT64)

    def heuristic(self, workload: Workload, target: Target) -> RecurrenceSchedule:
        """Four sums of each sequence, and as many sequences as the registers hold, for they share the weights."""
        shape, lanes = _shape(workload), _lanes(workload, target)
        nv = max(1, min(-(-shape.size // lanes), -(-4 // shape.gates)))
        most = (target.vector_registers - 1) // (shape.gates * nv + 1)
        if isinstance(shape.batch, int):
            most = min(most, shape.batch, -(-shape.batch * shape.directions // workload.threads))
        mr = 1 if "lengths" in shape.names else max(1, most)
        return RecurrenceSchedule(mr, nv, 4, lanes)

    def space(self, workload: Workload, target: Target) -> Sequence[RecurrenceSchedule]:
        first, shape = self.heuristic(workload, target), _shape(workload)
        found = [first]
        for mr in sorted({1, -(-first.mr // 2), first.mr}):
            for nv in sorted({1, 2, first.nv, 2 * first.nv}):
                if mr * nv * shape.gates < target.vector_registers:
                    lanes = {first.lanes, vector_lanes(target, [workload.output.dtype], shape.size)}
                    found += [RecurrenceSchedule(mr, nv, unroll, count) for count in sorted(lanes) for unroll in (2, 4, 8)]
        return list(dict.fromkeys(found))

    def pack(self, workload: Workload, schedule: RecurrenceSchedule, constants: Sequence[Array | None]) -> list[Array | None]:
        packed, number = pack_plain(workload, constants), _shape(workload).names.index("weights")
        weights = constants[number]
        if weights is not None:
            packed[number] = _pack_panels(weights, _shape(workload).steps, schedule)
        return packed

    def build(self, workload: Workload, schedule: RecurrenceSchedule, target: Target, name: str) -> Function:
        b, shape = LoopBuilder(name), _shape(workload)
        number = shape.names.index("weights")
        packed = workload.inputs[number].constant
        elements = shape.directions * shape.columns * shape.size * -(-shape.size // schedule.lanes) * schedule.lanes
        inputs, _, out = declare_buffers(b, workload, {number: elements} if packed else None)
        buffers = dict(zip(shape.names, inputs, strict=True))
        for section in row_tiles(shape.batch if shape.size else 0, schedule.mr):
            with b.loop("p", 0, shape.directions * section.count, parallel=True) as part:
                for direction in range(shape.directions):
                    writer = _Writer(b, workload, schedule, buffers, out, direction, packed=packed)
                    first = (part.var - direction * section.count) * section.size + section.start
                    if shape.directions == 1:
                        writer.write(first, section.size)
                        continue
                    before, after = (part.var, section.count) if direction == 0 else (section.count - 1, part.var)
                    with b.if_less(before, after):
                        writer.write(first, section.size)
        return b.function()

    def flops(self, workload: Workload) -> Dim:
        time, batch, columns = workload.inputs[0].type.shape
        return time * batch * columns * (2 * workload.output.shape[-1])


def _lanes(workload: Workload, target: Target) -> int:
    """The widest vectors there are, unless much more of them would be padding.

    One sequence at a time is bound by the reading of weights, which 512-bit loads do 10 % faster even where they compute no faster
    (96 units: 63 to 70 µs for 49 steps of an LSTM, 47 to 53 for a GRU; AMD EPYC, Zen 4).
    """
    size, dtype = _shape(workload).size, workload.output.dtype
    lanes = vector_lanes(target, [dtype], size)
    wide = 512 // (8 * dtype.itemsize)
    if not target.has("avx512f") or wide <= lanes:
        return lanes
    return wide if -(-size // wide) * wide * 10 <= -(-size // lanes) * lanes * 11 else lanes


def _pack_panels(weights: Array, steps: Sequence[Sequence[Stage]], schedule: RecurrenceSchedule) -> Array:
    """``[D, H, G*H]`` weights as panels; the units past the last are zero."""
    size, lanes = weights.shape[1], schedule.lanes
    vectors, panels = -(-size // lanes), []
    for matrix, stages in zip(weights, steps, strict=True):
        gates = matrix.reshape(size, matrix.shape[1] // max(size, 1), size)
        padded = np.pad(gates, ((0, 0), (0, 0), (0, vectors * lanes - size)))
        for stage in stages:
            for section in sections(vectors, schedule.nv):
                for tile in range(section.count):
                    start = (section.start + tile * section.size) * lanes
                    panels.append(padded[:, list(stage.gates), start : start + section.size * lanes].reshape(-1))
    return np.concatenate(panels)


class _Writer:
    """Writes one direction."""

    def __init__(
        self,
        b: LoopBuilder,
        workload: Workload,
        schedule: RecurrenceSchedule,
        buffers: Mapping[str, Buffer],
        out: Buffer,
        direction: int,
        *,
        packed: bool,
    ) -> None:
        self._b = b
        self._shape = shape = _shape(workload)
        self._types = dict(zip(shape.names, (operand.type for operand in workload.inputs), strict=True))
        self._schedule = schedule
        self._buffers = buffers
        self._out = out
        self._direction = direction
        self._packed = packed
        self._stages = shape.steps[direction]
        self._states = state_rows(self._stages)
        self._lanes = schedule.lanes
        self._scales: list[Reg] = []
        self._vectors = -(-shape.size // schedule.lanes)
        tail = shape.size % schedule.lanes
        self._tail = tail or None

    def write(self, first: Dim, rows: int) -> None:
        """All time steps of ``rows`` sequences from ``first`` on."""
        b, shape = self._b, self._shape
        sequences = [first + r for r in range(rows)]
        for name in self._states:
            for row in sequences:
                self._copy(self._buffers.get(name), (row + self._direction * shape.batch) * shape.size, self._place(name, 0, row))
        length = self._length(first)
        with b.loop("t", 0, length) as step:
            time = length - 1 - step.var if shape.reverse[self._direction] else step.var
            base = 0
            self._scales = [self._quantize(row) for row in sequences] if "quantized" in self._states else []
            for stage in self._stages:
                self._stage(stage, base, time, first, rows)
                base += len(stage.gates) * self._vectors
            for row in sequences:
                self._copy(self._out, self._place("out", time, row), self._place("hidden", 0, row))
        if "lengths" in self._buffers:
            with b.loop("t", length, shape.time) as step:
                for row in sequences:
                    self._copy(None, 0, self._place("out", step.var, row))

    def _length(self, first: Dim) -> Dim:
        """The steps of the sequence, which run-time lengths keep within the tensor."""
        lengths = self._buffers.get("lengths")
        if lengths is None:
            return self._shape.time
        b, index = self._b, VecType(DType.INT64, 1)
        value = b.cast(b.load(lengths, first), DType.INT64)
        return b.bind(b.op("max", b.op("min", value, number(b, self._shape.time, DType.INT64)), b.const(0, index)), "length")

    def _quantize(self, row: Dim) -> Reg:
        """Fills the quantised row of a sequence; its scale."""
        b, lanes, dtype = self._b, self._lanes, self._out.dtype
        source, to, whole = self._place("hidden", 0, row), self._place("quantized", 0, row), self._shape.size // lanes
        zero = b.const(0, VecType(dtype, lanes))

        def widened(bounds: Sequence[Reg], unit: Dim, count: int | None) -> list[Reg]:
            value = b.load(self._out, source + unit, lanes, count=count)
            return [b.op(op, bound, value) for op, bound in zip(("min", "max"), bounds, strict=True)]

        with b.loop("v", 0, whole, carried=[zero, zero]) as loop:
            loop.yield_(widened(loop.carried, loop.var * lanes, None))
        bounds = widened(loop.results, whole * lanes, self._tail) if self._tail else loop.results
        least, greatest = b.reduce("reduce_min", bounds[0]), b.reduce("reduce_max", bounds[1])
        scalar = VecType(dtype, 1)
        last = b.const(QUANTIZED_STEPS, scalar)
        step = b.op("div", b.op("sub", greatest, least), last)
        scale = b.op("select", b.op("lt", least, greatest), step, b.const(1, scalar))
        lowest = b.op("rint", b.op("div", least, scale))
        low, high, divisor = (b.splat(value, lanes) for value in (lowest, b.op("add", last, lowest), scale))

        def quantize(unit: Dim, count: int | None) -> None:
            steps = b.op("rint", b.op("div", b.load(self._out, source + unit, lanes, count=count), divisor))
            b.store(self._out, to + unit, b.op("min", b.op("max", steps, low), high), count=count)

        with b.loop("v", 0, whole) as loop:
            quantize(loop.var * lanes, None)
        if self._tail:
            quantize(whole * lanes, self._tail)
        return scale

    def _copy(self, source: Buffer | None, index: Dim, to: Dim) -> None:
        """The elements of all units from index on, or zeros, to the output."""
        b, lanes, whole = self._b, self._lanes, self._shape.size // self._lanes

        def copy(unit: Dim, count: int | None) -> None:
            zero = VecType(self._out.dtype, lanes)
            b.store(self._out, to + unit, b.const(0, zero) if source is None else b.load(source, index + unit, lanes, count=count), count=count)

        with b.loop("v", 0, whole) as loop:
            copy(loop.var * lanes, None)
        if self._tail:
            copy(whole * lanes, self._tail)

    def _place(self, name: str, time: Dim, row: Dim) -> Dim:
        """Where a row of one sequence begins in the output."""
        shape = self._shape
        at = time if name == "out" else shape.time + self._states.index(name)
        return ((at * shape.directions + self._direction) * shape.batch + row) * shape.size

    def _stage(self, stage: Stage, base: int, time: Dim, first: Dim, rows: int) -> None:
        """One stage for all units; ``base`` is the number of vectors of a packed k before it."""
        found = sections(self._vectors, self._schedule.nv)
        for section in split_last(found) if self._tail else found:
            last = self._tail if section.start + section.count * section.size == self._vectors else None
            with self._b.loop("u", 0, section.count) as tile:
                self._tile(stage, base, tile.var * section.size + section.start, section, (time, first, rows), last)

    def _tile(self, stage: Stage, base: int, vector: Dim, section: Section, at: tuple[Dim, Dim, int], tail: int | None) -> None:
        """``tail``: the lanes in use of the last vector, where not all are."""
        b, (time, first, rows) = self._b, at
        counts = [tail if v == section.size - 1 else None for v in range(section.size)]
        units = [(vector + v) * self._lanes for v in range(section.size)]
        loads: dict[object, Reg] = {}

        def read(what: Read, r: int, v: int) -> Reg:
            index = self._read_index(what, time, first + r) + units[v]
            buffer = self._buffers[what[0]] if what[0] in self._buffers and what[0] not in self._states else self._out
            key = (buffer.name, index)
            if key not in loads:
                loads[key] = b.load(buffer, index, self._lanes, count=counts[v])
            return loads[key]

        starts = [read(start, r, v) for r in range(rows) for start in stage.starts for v in range(section.size)]
        if stage.source == "quantized":
            zero = b.const(0, starts[0].type)
            sums = self._sums(stage, base, vector, section, (first, rows), counts, [zero] * len(starts))
            scales = [
                b.op("mul", read(("scales", gate), r, v), b.splat(self._scales[r], self._lanes))
                for r in range(rows)
                for gate in stage.gates
                for v in range(section.size)
            ]
            sums = [b.fma(*terms) for terms in zip(sums, scales, starts, strict=True)]
        else:
            sums = self._sums(stage, base, vector, section, (first, rows), counts, starts)
        for r in range(rows):
            for v in range(section.size):
                args = [sums[(r * len(stage.gates) + g) * section.size + v] for g in range(len(stage.gates))]
                args += [read(what, r, v) for what in stage.reads]
                for name, expr in stage.writes:
                    args.append(b.scalar(expr, args))
                    b.store(self._out, self._place(name, time, first + r) + units[v], args[-1], count=counts[v])

    def _read_index(self, what: Read, time: Dim, row: Dim) -> Dim:
        """Where the elements of all units begin in the buffer that ``what`` is read from."""
        (name, number), shape = what, self._shape
        if name == "projection":
            width = self._width("projection")
            return (time * shape.batch + row) * (width * shape.directions) + (self._direction * width + number * shape.size)
        if name in ("bias", "peepholes", "scales"):
            return self._direction * self._width(name) + number * shape.size
        return self._place(name, time, row)

    def _width(self, name: str) -> int:
        """Elements of one direction in a row of an operand."""
        width = _known(self._types[name].shape[-1])
        return width // self._shape.directions if name == "projection" else width

    def _sums(
        self, stage: Stage, base: int, vector: Dim, section: Section, at: tuple[Dim, int], counts: Sequence[int | None], starts: Sequence[Reg]
    ) -> list[Reg]:
        """The sums of a tile, by sequence, gate and vector."""
        b, shape, (first, rows) = self._b, self._shape, at
        gates, lanes, weights = len(stage.gates), self._lanes, self._buffers["weights"]
        sources = [self._place(stage.source, 0, first + r) for r in range(rows)]
        width = gates * section.size
        if self._packed:
            depth: Dim = width * lanes
            start = ((vector * gates + base) + self._direction * shape.columns * self._vectors) * (shape.size * lanes)
        else:
            depth = self._width("projection")
            start = vector * lanes + self._direction * shape.size * depth
        chains = min(self._schedule.unroll, max(1, _CHAINS // len(starts)))
        zero = b.const(0, VecType(self._out.dtype, lanes))
        accs = [[*starts], *([zero] * len(starts) for _ in range(chains - 1))]

        def steps(k0: Dim, count: int, accs: list[list[Reg]]) -> None:
            for k in range(count):
                chain, index = accs[k % chains], start + (k0 + k) * depth
                state = [b.load(self._out, source + (k0 + k), lanes, stride=0) for source in sources]
                for n in range(width):
                    g, v = divmod(n, section.size)
                    if self._packed:
                        weight = b.load(weights, index + n * lanes, lanes)
                    else:
                        weight = b.load(weights, index + (stage.gates[g] * shape.size + v * lanes), lanes, count=counts[v])
                    for r in range(rows):
                        chain[r * width + n] = b.fma(state[r], weight, chain[r * width + n])

        blocks, rest = divmod(shape.size, self._schedule.unroll)
        if blocks:
            with b.loop("k", 0, blocks, carried=[acc for chain in accs for acc in chain]) as loop:
                inside = [list(loop.carried[c * len(starts) : (c + 1) * len(starts)]) for c in range(chains)]
                steps(loop.var * self._schedule.unroll, self._schedule.unroll, inside)
                loop.yield_([acc for chain in inside for acc in chain])
            accs = [list(loop.results[c * len(starts) : (c + 1) * len(starts)]) for c in range(chains)]
        steps(blocks * self._schedule.unroll, rest, accs)
        total = accs[0]
        for chain in accs[1:]:
            total = [b.op("add", left, right) for left, right in zip(total, chain, strict=True)]
        return total


register_family(Recurrence())
