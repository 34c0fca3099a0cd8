"""Lowering: workloads of groups, sharing of kernels and weights, addresses, errors, and programs run in the memory planned for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from backends.reference import run_program
from compiler.errors import UnsupportedError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.program import Program, Space
from compiler.ir.scalar import Arg, Const, call
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Workload
from compiler.lowering import lower, workloads
from compiler.pipeline import optimize
from compiler.target import resolve
from tests.graph_cases import CONV, f32, feeds, kernels_apart, networks

TARGET = resolve("x86-64-v3")


def ramp(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 7 - 3) / 4


def planned(graph: Graph) -> Graph:
    return kernels_apart(graph, TARGET)


def two_blocks() -> Graph:
    """Two equal convolutions with different weights and the same bias, between two others."""
    b = GraphBuilder("two", folding=False)
    x = b.emit("relu", b.emit("conv", b.input("x", f32(1, 3, 5, 5)), b.constant(ramp(8, 3, 1, 1)), **CONV))
    bias = b.constant(ramp(1, 8, 1, 1))
    first = b.emit("relu", b.emit("add", b.emit("conv", x, b.constant(ramp(8, 8, 1, 1)), **CONV), bias))
    second = b.emit("relu", b.emit("add", b.emit("conv", first, b.constant(ramp(8, 8, 1, 1) + 1), **CONV), bias))
    third = b.emit("conv", second, b.constant(ramp(8, 8, 1, 1)), **CONV)
    return b.graph([b.emit("clip", b.emit("add", third, first), low=0.0, high=6.0, name="y")])


def test_epilogue_is_one_expression_over_the_operands() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = b.input("x", f32(3, 4)), b.input("y", f32(3, 4))
    product = b.emit("matmul", x, b.constant(ramp(4, 4)))
    total = b.emit("add", b.emit("add", product, b.constant(ramp(4))), y)
    result = b.emit("mul", total, b.constant(np.float32(0.5)))
    ((family, workload),) = workloads(planned(b.graph([result])), TARGET, threads=3)
    args = [Arg(i, DType.FLOAT32) for i in range(3)]
    assert workload.epilogue == call("mul", call("add", call("add", args[0], args[1]), args[2]), Const(0.5, DType.FLOAT32))
    assert [(o.type, o.constant) for o in workload.inputs] == [(f32(3, 4), False), (f32(4, 4), True)]
    assert [(o.type, o.constant) for o in workload.operands] == [(f32(1, 4), True), (f32(3, 4), False)]
    assert (workload.anchor, workload.output, workload.threads, family.name) == (f32(3, 4), f32(3, 4), 3, "matmul")


def test_group_without_anchor_has_operands_only() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 3))
    ((family, workload),) = workloads(planned(b.graph([b.emit("mul", b.emit("exp", x), x)])), TARGET, threads=1)
    element = Arg(1, DType.FLOAT32)
    assert workload.epilogue == call("mul", call("exp", element), element)
    assert (workload.inputs, workload.params, len(workload.operands), family.name) == ((), (), 1, "injective")


def test_index_mapping_carries_its_boxes() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 3))
    ((family, workload),) = workloads(planned(b.graph([b.emit("transpose", x, perm=(1, 0))])), TARGET, threads=1)
    assert [name for name, _ in workload.params] == ["regions"]
    assert (len(workload.inputs), workload.operands, family.name) == (1, (), "injective")


def test_equal_kernels_and_weights_are_shared() -> None:
    program = lower(planned(two_blocks()), TARGET, threads=1)
    convs = [c for c in program.calls if c.family == "pointwise_conv"]
    assert len({c.function for c in convs}) == len(convs) - 1 == 3
    weights = [[a.offset for a in c.args if a.space is Space.WEIGHTS] for c in convs[1:3]]
    assert weights[0][0] != weights[1][0]
    assert weights[0][1] == weights[1][1]
    offsets = [offset for offset, _ in program.weights]
    assert offsets == sorted(offsets)
    assert all(offset % 64 == 0 for offset in offsets)
    assert program.weights_bytes == max(offset + array.nbytes for offset, array in program.weights)
    assert len({f.name for f in program.functions}) == len(program.functions) < len(program.calls)


def test_kernel_names_come_from_content() -> None:
    names = [[f.name for f in lower(planned(two_blocks()), TARGET, threads=1).functions] for _ in range(2)]
    assert names[0] == names[1]
    other = [f.name for f in lower(planned(two_blocks()), TARGET, threads=2).functions]
    assert not set(other) & set(names[0])


def test_schedules_come_from_choose() -> None:
    asked: list[Workload] = []

    def last(family: Any, workload: Workload, target: Any) -> Any:
        asked.append(workload)
        return family.space(workload, target)[-1]

    graph = planned(two_blocks())
    program = lower(graph, TARGET, threads=1, choose=last)
    assert [w.family for w in asked] == [c.family for c in program.calls]
    assert [c.schedule for c in program.calls] != [c.schedule for c in lower(graph, TARGET, threads=1).calls]
    check_program(two_blocks(), program)


def test_calls_describe_themselves() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 3))
    program = lower(planned(b.graph([b.emit("matmul", x, b.constant(ramp(3, 5)), name="head")])), TARGET, threads=1)
    (found,) = program.calls
    assert (found.name, found.flops, found.nbytes) == ("head", 2 * 2 * 3 * 5, 4 * (2 * 3 + 3 * 5 + 2 * 5))
    assert [a.space for a in found.args] == [Space.INPUT, Space.WEIGHTS, Space.OUTPUT]
    assert (program.arena_bytes, program.arena_bound_bytes) == (0, 0)


def test_all_unsupported_nodes_are_listed() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", TensorType(DType.UINT8, (1, 2, 5, 5)))
    w = b.constant(np.ones((2, 2, 1, 1), np.uint8))
    first = b.emit("conv", x, w, name="stem", **CONV)
    graph = planned(b.graph([b.emit("conv", first, w, name="head", **CONV)]))
    with pytest.raises(UnsupportedError) as caught:
        lower(graph, TARGET, threads=1)
    assert [item.split(":")[0] for item in caught.value.items] == ["node stem", "node head"]
    assert "conv of u8[1, 2, 5, 5]" in caught.value.items[0]


def test_kernels_are_told_apart_by_their_constants_bits() -> None:
    b = GraphBuilder("g", folding=False)
    numbers = {"x": 0.0, "y": -0.0, "z": np.nan, "w": np.nan}
    results = [b.emit("mul", b.input(name, f32(4)), b.constant(np.array(number, np.float32))) for name, number in numbers.items()]
    planned, _ = optimize(b.graph([b.emit("neg", result) for result in results]), TARGET)
    program = lower(planned, TARGET, threads=1)
    assert len(program.functions) == len({f.name for f in program.functions}) == 3
    zero, minus, *_ = run_program(program, {name: np.ones(4, np.float32) for name in numbers}).values()
    assert np.signbit(zero).all()
    assert not np.signbit(minus).any()


def check_program(graph: Graph, program: Program, workers: int = 1, tolerance: float = 1e-4) -> None:
    """The program gives what the graph means, in memory that is poisoned before."""
    given_ = feeds(graph)
    expected, got = interpret(graph, given_), run_program(program, given_, workers)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * max(1.0, float(np.abs(array).max(initial=0))), err_msg=name)


def test_program_of_shared_kernels_is_right() -> None:
    check_program(two_blocks(), lower(planned(two_blocks()), TARGET, threads=2), workers=2)


@pytest.mark.parametrize("outputs", ["input", "constant", "view of input", "two views"])
def test_outputs_without_work_of_their_own(outputs: str) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2, 3))
    k = b.constant(ramp(2, 3))
    relu = b.emit("relu", x)
    chosen: dict[str, list[Value]] = {
        "input": [b.emit("identity", x), relu],
        "constant": [b.emit("identity", k), relu],
        "view of input": [b.emit("reshape", x, shape=(6,))],
        "two views": [b.emit("reshape", relu, shape=(6,)), b.emit("reshape", relu, shape=(3, 2)), relu],
    }
    graph = b.graph(chosen[outputs])
    check_program(graph, lower(planned(graph), TARGET, threads=1))


@settings(max_examples=15, deadline=None)
@given(networks())
def test_random_networks_run_in_planned_memory(graph: Graph) -> None:
    check_program(graph, lower(planned(graph), TARGET, threads=2), workers=2)
