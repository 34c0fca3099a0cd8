"""From a planned graph to a Program: each group becomes a workload, each distinct workload under its schedule one kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compiler.errors import InternalError
from compiler.ir.control import If, Loop, names, planned_places, planned_sizes
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.intexpr import Dim, IntExpr, maximum, sym, symbols
from compiler.ir.loop import Access, Function
from compiler.ir.loop_chain import Link, chained
from compiler.ir.places import memory_places, memory_roots
from compiler.ir.program import (
    SHARE,
    TEXTS,
    WORKERS,
    Address,
    Allocate,
    Branch,
    Check,
    Define,
    KernelCall,
    Program,
    Read,
    Repeat,
    Shares,
    Space,
    Step,
    Swap,
    Texts,
)
from compiler.ir.scalar import Array
from compiler.ir.types import DType, pack_physical
from compiler.ir.verify import ARENA_ALIGNMENT
from compiler.kernels.base import Family, PanelReader, TextMaker, Workload, family
from compiler.sharing import tied_panels
from compiler.target import Target
from compiler.weights import Weights
from compiler.workloads import Made, Selected, copied, select
from passes.graph.plan import direct_outputs
from runtime.texts import Records

Build = Callable[[Workload, Any, Target, str], Function]

Choose = Callable[[Family, Workload, Target], Any]
"""Picks the schedule of a workload."""


def heuristic(family_: Family, workload: Workload, target: Target) -> Any:
    """The family's own default schedule."""
    return family_.heuristic(workload, target)


def lower(graph: Graph, target: Target, threads: int, choose: Choose = heuristic) -> Program:
    """The program of a graph in the planned stage.

    Raises UnsupportedError, listing every such node, where no kernel family builds one.
    """
    return _Writer(graph, target, threads, choose, select(graph, target, threads)).program()


def workloads(graph: Graph, target: Target, threads: int) -> tuple[tuple[Family, Workload], ...]:
    """Each group's workload and the family that builds it, regions included, in the order of the text; raises as ``lower`` does."""
    return tuple((found.family, found.group.workload) for found in select(graph, target, threads).values())


class _Level:
    """A graph or region being written: where its values lie, and what must be done before one is written."""

    def __init__(self, graph: Graph, places: dict[Value, Address], allocations: dict[Value, Step], arena: Dim) -> None:
        self.graph = graph
        self._memory = memory_places(graph)
        self._places = places
        self._allocations = allocations
        self._arena = arena

    def place(self, value: Value) -> Address:
        """Where a value lies. Raises InternalError for one that has no memory."""
        memory = self._memory[value]
        if memory.root not in self._places:
            raise InternalError(f"%{value.name} has no memory", where="lowering", hint="plan memory before lowering")
        address = self._places[memory.root]
        return replace(address, offset=address.offset + memory.offset)

    def root(self, value: Value) -> Value:
        """The value whose memory value lies in."""
        return self._memory[value].root

    def constant(self, value: Value) -> tuple[Constant, Dim] | None:
        """The constant a value is (a view of), and the byte at which it begins; None for what is computed."""
        memory = self._memory[value]
        constant = self.graph.constants.get(memory.root)
        return None if constant is None else (constant, memory.offset)

    def make(self, node: Node) -> Iterator[Step]:
        """Give a group's results their places; what must be done for that."""
        for value, offset, buffer in zip(node.outputs, planned_places(node, "offset"), planned_places(node, "dynamic"), strict=True):
            memory = self._memory[value]
            if offset is not None:
                self._places[memory.root] = Address(Space.ARENA, self._arena + offset - memory.offset)
            elif isinstance(buffer, int):
                self.hold(value, buffer, 0, Allocate(buffer, value.type.nbytes))
            if value in self._allocations:
                yield self._allocations[value]

    def hold(self, value: Value, buffer: int, offset: Dim, allocation: Step) -> None:
        """Put a value into a dynamic buffer, which ``allocation`` makes large enough."""
        self._places[value] = Address(Space.DYNAMIC, offset, buffer)
        self._allocations[value] = allocation

    def arena(self, node: Node) -> Dim:
        """Where the arena of a node's regions begins."""
        offset = node.attrs.get("offset")
        return self._arena + (offset if isinstance(offset, int | IntExpr) else 0)


@dataclass(frozen=True)
class _Part:
    """What a part of a kernel is built from; ``made`` as in ``Link``."""

    build: Build
    workload: Workload
    schedule: Any
    made: Mapping[int, tuple[int, Dim]]


