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
from compiler.ir.loop import Function
from compiler.ir.program import Address, Program, Space
from compiler.ir.scalar import Array
from compiler.target import Target

ENTRIES = ("ts_main", *spmd.ENTRIES)
"""Entry points of a program's image."""


def compile_program(program: Program, target: Target, processes: int = 1) -> Image:
    """The program's image. ``processes`` bounds the processes that generate code."""
    texts = [kernel_text(function) for function in program.functions]
    texts.append(main_text(program) + spmd.text(target))
    return link(objects(texts, target, processes), ENTRIES)


def kernel_text(function: Function) -> str:
    """One kernel as an LLVM module."""
    emitter = FunctionEmitter(function)
    body = emitter.emit()
    return "\n".join([*emitter.writer.declarations.values(), body, ""])


def main_text(program: Program) -> str:
    """``ts_main(slots, tid, nthreads, pool, stamps)``: every kernel in order, a barrier between, cycle counts where stamps is not null."""
    lines = ["declare i64 @llvm.readcyclecounter()"]
    for function in program.functions:
        params = ", ".join(["ptr"] * len(function.buffers) + ["i64"] * len(function.params) + ["i64", "i64"])
        lines.append(f"declare void @{function.name}({params}) nounwind")
    lines.append("define void @ts_main(ptr %slots, i64 %tid, i64 %nthreads, ptr %pool, ptr %stamps) nounwind {")
    lines.append("entry:")
    slots = 2 + len(program.inputs) + len(program.outputs)
    for slot in range(slots):
        lines.append(f"  %p{slot} = getelementptr ptr, ptr %slots, i64 {slot}")
        lines.append(f"  %slot{slot} = load ptr, ptr %p{slot}")
    if program.scratch_bytes:
        lines.append(f"  %own = mul i64 %tid, {program.scratch_bytes}")
        lines.append(f"  %behind = add i64 %own, {program.arena_bytes}")
        lines.append("  %scratch = getelementptr i8, ptr %slot0, i64 %behind")
    lines.append("  %first = icmp eq i64 %tid, 0")
    lines.append("  %wanted = icmp ne ptr %stamps, null")
    lines.append("  %stamping = and i1 %first, %wanted")
    _stamp(lines, 0)
    for number, call in enumerate(program.calls):
        args = []
        for at, address in enumerate(call.args):
            lines.append(f"  %c{number}a{at} = getelementptr i8, ptr {_base(address, program)}, i64 {address.offset}")
            args.append(f"ptr %c{number}a{at}")
        args += ["i64 %tid", "i64 %nthreads"]
        lines.append(f"  call void @{program.functions[call.function].name}({', '.join(args)})")
        lines.append("  call void @ts_barrier(ptr %pool, i64 %nthreads)")
        _stamp(lines, number + 1)
    lines += ["  ret void", "}", ""]
    return "\n".join(lines)


def _stamp(lines: list[str], number: int) -> None:
    lines.append(f"  br i1 %stamping, label %stamp{number}, label %go{number}")
    lines.append(f"stamp{number}:")
    lines.append(f"  %cycles{number} = call i64 @llvm.readcyclecounter()")
    lines.append(f"  %at{number} = getelementptr i64, ptr %stamps, i64 {number}")
    lines.append(f"  store i64 %cycles{number}, ptr %at{number}")
    lines.append(f"  br label %go{number}")
    lines.append(f"go{number}:")


def _base(address: Address, program: Program) -> str:
    """The pointer that an address is an offset from."""
    match address.space:
        case Space.ARENA:
            return "%slot0"
        case Space.WEIGHTS:
            return "%slot1"
        case Space.INPUT:
            return f"%slot{2 + address.index}"
        case Space.OUTPUT:
            return f"%slot{2 + len(program.inputs) + address.index}"
        case Space.SCRATCH:
            return "%scratch"


class JitKernel:
    """One compiled kernel; call it with flat arrays in the order of its buffers (and its integer params by name)."""

    def __init__(self, function: Function, target: Target) -> None:
        image = link([object_code(kernel_text(function), target)], (function.name,))
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
