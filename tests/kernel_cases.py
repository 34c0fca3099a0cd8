"""Runs one kernel three ways for the tests of kernel families: compiled, interpreted, and as numpy says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from backends.llvm.engine import jit
from compiler.ir.loop import Access, For, Function, If, LoopKind, Stmt, Store
from compiler.ir.loop_interp import run_function
from compiler.ir.loop_text import parse_function, print_function
from compiler.ir.loop_verify import verify_function
from compiler.ir.strided import row_major
from compiler.ir.types import TensorType, pack_physical
from compiler.kernels.base import Family, Workload
from compiler.target import Target


def unpack(flat: np.ndarray, type_: TensorType) -> np.ndarray:
    """A buffer as the logical array it holds."""
    physical = flat[: int(type_.elements)].reshape(type_.physical_shape)
    if type_.block == 1:
        return physical
    joined = np.moveaxis(physical, -1, 2)
    return joined.reshape(type_.shape[0], -1, *type_.shape[2:])[:, : type_.shape[1]]


def buffers(family: Family, workload: Workload, schedule: object, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The kernel's input buffers for logical values (inputs, then operands), constants packed by the family.

    The padding lanes of what is not constant hold NaN, or a large integer.
    """
    operands = (*workload.inputs, *workload.operands)
    constants = [value if operand.constant else None for value, operand in zip(values, operands, strict=True)]
    packed = family.pack(workload, schedule, constants)
    arrays = []
    for array, value, operand in zip(packed, values, operands, strict=True):
        flat = array
        if flat is None:
            hostile = np.nan if value.dtype.kind == "f" else 101
            used = pack_physical(np.ones(value.shape, bool), operand.type.block)
            flat = np.where(used, pack_physical(value, operand.type.block), np.array(hostile).astype(value.dtype))
        arrays.append(np.ascontiguousarray(flat).reshape(-1))
    return arrays


def stores_alone(function: Function) -> list[Stmt]:
    """The stores to a function's output that every worker would make, outside of parallel loops."""
    (out,) = (buffer.name for buffer in function.buffers if buffer.access is Access.WRITE)

    def stores(body: Sequence[Stmt]) -> list[Stmt]:
        found: list[Stmt] = []
        for stmt in body:
            match stmt:
                case Store(buffer=name) if name == out:
                    found.append(stmt)
                case For(kind=LoopKind.SERIAL, body=inner):
                    found += stores(inner)
                case If(then=then, orelse=orelse):
                    found += stores((*then, *orelse))
                case _:
                    pass
        return found

    return stores(function.body)


def check_in_strides(family: Family, workload: Workload, schedule: object, inputs: Sequence[np.ndarray], want: np.ndarray, target: Target) -> None:
    """The kernel stores the same (``want``: logical) as an operand of a join does, which is longer along one axis, and nothing else of that."""
    shape = tuple(map(int, workload.output.physical_shape))
    if not shape:
        return
    axis = sum(shape) % (len(shape) - (workload.output.block != 1))
    before, behind = sum(shape) % 2, 1 + sum(shape) % 3
    around = tuple(dim + (before + behind) * (k == axis) for k, dim in enumerate(shape))
    work = replace(workload, stored_strides=row_major(around))
    if not family.supports(work, target):
        return
    function = family.build(work, schedule, target, "kernel")
    memory, part = np.full(around, 1, workload.output.dtype.numpy), tuple(slice(before * (k == axis), None) for k in range(len(shape)))
    others = [None] * (len(function.buffers) - len(inputs) - 1)
    run_function(function, [*inputs, memory.reshape(-1)[before * row_major(around)[axis] :], *others], {})
    held = memory[part][tuple(slice(0, dim) for dim in shape)]
    found, wanted = unpack(held.reshape(-1), workload.output).astype(np.float64), want.astype(np.float64)
    rounding = 1e-6 * np.abs(wanted[np.isfinite(wanted)]).max(initial=0)  # sums are cut otherwise where other loops can be joined
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding)
    held[...] = 1
    assert (memory == np.ones(1, memory.dtype)).all(), "wrote outside of its part"


def run_everywhere(family: Family, workload: Workload, schedule: object, values: Sequence[np.ndarray], target: Target) -> np.ndarray:
    """The compiled result, after checking that 1 and 3 workers, the interpreter, also in strides, and the parsed text all agree.

    Compiled and interpreted differ by at most 1e-5 of the scale of what is finite.
    """
    function: Function = family.build(workload, schedule, target, "kernel")
    verify_function(function)
    assert not stores_alone(function)
    for_one = replace(workload, threads=1)
    assert not stores_alone(family.build(for_one, family.heuristic(for_one, target), target, "kernel"))
    assert parse_function(print_function(function)) == function
    inputs = buffers(family, workload, schedule, values)
    size, dtype = int(workload.output.elements), workload.output.dtype.numpy
    results = []
    kernel = jit(function, target)
    for workers in (1, 3):
        out = np.full(size + 8, 77, dtype)
        scratch = [np.full(int(b.size) * b.dtype.itemsize, 0xFF, np.uint8) for b in function.buffers if b.access is Access.SCRATCH]
        kernel([*inputs, out, *scratch], workers=workers)
        assert (out[size:] == 77).all(), "wrote past the end of the output"
        results.append(unpack(out, workload.output))
    np.testing.assert_array_equal(results[0], results[1])
    out = np.zeros(size, dtype)
    run_function(function, [*inputs, out, *[None] * (len(function.buffers) - len(inputs) - 1)], {})
    interpreted = unpack(out, workload.output)
    check_in_strides(family, workload, schedule, inputs, interpreted, target)
    scale = np.abs(interpreted[np.isfinite(interpreted)].astype(np.float64)).max(initial=1e-30)
    np.testing.assert_allclose(results[0], interpreted, rtol=0, atol=1e-5 * scale)
    return results[0]