@dataclass(frozen=True)
class _Target:
    """Where an output of a region goes: to a place in a dynamic buffer, which ``allocation`` makes large enough."""

    value: Value
    buffer: int
    allocation: Step
    offset: Dim = 0


class _Writer:
    """Collects kernels, steps and weights; equal kernels and equally packed constants are there once."""

    def __init__(self, graph: Graph, target: Target, threads: int, choose: Choose, selected: Mapping[Node, Selected]) -> None:
        self._graph = graph
        self._target = target
        self._threads = threads
        self._choose = choose
        self._selected = selected
        self._functions: list[Function] = []
        self._weights = Weights()
        self._kernels: dict[str, int] = {}
        self._whole: dict[tuple[Constant, int], int] = {}
        self._packed: dict[tuple[Constant, int, Workload, Any], int] = {}
        self._symbols = tuple(sorted({name for value in graph.inputs for dim in value.type.shape for name in symbols(dim)}))
        self._definitions = [Define(name, value) for name, value in planned_sizes(graph)]
        self._known = {*self._symbols, *(definition.symbol for definition in self._definitions)}
        self._dynamic = _number(graph.attrs.get("dynamic", 0))
        self._scratch_bytes: Dim = 0
        self._scratch_buffer: int | None = None
        self._texts_buffer: int | None = None
        self._records = Records()
        self._records.place("")
        self._panels = tied_panels(graph, selected, choose, target)

    def program(self) -> Program:
        """The finished program."""
        graph, results = self._graph, self._graph.attrs.get("results")
        roots = memory_roots(graph)
        buffers = results if isinstance(results, tuple) else (None,) * len(graph.outputs)
        given = zip(graph.outputs, buffers, strict=True)
        places = {value: Address(Space.INPUT, index=number) for number, value in enumerate(graph.inputs)}
        places |= {roots[value]: Address(Space.OUTPUT, index=number) for number, (value, buffer) in enumerate(given) if buffer is None}
        body = tuple(self._steps(_Level(graph, places, {}, 0)))
        if any(value.type.dtype is DType.STRING for value in (*graph.inputs, *graph.outputs)):
            self._texts()
        texts = None
        if self._texts_buffer is not None:
            records = np.frombuffer(self._records.data(), np.uint8)
            texts = Texts(self._texts_buffer, self._weights.store(records), records.size)
        bound = graph.attrs["arena_bound_bytes"]
        return Program(
            name=graph.name,
            inputs=graph.inputs,
            outputs=graph.outputs,
            functions=tuple(self._functions),
            body=body,
            weights=tuple(self._weights.stored),
            weights_bytes=self._weights.nbytes,
            arena_bytes=_dim(graph.attrs["arena_bytes"]),
            arena_bound_bytes=None if bound is None else _number(bound),
            scratch_bytes=self._scratch_bytes,
            symbols=self._symbols,
            definitions=tuple(self._definitions),
            dynamic=self._dynamic,
            results=tuple(None if buffer is None else _number(buffer) for buffer in buffers),
            texts=texts,
        )

    # -- steps --------------------------------------------------------------------------------------------------

    def _steps(self, level: _Level) -> Iterator[Step]:
        for node in level.graph.nodes:
            match node.op:
                case "group":
                    yield from level.make(node)
                    yield from self._call(level, self._selected[node], [*map(level.place, node.outputs)], node.name)
                case "bind":
                    (source,) = node.present_inputs
                    yield Read(names(node), self._address(level, source), source.type.dtype)
                case "define":
                    yield Define(str(node.attrs["symbol"]), _dim(node.attrs["value"]))
                case "check":
                    low, high = (None if node.attrs[key] is None else _dim(node.attrs[key]) for key in ("low", "high"))
                    yield Check(low, _dim(node.attrs["value"]), high, str(node.attrs["message"]))
                case "if":
                    yield self._branch(level, node)
                case "loop":
                    yield from self._repeat(level, node)

    def _branch(self, level: _Level, node: Node) -> Step:
        parts, buffers = If.of(node), _numbers(node.attrs["dynamic"])
        captured = [self._address(level, value) for value in parts.captured]
        bodies = []
        for number, region in enumerate((parts.then, parts.otherwise)):
            inner = _Level(region, dict(zip(region.inputs, captured, strict=True)), {}, level.arena(node))
            targets = [_Target(value, buffer, Allocate(buffer, value.type.nbytes)) for value, buffer in zip(region.outputs, buffers, strict=True)]
            merges = [Define(merge.symbol, (merge.first, merge.second)[number]) for merge in parts.merges]
            bodies.append((*self._region(inner, targets, node.name), *merges))
        for value, buffer in zip(node.outputs, buffers, strict=True):
            level.hold(value, buffer, 0, Allocate(buffer, value.type.nbytes))
        return Branch(self._address(level, parts.condition), *bodies)

    def _repeat(self, level: _Level, node: Node) -> Iterator[Step]:
        loop, buffers, following = Loop.of(node), _numbers(node.attrs["dynamic"]), _numbers(node.attrs["following"])
        carried, scans = buffers[: len(loop.initial)], buffers[len(loop.initial) :]
        captured = [self._address(level, value) for value in loop.captured]
        for merge in loop.merges:
            yield Define(merge.symbol, merge.first)
        for buffer, value in zip(carried, loop.initial, strict=True):
            yield Allocate(buffer, value.type.nbytes)
            yield from self._copy(level, value, Address(Space.DYNAMIC, 0, buffer), node.name)
        places = [*(Address(Space.DYNAMIC, 0, buffer) for buffer in carried), *captured]
        inner = _Level(loop.body, dict(zip(loop.body.inputs, places, strict=True)), {}, level.arena(node))
        begin = len(following) - len(carried)
        pairs = zip(loop.body.outputs, following, strict=False)
        targets = [_Target(value, buffer, Allocate(buffer, value.type.nbytes)) for value, buffer in pairs]
        for number in loop.appended:
            value, behind = loop.next_values[number], loop.body.inputs[number].type.nbytes
            targets[begin + number] = _Target(value, carried[number], Allocate(carried[number], behind + value.type.nbytes, keep=True), behind)
        swapped = [pair for number, pair in enumerate(zip(carried, following[begin:], strict=True)) if number not in loop.appended]
        iteration = sym(loop.iteration)
        for value, buffer in zip(loop.scans, scans, strict=True):
            size = value.type.nbytes
            targets.append(_Target(value, buffer, Allocate(buffer, (iteration + 1) * size, keep=True), iteration * size))
        for value, buffer in zip(node.outputs, buffers, strict=True):
            level.hold(value, buffer, 0, Allocate(buffer, value.type.nbytes))
        yield Repeat(
            loop.iteration,
            loop.count,
            loop.trips,
            first=None if loop.condition is None else self._address(level, loop.condition),
            following=Address(Space.DYNAMIC, 0, following[0]) if begin else None,
            carried=tuple(Define(merge.symbol, merge.second) for merge in loop.merges),
            body=(*self._region(inner, targets, node.name), *(Swap(now, then) for now, then in swapped)),
        )

    def _region(self, level: _Level, targets: Sequence[_Target], name: str) -> Iterator[Step]:
        """The steps of a region, its outputs going to their targets: groups write there, what branches and loops make is copied."""
        direct = direct_outputs(level.graph)
        copied_ = [target for target in targets if level.root(target.value) not in direct]
        for target in targets:
            if target not in copied_:
                level.hold(level.root(target.value), target.buffer, target.offset, target.allocation)
        yield from self._steps(level)
        for target in copied_:
            yield target.allocation
            yield from self._copy(level, target.value, Address(Space.DYNAMIC, target.offset, target.buffer), name)

    def _copy(self, level: _Level, value: Value, to: Address, name: str) -> Iterator[Step]:
        group = copied(value, value in level.graph.constants, self._threads)
        yield from self._call(level, Selected(family(group.families[0]), group), [to], name)

    def _address(self, level: _Level, value: Value) -> Address:
        """Where a value is read from as it is; a constant, and a view of one, lies among the weights as its layout says."""
        found = level.constant(value)
        if found is None:
            return level.place(value)
        constant, offset = found
        key = constant, level.root(value).type.block
        if key not in self._whole:
            self._whole[key] = self._weights.store(pack_physical(self._stored(constant.array), key[1]))
        return Address(Space.WEIGHTS, self._whole[key] + offset)

    # -- kernels ------------------------------------------------------------------------------------------------

    def _call(self, level: _Level, selected: Selected, to: Sequence[Address], name: str) -> Iterator[Step]:
        chosen, group = selected.family, selected.group
        if group.shares > 1:
            yield Shares(group.shares, tuple(self._in_shares(level, selected, *to)))
            return
        reads: list[Address] = []
        parts: list[_Part] = []
        flops: Dim = 0
        nbytes: Dim = 0
        for each in (*selected.inner, selected):
            workload = self._tied(level, each)
            schedule = self._choose(each.family, workload, self._target)
            reads += self._reads(level, each, workload, schedule)
            parts.append(_Part(each.family.build, workload, schedule, each.group.made))
            flops = flops + each.family.flops(workload)
            for type_ in (*(o.type for o in (*workload.inputs, *workload.operands)), *workload.results):
                nbytes = nbytes + type_.nbytes
        flops, nbytes = self._measure(flops), self._measure(nbytes)
        if isinstance(chosen, TextMaker):
            sizes = self._function(f"{chosen.name}_sizes", [replace(parts[-1], build=chosen.build_sizes)])
            yield from self._kernel(sizes, (*reads, *to), KernelCall(sizes, (), name, f"{chosen.name}_sizes", str(schedule), 0, nbytes))
            yield Allocate(self._texts(), sym(TEXTS), keep=True)
        number = self._function(chosen.name, parts)
        call = KernelCall(number, (), name, chosen.name, str(schedule), flops, nbytes, divisions=group.divisions)
        yield from self._kernel(number, (*reads, *to), call)

    def _tied(self, level: _Level, each: Selected) -> Workload:
        """A kernel's workload, on a table as another kernel packs it where it can read that."""
        workload, read = replace(each.group.workload, family=each.family.name), each.group.reads[0] if each.group.reads else None
        table = level.graph.constants.get(read) if isinstance(read, Value) else None
        panels = None if table is None else self._panels.get(table)
        if panels is None or not isinstance(each.family, PanelReader) or not each.family.reads_panels(workload):
            return workload
        data, *others = workload.inputs
        return replace(workload, inputs=(replace(data, panels=panels), *others))

    def _in_shares(self, level: _Level, selected: Selected, to: Address) -> Iterator[KernelCall]:
        """The calls for one share. What inner groups make of it lies one after another at the start of the worker's scratch."""
        shares, made, begin = selected.group.shares, list[Address](), 0
        for inner in selected.inner:
            made.append(Address(Space.SCRATCH, begin))
            begin += _aligned(_number(inner.group.workload.output.nbytes))
        for each, result in zip((*selected.inner, selected), (*made, to), strict=True):
            workload = replace(each.group.workload, family=each.family.name)
            schedule = self._choose(each.family, workload, self._target)
            number = self._function(each.family.name, [_Part(each.family.build, workload, schedule, {})])
            outside = iter(self._reads(level, each, workload, schedule, shares))
            places = [_later(made[v.number], v.offset) if isinstance(v, Made) else next(outside) for v in each.group.reads]
            cut = each.group.cut if each is not selected else {*each.group.cut, len(places)}
            pairs = enumerate(zip((*places, result), self._functions[number].buffers, strict=False))
            given = [_later(place, sym(SHARE) * buffer.size * buffer.dtype.itemsize) if i in cut else place for i, (place, buffer) in pairs]
            nbytes = sum(_number(buffer.size) * buffer.dtype.itemsize for buffer in self._functions[number].buffers[: len(given)])
            flops = each.family.flops(workload) * shares
            call = KernelCall(number, (), each.group.name, each.family.name, str(schedule), flops, nbytes * shares)
            for step in self._kernel(number, tuple(given), call, begin):
                if isinstance(step, KernelCall):
                    yield step

    def _kernel(self, number: int, given: tuple[Address, ...], call: KernelCall, begin: int = 0) -> Iterator[Step]:
        """A call with all its arguments: those given, and what else the function's buffers ask for; its own scratch is from ``begin`` on."""
        function = self._functions[number]
        scratch, bytes_each = _scratch(function, begin)
        if all(name in self._known for name in symbols(bytes_each)):
            self._scratch_bytes = maximum(self._scratch_bytes, bytes_each)
        else:
            buffer = self._late_scratch()
            scratch = [Address(Space.DYNAMIC, address.offset, buffer, each=bytes_each) for address in scratch]
            yield Allocate(buffer, bytes_each * sym(WORKERS))
        args = list(given)
        for further in function.buffers[len(given) :]:
            match further.access:
                case Access.SCRATCH:
                    args.append(scratch.pop(0))
                case Access.STATUS:
                    args.append(Address(Space.STATUS))
                case Access.TEXTS:
                    args.append(Address(Space.DYNAMIC, index=self._texts()))
                case Access.TEXTS_END:
                    args.append(Address(Space.TEXTS_END))
                case _:
                    raise InternalError(f"nothing is given for buffer {further.name}", where=f"kernel {function.name}")
        yield replace(call, args=tuple(args), params=tuple(map(sym, function.params)))

    def _texts(self) -> int:
        """The dynamic buffer of the texts."""
        if self._texts_buffer is None:
            self._texts_buffer = self._dynamic
            self._dynamic += 1
        return self._texts_buffer

    def _late_scratch(self) -> int:
        """The dynamic buffer for the scratch of kernels whose sizes depend on data."""
        if self._scratch_buffer is None:
            self._scratch_buffer = self._dynamic
            self._dynamic += 1
        return self._scratch_buffer

    def _measure(self, amount: Dim) -> Dim:
        """How much a call does, for profiles: a number, a symbol for what a run knows before it begins, or 0 for what depends on data."""
        if isinstance(amount, int):
            return amount
        if not all(name in self._known for name in symbols(amount)):
            return 0
        found = next((definition.symbol for definition in self._definitions if definition.value == amount), None)
        if found is None:
            found = f"work.{len(self._definitions)}"
            self._definitions.append(Define(found, amount))
        return sym(found)

    def _function(self, stem: str, parts: Sequence[_Part]) -> int:
        """The function that does what parts do, one after another."""
        # By its text: -0.0 is equal to 0.0, and NaN not to itself.
        text = " then ".join(f"{part.workload!r} {part.schedule!r} {part.made}" for part in parts)
        name = f"{stem}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        number = self._kernels.get(name)
        if number is None:
            number = self._kernels[name] = len(self._functions)
            links = [Link(part.build(part.workload, part.schedule, self._target, name), part.made) for part in parts]
            built = links[0].function if len(links) == 1 else chained(name, links)
            texts = (TEXTS,) if any(buffer.access is Access.TEXTS for buffer in built.buffers) else ()
            self._functions.append(replace(built, params=(*parts[-1].workload.symbols, *texts)))
        return number

    def _reads(self, level: _Level, selected: Selected, workload: Workload, schedule: Any, shares: int = 1) -> list[Address]:
        """Where each operand lies that no inner group makes; constants are packed when this kernel reads them for the first time, those of which
        each share has its own part share by share."""
        reads, cut = [None if isinstance(v, Made) else v for v in selected.group.reads], selected.group.cut
        constants = [None if v is None else level.graph.constants.get(v) for v in reads]
        keys = [None if c is None else (c, i, workload, schedule) for i, c in enumerate(constants)]
        if any(key is not None and key not in self._packed for key in keys):
            types = [operand.type for operand in (*workload.inputs, *workload.operands)]
            arrays = [None if c is None else self._stored(c.array).astype(t.dtype.numpy, copy=False) for c, t in zip(constants, types, strict=True)]
            pieces = [None if x is None else x.reshape(shares if i in cut else 1, *types[i].static_shape) for i, x in enumerate(arrays)]
            packed = [
                selected.family.pack(workload, schedule, [None if x is None else x[share if i in cut else 0] for i, x in enumerate(pieces)])
                for share in range(shares)
            ]
            for i, (key, array) in enumerate(zip(keys, packed[0], strict=True)):
                if key is not None and array is not None and key not in self._packed:
                    whole = np.stack([x for each in packed if (x := each[i]) is not None]) if i in cut else array
                    self._packed[key] = self._weights.store(whole)
        outside = [(v, key) for v, key in zip(reads, keys, strict=True) if v is not None]
        return [self._address(level, v) if key is None else Address(Space.WEIGHTS, self._packed[key]) for v, key in outside]

    def _stored(self, array: Array) -> Array:
        """A constant as it lies in memory: of strings, where their records are."""
        if array.dtype != DType.STRING.numpy:
            return array
        self._texts()
        return self._records.places(array)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT


