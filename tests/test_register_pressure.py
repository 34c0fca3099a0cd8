"""Kernels keep their accumulators in registers: generated assembly hardly touches the stack with vectors."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from backends.llvm.codegen import assembly
from backends.llvm.engine import kernel_text
from compiler.ir.scalar import Arg, Const, call
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Operand, Workload, family
from compiler.target import Target, native, resolve

FLOAT = DType.FLOAT32
TARGETS = [native(), resolve("x86-64-v3"), resolve("x86-64-v4")]
ZEN4 = replace(resolve("x86-64-v4"), name="zen4", cpu="znver4", vector_bits=256)
STACK_VECTOR = re.compile(r"\b[xyz]mm\d+.*\(%rsp\)|\(%rsp\).*\b[xyz]mm\d+|\[rsp.*[xyz]mm\d+|[xyz]mm\d+.*\[rsp")
FEW = 16
"""A tile's set-up may park a few values; an inner loop that spills has dozens of stack references."""

CONVOLUTIONS = {
    "pointwise_conv": [
        ((1, 96, 56, 56), (24, 96, 1, 1), 1, 1, 0),
        ((1, 960, 7, 7), (160, 960, 1, 1), 1, 1, 0),
        ((1, 16, 112, 112), (96, 16, 1, 1), 1, 1, 0),
    ],
    "depthwise_conv": [
        ((1, 96, 56, 56), (96, 1, 3, 3), 1, 96, 1),
        ((1, 96, 112, 112), (96, 1, 3, 3), 2, 96, 1),
        ((1, 96, 28, 28), (96, 1, 5, 5), 1, 96, 2),
    ],
    "direct_conv": [
        ((1, 3, 224, 224), (32, 3, 3, 3), 2, 1, 1),
        ((1, 64, 56, 56), (64, 64, 3, 3), 1, 1, 1),
        ((1, 256, 14, 14), (256, 256, 3, 3), 1, 1, 1),
    ],
}
CASES = [(kind, *case) for kind, cases in CONVOLUTIONS.items() for case in cases]


def convolution(kind: str, x: tuple[int, ...], w: tuple[int, ...], stride: int, group: int, pad: int, block: int) -> Workload:
    size = (x[2] + 2 * pad - w[2]) // stride + 1
    out = TensorType(FLOAT, (x[0], w[0], size, size), block)
    biased = call("add", Arg(0, FLOAT), Arg(1, FLOAT))
    clipped = call("min", call("max", biased, Const(0.0, FLOAT)), Const(6.0, FLOAT))
    params = (("strides", (stride, stride)), ("pads", (pad,) * 4), ("dilations", (1, 1)), ("group", group))
    inputs = (Operand(TensorType(FLOAT, x, 1 if x[1] < block else block)), Operand(TensorType(FLOAT, w), constant=True))
    bias = Operand(TensorType(FLOAT, (1, w[0], 1, 1), block), constant=True)
    return Workload(kind, params, inputs, out, out, clipped, (bias,))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'x'.join(map(str, c[1][1:3]))}")
def test_convolutions_do_not_spill(case: tuple[str, tuple[int, ...], tuple[int, ...], int, int, int], target: Target) -> None:
    kind, x, w, stride, group, pad = case
    workload = convolution(kind, x, w, stride, group, pad, target.lanes)
    assert stack_references(workload, target) <= FEW


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(1, 1280, 1000), (197, 192, 576), (49, 64, 49)], ids=str)
def test_matrix_multiplication_does_not_spill(shape: tuple[int, int, int], target: Target) -> None:
    m, k, n = shape
    out = TensorType(FLOAT, (m, n))
    inputs = (Operand(TensorType(FLOAT, (m, k))), Operand(TensorType(FLOAT, (k, n)), constant=True))
    assert stack_references(Workload("matmul", (), inputs, out, out, Arg(0, FLOAT)), target) <= FEW


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'x'.join(map(str, c[1][1:3]))}")
def test_broadcasts_leave_the_multiply_add_units_alone(case: tuple[str, tuple[int, ...], tuple[int, ...], int, int, int]) -> None:
    kind, x, w, stride, group, pad = case
    lines = lines_of(convolution(kind, x, w, stride, group, pad, ZEN4.lanes), ZEN4)
    assert not [line for line in lines if re.search(r"vbroadcastss\s.*\(.*%ymm(1[6-9]|[23]\d)", line)]
    assert kind == "depthwise_conv" or any("vpbroadcastd" in line for line in lines)


@pytest.mark.parametrize("rows", [8, 9])
def test_results_are_stored_as_they_are_made(rows: int) -> None:
    workload = convolution("pointwise_conv", (1, 16, 16, rows), (96, 16, 1, 1), 1, 1, 0, ZEN4.lanes)
    epilogue = "".join({"vmaxps": "x", "vminps": "n"}.get(line.split()[0], "s") for line in lines_of(workload, ZEN4) if is_epilogue(line))
    assert "xxx" not in epilogue
    assert epilogue.count("xns") > epilogue.count("x") // 2


def is_epilogue(line: str) -> bool:
    return re.match(r"\s+(vmaxps|vminps|vmovup[sd]\s+%ymm\d+, .*\()", line) is not None


def stack_references(workload: Workload, target: Target) -> int:
    return sum(STACK_VECTOR.search(line) is not None for line in lines_of(workload, target))


def lines_of(workload: Workload, target: Target) -> list[str]:
    chosen = family(workload.family)
    function = chosen.build(workload, chosen.heuristic(workload, target), target, "kernel")
    return assembly(kernel_text(function, target), target).splitlines()
