"""Kernels that store in strides, as operands of joins do: every family, on samples, beside what it stores together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_ops import feeds_of, one_node_model

from backends.reference import _Run
from compiler.errors import UnsupportedError
from compiler.ir.interp import bind_inputs
from compiler.ir.intexpr import evaluate
from compiler.ir.loop import Access
from compiler.ir.loop_interp import LoopInterpreter
from compiler.ir.op import Elementwise, Op, Sample, all_ops
from compiler.ir.program import KernelCall, Program
from compiler.ir.strided import row_major
from compiler.ir.types import pack_physical
from compiler.kernels.base import Family, Workload
from compiler.lowering import heuristic, lower
from compiler.target import resolve
from frontend.onnx.importer import import_model
from tests.graph_cases import kernels_apart

TARGET = resolve("x86-64-v3")

PLAIN = {
    **dict.fromkeys(("compact", "nms", "piece_bounds"), "how many results there are a run knows last"),
    **dict.fromkeys(("linear_attention", "recurrence", "scatter"), "what is stored is read again"),
    **dict.fromkeys(("change_case", "concat_text", "format_integer", "part_of_text"), "texts are made in the order of their elements"),
}
"""The families whose results always lie together, and why."""

_MOST_SAMPLES = 3
"""Of one operator."""

_MOST_ELEMENTS = 1 << 16
"""Of all operands and the result of a kernel."""

Chosen = tuple[Family, Workload, Any]


def within(workload: Workload, sizes: dict[str, int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of what may hold the output of a kernel, and where it begins there: one axis is longer."""
    shape = tuple(evaluate(dim, sizes) for dim in workload.output.physical_shape)
    for axis in range(1, len(shape) - (workload.output.block != 1)):
        for before, behind in ((1, 0), (0, 3)):
            around = tuple(dim + (before + behind) * (k == axis) for k, dim in enumerate(shape))
            yield around, tuple(before * (k == axis) for k in range(len(shape)))


class BothWays(_Run):
    """Runs every kernel of one result in strides, too; ``seen`` are the families that can."""

    def __init__(self, program: Program, chosen: list[Chosen], *rest: Any) -> None:
        super().__init__(program, *rest)
        self._chosen = {}
        self.seen: set[str] = set()
        for family, workload, schedule in chosen:
            built = family.build(workload, schedule, TARGET, "kernel")
            for number, function in enumerate(program.functions):
                if replace(built, name=function.name, params=function.params) == function:
                    self._chosen[number] = family, workload, schedule

    def _call(self, call: KernelCall, workers: int) -> None:
        found = self._chosen.get(call.function)
        function = self._kernels[call.function].function
        params = {name: self._number(param) for name, param in zip(function.params, call.params, strict=True)}
        views = self._views(call, params)
        if found is None or found[1].further or sum(view.size for view in views) > _MOST_ELEMENTS:
            super()._call(call, workers)
            return
        before = [view.copy() for view in views]
        super()._call(call, workers)
        after = self._views(call, params)
        (out,) = (number for number, buffer in enumerate(function.buffers) if buffer.access is Access.WRITE)
        self._in_strides(found, before, after[out], out, params)

    def _views(self, call: KernelCall, params: dict[str, int]) -> list[np.ndarray]:
        buffers = self._kernels[call.function].function.buffers
        return [self._view(call, buffer, address, params) for buffer, address in zip(buffers, call.args, strict=True)]

    def _in_strides(self, chosen: Chosen, given: list[np.ndarray], want: np.ndarray, out: int, params: dict[str, int]) -> None:
        family, workload, schedule = chosen
        if "pieces" in workload.attrs or not family.supports(replace(workload, stored_strides=workload.output_strides), TARGET):
            return  # pieces say themselves where they are stored
        for around, begin in within(workload, self._sizes):
            work = replace(workload, stored_strides=row_major(around))
            kernel = LoopInterpreter(replace(family.build(work, schedule, TARGET, "kernel"), params=tuple(params)))
            untouched = np.array(77).astype(want.dtype)
            memory = np.full(around, untouched)
            first = sum(at * step for at, step in zip(begin, row_major(around), strict=True))
            kernel([memory.reshape(-1)[first:] if number == out else array.copy() for number, array in enumerate(given)], params, 2)
            shape = tuple(evaluate(dim, self._sizes) for dim in workload.output.physical_shape)
            place = tuple(slice(start, start + dim) for start, dim in zip(begin, shape, strict=True))
            logical = tuple(evaluate(dim, self._sizes) for dim in workload.output.shape)
            used = pack_physical(np.ones(logical, bool), workload.output.block)
            np.testing.assert_array_equal(memory[place][used], want.reshape(shape)[used])
            memory[place] = untouched
            assert (memory == untouched).all(), "wrote outside of its part"
            self.seen.add(family.name)


def check(sample: Sample) -> set[str]:
    """Check every kernel of a sample; the families that can store in strides."""
    try:
        graph = kernels_apart(import_model(one_node_model(sample)), TARGET)
    except UnsupportedError:
        return set()
    chosen: list[Chosen] = []

    def choose(family: Family, workload: Workload, target: Any) -> Any:
        chosen.append((family, workload, heuristic(family, workload, target)))
        return chosen[-1][2]

    program = lower(graph, TARGET, 2, choose)
    arrays, dims = bind_inputs(program.inputs, feeds_of(sample))
    run = BothWays(program, chosen, arrays, dict(dims), 2)
    run.outputs()
    return run.seen


@pytest.mark.parametrize("op", [op for op in all_ops() if op.samples and not isinstance(op, Elementwise)], ids=lambda op: op.name)
def test_kernels_write_nothing_but_their_part(op: Op) -> None:
    families = set().union(*map(check, op.samples[:_MOST_SAMPLES]))
    assert families.isdisjoint(PLAIN)
