"""The LLVM backend: programs to code images, and single kernels to callables for tests and measurement."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence

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

_MODULE_LINES = 2000
"""Lines of IR in a module: to begin and end one takes 2 ms, as long as code for 100 lines."""


def compile_program(program: Program, target: Target, processes: int = 1) -> Image:
    """The program's image. ``processes`` bounds the processes that generate code."""
    texts = [*_modules(program.functions, target), main_text(program) + spmd.text(target)]
    return link(objects(texts, target, processes), ENTRIES)


def kernel_text(function: Function, target: Target) -> str:
    """One kernel as an LLVM module."""
    (text,) = _modules([function], target)
    return text


def _modules(functions: Sequence[Function], target: Target) -> Iterator[str]:
    """Kernels as LLVM modules, as many in each as it takes to make it worth its cost."""
    declarations: dict[str, str] = {}
    bodies: list[str] = []
    for number, function in enumerate(functions):
        emitter = FunctionEmitter(function, target)
        bodies.append(emitter.emit())
        declarations |= emitter.writer.declarations
        if number == len(functions) - 1 or sum(body.count("\n") for body in bodies) >= _MODULE_LINES:
            yield "\n".join([*declarations.values(), *bodies, ""])
            declarations, bodies = {}, []


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
