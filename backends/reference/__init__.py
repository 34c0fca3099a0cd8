"""The reference backend: runs a program in numpy, in the memory that its plan gives it. It is slow and it is what the others are held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.errors import InternalError
from compiler.ir.graph import Value
from compiler.ir.interp import bind_inputs
from compiler.ir.intexpr import evaluate
from compiler.ir.loop import Access, Buffer
from compiler.ir.loop_interp import LoopInterpreter
from compiler.ir.program import Address, KernelCall, Program, Space
from compiler.ir.scalar import Array
from compiler.ir.types import pack_physical, unpack_physical


def run_program(program: Program, feeds: Mapping[str, Array], workers: int = 1) -> dict[str, Array]:
    """The program's outputs by name for its inputs by name (logical arrays of their types).

    Every call runs on views of one arena and one weights blob, at the program's offsets, both first filled with bits that are NaN as floats.
    Raises UserError for feeds that do not fit; InternalError for an access outside a buffer, or a buffer outside its memory.
    """
    arrays, dims = bind_inputs(program.inputs, feeds)
    memory = _Memory(program, arrays, dims)
    kernels = [LoopInterpreter(function) for function in program.functions]
    for call in program.calls:
        kernel = kernels[call.function]
        buffers = kernel.function.buffers
        if len(buffers) != len(call.args):
            raise InternalError(f"{len(call.args)} arguments for {len(buffers)} buffers", where=f"call of {call.name}")
        views = [memory.view(call, buffer, address) for buffer, address in zip(buffers, call.args, strict=True)]
        kernel(views, dims, workers)
    return {value.name: memory.output(index, value) for index, value in enumerate(program.outputs)}


class _Memory:
    """The bytes behind each ``Space``, as the ABI lays them out."""

    def __init__(self, program: Program, arrays: list[Array], dims: Mapping[str, int]) -> None:
        self._dims = dims
        self._arena = np.full(program.arena_bytes, 0xFF, np.uint8)
        self._weights = np.full(program.weights_bytes, 0xFF, np.uint8)
        for offset, array in program.weights:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if offset + data.size > program.weights_bytes:
                raise InternalError(f"a weight at {offset} does not fit in {program.weights_bytes} bytes", where=f"program {program.name}")
            self._weights[offset : offset + data.size] = data
        packed = [pack_physical(array, value.type.block) for value, array in zip(program.inputs, arrays, strict=True)]
        self._inputs = [array.reshape(-1).view(np.uint8) for array in packed]
        self._outputs = [np.full(evaluate(value.type.nbytes, dims), 0xFF, np.uint8) for value in program.outputs]

    def view(self, call: KernelCall, buffer: Buffer, address: Address) -> Array:
        """The part of memory a buffer of a call stands for; what may not be written is read-only."""
        if buffer.access is Access.SCRATCH:
            return np.empty(0, buffer.dtype.numpy)
        whole = self._space(address)
        end = address.offset + evaluate(buffer.size, self._dims) * buffer.dtype.itemsize
        if end > whole.size:
            place = f"bytes {address.offset} to {end} of {address.space.value}, which has {whole.size}"
            raise InternalError(f"buffer {buffer.name} is {place}", where=f"call of {call.name}")
        view: Array = whole[address.offset : end].view(buffer.dtype.numpy)
        if buffer.access is Access.READ:
            view.flags.writeable = False
        elif address.space in (Space.WEIGHTS, Space.INPUT):
            raise InternalError(f"buffer {buffer.name} writes to {address.space.value}", where=f"call of {call.name}")
        return view

    def output(self, index: int, value: Value) -> Array:
        """An output as a logical array."""
        type_ = value.type
        shape = tuple(evaluate(dim, self._dims) for dim in type_.shape)
        return unpack_physical(self._outputs[index].view(type_.dtype.numpy), shape, type_.block)

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
            case Space.SCRATCH:
                raise InternalError("a buffer that is not scratch lies in scratch", where="backends.reference")
