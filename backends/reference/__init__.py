"""The reference backend: runs a program in numpy, in the memory that its plan gives it. It is slow and it is what the others are held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.errors import DIVISION, STATUS_WORDS, InternalError, UserError, division_error, index_error
from compiler.ir.graph import Value
from compiler.ir.interp import bind_inputs
from compiler.ir.intexpr import Dim, evaluate
from compiler.ir.loop import Access, Buffer
from compiler.ir.loop_interp import LoopInterpreter
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
)
from compiler.ir.scalar import Array
from compiler.ir.types import DType, pack_physical, unpack_physical
from runtime.texts import WORD_BYTES, Records, decoded


def run_program(program: Program, feeds: Mapping[str, Array], workers: int = 1) -> dict[str, Array]:
    """The program's outputs by name for its inputs by name (logical arrays of their types).

    Every call runs on views of one arena and one weights blob, at the program's offsets, both first filled with bits that are NaN as floats;
    so is what the calls for one share hand on, for each anew.
    Raises UserError for feeds that do not fit and for checks that do not hold; InternalError for an access outside a buffer, or a buffer
    outside its memory.
    """
    arrays, dims = bind_inputs(program.inputs, feeds)
    return _Run(program, arrays, dict(dims), workers).outputs()


class _Run:
    """One inference. ``_sizes`` are the symbols known so far."""

    def __init__(self, program: Program, arrays: list[Array], sizes: dict[str, int], workers: int) -> None:
        self._program = program
        self._sizes = sizes | {WORKERS: workers}
        self._workers = workers
        for definition in program.definitions:
            self._sizes[definition.symbol] = self._number(definition.value)
        self._kernels = [LoopInterpreter(function) for function in program.functions]
        self._arena = _nothing(self._number(program.arena_bytes))
        self._weights = _nothing(program.weights_bytes)
        for offset, array in program.weights:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if offset + data.size > program.weights_bytes:
                raise InternalError(f"a weight at {offset} does not fit in {program.weights_bytes} bytes", where=f"program {program.name}")
            self._weights[offset : offset + data.size] = data
        packed = [pack_physical(array, value.type.block) for value, array in zip(program.inputs, arrays, strict=True)]
        self._texts_end = np.zeros(1, np.int64)
        self._dynamic = [_nothing(0)] * program.dynamic
        self._inputs = [array.reshape(-1).view(np.uint8) for array in self._placed(packed)]
        self._results = program.results or (None,) * len(program.outputs)
        given = zip(program.outputs, self._results, strict=True)
        self._outputs = [_nothing(self._number(value.type.nbytes) if buffer is None else 0) for value, buffer in given]
        self._scratch = _nothing(0)
        self._status = np.zeros(STATUS_WORDS, np.int64)

    def outputs(self) -> dict[str, Array]:
        """Run everything."""
        self._steps(self._program.body)
        return {value.name: self._output(index, value) for index, value in enumerate(self._program.outputs)}

    def _placed(self, arrays: list[Array]) -> list[Array]:
        """The inputs with the places of their texts for strings; the texts the run begins with are written."""
        texts = self._program.texts
        if texts is None:
            return arrays
        constants = self._weights[texts.offset : texts.offset + texts.nbytes]
        records = Records(texts.nbytes // WORD_BYTES)
        found = [records.places(x) if x.dtype == DType.STRING.numpy else x for x in arrays]
        self._dynamic[texts.buffer] = np.concatenate((constants, np.frombuffer(records.data(), np.uint8)))
        self._texts_end[0] = self._sizes[TEXTS] = records.words * WORD_BYTES
        return found

    def _text(self, place: int) -> bytes:
        """The bytes of the record at a word."""
        texts = self._program.texts
        memory = self._dynamic[texts.buffer if texts is not None else 0].tobytes()
        start = (place + 1) * WORD_BYTES
        return memory[start : start + int.from_bytes(memory[start - WORD_BYTES : start], "little")]

    def _number(self, dim: Dim) -> int:
        return evaluate(dim, self._sizes)

    def _output(self, index: int, value: Value) -> Array:
        """An output as a logical array."""
        type_, buffer = value.type, self._results[index]
        shape = tuple(map(self._number, type_.shape))
        memory = self._outputs[index] if buffer is None else self._dynamic[buffer][: self._number(type_.nbytes)]
        array = unpack_physical(memory.view(type_.in_memory.dtype.numpy), shape, type_.block)
        return decoded(array, self._text) if type_.dtype is DType.STRING else array

    # -- steps --------------------------------------------------------------------------------------------------

    def _steps(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            match step:
                case KernelCall():
                    self._call(step, self._workers)
                case Read():
                    values = self._read(step.address, step.dtype, len(step.symbols))
                    self._sizes.update(zip(step.symbols, map(int, values), strict=True))
                case Define():
                    self._sizes[step.symbol] = self._number(step.value)
                case Check():
                    self._check(step)
                case Allocate():
                    self._allocate(step)
                case Swap():
                    pair = self._dynamic[step.second], self._dynamic[step.first]
                    self._dynamic[step.first], self._dynamic[step.second] = pair
                case Branch():
                    self._steps(step.then if self._holds(step.condition) else step.orelse)
                case Repeat():
                    self._repeat(step)
                case Shares():
                    for number in range(step.count):
                        self._sizes[SHARE] = number
                        self._scratch = _nothing(self._number(self._program.scratch_bytes))
                        for call in step.body:
                            self._call(call, workers=1)

    def _call(self, call: KernelCall, workers: int) -> None:
        kernel = self._kernels[call.function]
        function = kernel.function
        if len(function.buffers) != len(call.args) or len(function.params) != len(call.params):
            raise InternalError(f"{len(call.args)} arguments for {len(function.buffers)} buffers", where=f"call of {call.name}")
        params = {name: self._number(param) for name, param in zip(function.params, call.params, strict=True)}
        views = [self._view(call, buffer, address, params) for buffer, address in zip(function.buffers, call.args, strict=True)]
        kernel(views, params, workers)
        self._sizes[TEXTS] = int(self._texts_end[0])
        what, index, size, axis = map(int, self._status)
        if what >= DIVISION:
            raise division_error(f"node {call.divisions[what - DIVISION]}")
        if what:
            raise index_error(index, axis, size, f"node {call.name}")

    def _check(self, step: Check) -> None:
        low, value, high = (None if dim is None else self._number(dim) for dim in (step.low, step.value, step.high))
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            what = step.message.format(low=low, value=value, high=high)
            raise UserError(what, where=self._program.name, hint="give inputs that the model is made for")

    def _allocate(self, step: Allocate) -> None:
        old, wanted = self._dynamic[step.index], self._number(step.nbytes)
        fresh = _nothing(max(wanted, old.size if step.keep else 0))
        if step.keep:
            fresh[: old.size] = old
        self._dynamic[step.index] = fresh

    def _repeat(self, step: Repeat) -> None:
        done = 0
        trips = None if step.trips is None else self._number(step.trips)
        going = step.first is None or self._holds(step.first)
        self._sizes[step.iteration] = 0
        while going and (trips is None or done < trips):
            self._steps(step.body)
            going = step.following is None or self._holds(step.following)
            done += 1
            self._sizes |= {definition.symbol: self._number(definition.value) for definition in step.carried} | {step.iteration: done}
        self._sizes[step.count] = done

    # -- memory -------------------------------------------------------------------------------------------------

    def _read(self, address: Address, dtype: DType, elements: int) -> Array:
        offset = self._number(address.offset)
        found: Array = self._space(address)[offset : offset + elements * dtype.itemsize].view(dtype.numpy)
        return found

    def _holds(self, condition: Address) -> bool:
        return bool(self._read(condition, DType.BOOL, 1)[0])

    def _view(self, call: KernelCall, buffer: Buffer, address: Address, params: Mapping[str, int]) -> Array:
        """The part of memory a buffer of a call stands for; what may not be written is read-only."""
        if buffer.access is Access.SCRATCH:
            return np.empty(0, buffer.dtype.numpy)
        whole, offset, size = self._space(address), self._number(address.offset), max(evaluate(buffer.size, params), 0)
        end = offset + size * buffer.dtype.itemsize
        if size and end > whole.size:
            place = f"bytes {offset} to {end} of {address.space.value}, which has {whole.size}"
            raise InternalError(f"buffer {buffer.name} is {place}", where=f"call of {call.name}")
        view: Array = whole[offset:end].view(buffer.dtype.numpy)
        if buffer.access is Access.READ:
            view.flags.writeable = False
        elif address.space in (Space.WEIGHTS, Space.INPUT):
            raise InternalError(f"buffer {buffer.name} writes to {address.space.value}", where=f"call of {call.name}")
        return view

    def _space(self, address: Address) -> Array:
        match address.space:
            case Space.ARENA:
                return self._arena
            case Space.WEIGHTS:
                return self._weights
            case Space.INPUT:
                return self._inputs[address.index]
            case Space.OUTPUT:
                return self._outputs[address.index]
            case Space.DYNAMIC:
                return self._dynamic[address.index]
            case Space.STATUS:
                return self._status.view(np.uint8)
            case Space.TEXTS_END:
                return self._texts_end.view(np.uint8)
            case Space.SCRATCH:
                return self._scratch


def _nothing(nbytes: int) -> Array:
    """Memory that no one has written to yet."""
    return np.full(nbytes, 0xFF, np.uint8)