def _later(address: Address, nbytes: Dim) -> Address:
    return replace(address, offset=address.offset + nbytes)


def _scratch(function: Function, begin: int) -> tuple[list[Address], Dim]:
    """Where a worker's scratch buffers lie, one after another from a place in its scratch, which every kernel begins anew; the end of them."""
    addresses: list[Address] = []
    end: Dim = begin
    for buffer in function.buffers:
        if buffer.access is Access.SCRATCH:
            addresses.append(Address(Space.SCRATCH, end))
            end = end + (buffer.size * buffer.dtype.itemsize + (ARENA_ALIGNMENT - 1)) // ARENA_ALIGNMENT * ARENA_ALIGNMENT
    return addresses, end


def _numbers(attr: object) -> tuple[int, ...]:
    return tuple(_number(item) for item in attr) if isinstance(attr, tuple) else ()


def _dim(value: object) -> Dim:
    """An attribute that is a size."""
    if not isinstance(value, int | IntExpr):
        raise InternalError(f"{value!r} is not a size", where="lowering", hint="plan memory before lowering")
    return value


def _number(value: object) -> int:
    """A size that must be known by now."""
    if not isinstance(value, int):
        raise InternalError(f"{value!r} is not a number", where="lowering", hint="plan memory before lowering")
    return value
