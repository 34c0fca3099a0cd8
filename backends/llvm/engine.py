"""The LLVM backend: programs to code images, and single kernels to callables for tests and measurement."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence

import numpy as np

from backends.llvm import spmd
from backends.llvm.codegen import object_code, objects
from backends.llvm.emit import FunctionEmitter
from backends.llvm.image import Image, link
from backends.llvm.main import main_text
from compiler.ir.loop import Function
from compiler.ir.program import Program
from compiler.ir.scalar import Array
from compiler.target import Target

ENTRIES = ("ts_prepare", *spmd.ENTRIES)
"""Functions of a program's image that the runtime calls."""


def compile_program(program: Program, target: Target, processes: int = 1) -> Image:
    """The program's image. ``processes`` bounds the processes that generate code."""
    texts = [kernel_text(function, target) for function in program.functions]
    texts.append(main_text(program) + spmd.text(target))
    return link(objects(texts, target, processes), ENTRIES)


def kernel_text(function: Function, target: Target) -> str:
    """One kernel as an LLVM module."""
    emitter = FunctionEmitter(function, target)
    body = emitter.emit()
    return "\n".join([*emitter.writer.declarations.values(), body, ""])


class JitKernel:
    """One compiled kernel; call it with flat arrays in the order of its buffers (and its integer params by name)."""

    def __init__(self, function: Function, target: Target) -> None:
        image = link([object_code(kernel_text(function, target), target)], (function.name,))
        self._memory = mmap.mmap(-1, len(image.code) or 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(image.code)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._function = function
        arguments = [ctypes.c_void_p] * len(function.buffers) + [ctypes.c_int64] * (len(function.params) + 2)
        self._entry: Callable[..., None] = ctypes.CFUNCTYPE(None, *arguments)(base + image.entries[function.name])

    def __call__(self, arrays: Sequence[Array], params: dict[str, int] | None = None, workers: int = 1) -> None:
        """Run every worker's part, one after another; arrays must be contiguous."""
        pointers = [np.asarray(a).ctypes.data for a in arrays]
        values = [(params or {})[name] for name in self._function.params]
        for worker in range(workers):
            self._entry(*pointers, *values, worker, workers)


def jit(function: Function, target: Target) -> JitKernel:
    """function compiled into this process."""
    return JitKernel(function, target)
