"""A Program: the planned graph as kernel calls over memory, which is all a backend needs to make a runnable image.

ABI of the generated code. ``slots`` is an array of pointers: the arena, the weights blob, then each graph input, then each graph output.
A kernel takes one pointer per buffer, its integer params, then the worker's number and the number of workers, both i64; every worker
calls every kernel, in order, with a barrier between.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compiler.ir.graph import Value
from compiler.ir.loop import Function
from compiler.ir.scalar import Array


class Space(Enum):
    """Where a kernel argument lives."""

    ARENA = "arena"
    WEIGHTS = "weights"
    INPUT = "input"
    OUTPUT = "output"
    SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Address:
    """A byte offset in the arena, the weights or the worker's own scratch, or the start of input or output number ``index``."""

    space: Space
    offset: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One kernel of the inference. ``function`` is its number in ``Program.functions``; the rest is for people and profiles."""

    function: int
    args: tuple[Address, ...]
    name: str
    family: str
    schedule: str
    flops: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Program:
    """Kernels, their calls in order, and the weights: (byte offset, array) in execution order, 64-byte aligned.

    ``scratch_bytes`` is what each worker needs for itself, whatever kernel it runs; the workers' parts lie behind the arena, in order.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    functions: tuple[Function, ...]
    calls: tuple[KernelCall, ...]
    weights: tuple[tuple[int, Array], ...]
    weights_bytes: int
    arena_bytes: int
    arena_bound_bytes: int
    scratch_bytes: int = 0
