"""Scatter and sorting kernels: compiled against interpreted against plain Python; scratch memory from the kernel to the running module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere
from onnx import helper

import compiler.kernels  # noqa: F401 # registers the families
import tensorsmith
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.ir.scalar import Arg, cast
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Operand, Workload, family
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

TARGET = resolve("x86-64-v3")
DTYPES = st.sampled_from([DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.INT64, DType.UINT8])
quick = settings(max_examples=30, deadline=None)


def type_of(x: np.ndarray) -> TensorType:
    return TensorType(DType.of(x.dtype), x.shape)


@quick
@given(st.data(), st.integers(0, 40), st.integers(1, 20), st.integers(0, 9), DTYPES, st.sampled_from(["none", "add", "mul", "max", "min"]))
def test_scatter(data: st.DataObject, rows: int, row: int, count: int, dtype: DType, kind: str) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, updates = (rng.integers(0, 4, shape).astype(dtype.numpy) for shape in ((rows, row), (count, row)))
    positions = np.array(data.draw(st.lists(st.integers(-2, rows + 1), min_size=count, max_size=count)), np.int64)
    want = x.copy()
    for position, update in zip(positions, updates, strict=True):
        if 0 <= position < rows:
            old = want[position]
            combined = {"none": update, "add": old + update, "mul": old * update, "max": np.maximum(old, update), "min": np.minimum(old, update)}
            want[position] = combined[kind]
    inputs = tuple(Operand(type_of(v)) for v in (x, positions, updates))
    threads = data.draw(st.integers(1, 4))
    work = Workload("scatter", (("kind", kind),), inputs, type_of(x), type_of(x), Arg(0, dtype), (), threads)
    builder = family("scatter")
    assert builder.supports(work, TARGET)
    got = run_everywhere(builder, work, data.draw(st.sampled_from(list(builder.space(work, TARGET)))), [x, positions, updates], TARGET)
    np.testing.assert_array_equal(got, want)


@quick
@given(st.data(), st.lists(st.integers(1, 5), min_size=0, max_size=2), st.integers(1, 40), DTYPES, st.booleans())
def test_sorting(data: st.DataObject, others: list[int], length: int, dtype: DType, largest: bool) -> None:
    axis = data.draw(st.integers(0, len(others)))
    shape = (*others[:axis], length, *others[axis:])
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 9, shape).astype(dtype.numpy)
    if dtype.is_float:
        x[x == 8] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    k = data.draw(st.integers(1, length))

    def positions(row: np.ndarray) -> np.ndarray:
        keys = [np.inf if np.isnan(v) else float(v) for v in row]
        nans = [bool(np.isnan(v)) for v in row]
        order = sorted(range(length), key=lambda i: (-keys[i], not nans[i], i) if largest else (keys[i], nans[i], i))
        return np.array(order[:k])

    want = np.apply_along_axis(positions, axis, x)
    anchor = TensorType(DType.INT64, want.shape)
    output = TensorType(data.draw(st.sampled_from([DType.INT64, DType.INT32])), want.shape)
    params = (("axis", axis), ("k", k), ("largest", largest))
    epilogue = cast(Arg(0, DType.INT64), output.dtype)
    work = Workload("merge_sort", params, (Operand(type_of(x)),), anchor, output, epilogue, (), data.draw(st.integers(1, 3)))
    builder = family("merge_sort")
    assert builder.supports(work, TARGET)
    got = run_everywhere(builder, work, data.draw(st.sampled_from(list(builder.space(work, TARGET)))), [x], TARGET)
    np.testing.assert_array_equal(got, want)


def sorting_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("TopK", ["twice", "k"], ["values", "positions"]),
        helper.make_node("Relu", ["values"], ["kept"]),
    ]
    graph = helper.make_graph(
        nodes,
        "top",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (64, 100))],
        [
            helper.make_tensor_value_info("kept", onnx.TensorProto.FLOAT, (64, 100)),
            helper.make_tensor_value_info("positions", onnx.TensorProto.INT64, (64, 100)),
        ],
        [helper.make_tensor("k", onnx.TensorProto.INT64, [1], [100])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_scratch_in_the_text_of_programs() -> None:
    planned, _ = optimize(import_model(sorting_model()), TARGET, 2)
    program = lower(planned, TARGET, 2)
    text = print_program(program)
    assert program.scratch_bytes % 64 == 0
    assert f" scratch <{program.scratch_bytes}> " in text
    parsed = parse_program(text, weights_of(program))
    assert (parsed.scratch_bytes, parsed.calls) == (program.scratch_bytes, program.calls)


@pytest.mark.parametrize(("compiled", "run"), [(1, 1), (2, 2), (1, 3)])
def test_each_worker_has_its_own_scratch(compiled: int, run: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 100)).astype(np.float32)
    path = tmp_path / "top.module"
    tensorsmith.compile(sorting_model(), threads=compiled, cache=False).save(path)
    module = tensorsmith.load(path, threads=run)
    assert module.memory().scratch == 832 + 1600
    for _ in range(20):
        outputs = module.run({"x": x})
        order = np.argsort(-x, axis=1, kind="stable")
        np.testing.assert_array_equal(outputs["positions"], order)
        np.testing.assert_array_equal(outputs["kept"], np.maximum(2 * np.take_along_axis(x, order, 1), 0))
