"""The kernel of LinearAttention, compiled and interpreted, against the operator's own meaning; the operator against itself in steps."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere
from onnx import helper
from onnx.reference import ReferenceEvaluator

import compiler.ops  # noqa: F401 - registers the operators
import tensorsmith
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import Operand, Workload, family
from compiler.target import resolve

TARGET = resolve("x86-64-v3")


def operands(rng: np.random.Generator, sizes: tuple[int, ...], decay: str | None, beta: str | None) -> dict[str, np.ndarray]:
    batch, steps, heads, group, rows, columns = sizes
    found = {
        "query": rng.normal(size=(batch, steps, heads * group, rows)),
        "key": rng.normal(size=(batch, steps, heads, rows)) / np.sqrt(rows),
        "value": rng.normal(size=(batch, steps, heads, columns)),
        "state": rng.normal(size=(batch, heads, rows, columns)),
    }
    if decay is not None:
        found["decay"] = rng.uniform(0.5, 1, (batch, steps, heads, rows if decay == "each" else 1))
    if beta is not None:
        found["beta"] = rng.uniform(0, 1, (batch, steps, heads if beta == "each" else 1, 1))
    return {name: value.astype(np.float32) for name, value in found.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.data(),
    st.tuples(*(st.integers(1, most) for most in (2, 4, 3, 3, 9, 37))),
    st.sampled_from([None, "each", "head"]),
    st.sampled_from([None, "each", "shared"]),
)
def test_kernels_do_what_the_operator_means(data: st.DataObject, sizes: tuple[int, ...], decay: str | None, beta: str | None) -> None:
    arrays = operands(np.random.default_rng(data.draw(st.integers(0, 9))), sizes, decay, beta)
    attrs = {"operands": tuple(arrays)}
    (want,) = lookup("linear_attention").evaluate(list(arrays.values()), attrs)
    inputs = tuple(Operand(TensorType(DType.FLOAT32, x.shape), constant=data.draw(st.booleans())) for x in arrays.values())
    output = TensorType(DType.FLOAT32, want.shape)
    work = Workload("linear_attention", tuple(attrs.items()), inputs, output, output, Arg(0, DType.FLOAT32), (), data.draw(st.integers(1, 4)))
    builder = family("linear_attention")
    assert builder.supports(work, TARGET)
    schedule = data.draw(st.sampled_from(list(builder.space(work, TARGET))))
    got = run_everywhere(builder, work, schedule, list(arrays.values()), TARGET)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(np.abs(want).max()))


def model(steps: int, heads: int, rows: int, columns: int) -> onnx.ModelProto:
    shapes = {
        "q": (1, steps, heads * rows),
        "k": (1, steps, heads * rows),
        "v": (1, steps, heads * columns),
        "s": (1, heads, rows, columns),
        "g": (1, steps, heads),
        "b": (1, steps, heads),
    }
    node = helper.make_node("LinearAttention", list(shapes), ["y", "t"], q_num_heads=heads, kv_num_heads=heads)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "linear", inputs, [onnx.ValueInfoProto(name="y"), onnx.ValueInfoProto(name="t")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)], ir_version=10)


def test_one_step_at_a_time_is_the_same_as_all_steps() -> None:
    rng, (steps, heads, rows, columns) = np.random.default_rng(3), (9, 3, 16, 24)
    shapes = {"q": heads * rows, "k": heads * rows, "v": heads * columns, "g": heads, "b": heads}
    feeds = {name: rng.normal(size=(1, steps, width)).astype(np.float32) / 4 for name, width in shapes.items()}
    feeds["g"] = -np.abs(feeds["g"])
    state = np.zeros((1, heads, rows, columns), np.float32)
    whole = tensorsmith.compile(model(steps, heads, rows, columns), cache=False, threads=2).run({**feeds, "s": state})
    single = tensorsmith.compile(model(1, heads, rows, columns), cache=False, threads=1)
    for step in range(steps):
        found = single.run({**{name: value[:, step : step + 1] for name, value in feeds.items()}, "s": state})
        state = np.array(found["t"])
        np.testing.assert_allclose(found["y"], whole["y"][:, step : step + 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, whole["t"], rtol=1e-5, atol=1e-6)


def test_batches_and_steps_that_only_a_run_knows() -> None:
    rng, (heads, rows, columns) = np.random.default_rng(3), (3, 16, 24)
    proto = model(2, heads, rows, columns)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        if value.name != "s":
            value.type.tensor_type.shape.dim[1].dim_param = "steps"
    module = tensorsmith.compile(proto, cache=False, threads=2)
    widths = {"q": heads * rows, "k": heads * rows, "v": heads * columns, "g": heads, "b": heads}
    for batch, steps in ((1, 1), (2, 5), (3, 2)):
        feeds = {name: rng.normal(size=(batch, steps, width)).astype(np.float32) / 4 for name, width in widths.items()}
        feeds = {**feeds, "g": -np.abs(feeds["g"]), "s": rng.normal(size=(batch, heads, rows, columns)).astype(np.float32)}
        found = module.run(feeds)
        for value, want in zip(found.values(), ReferenceEvaluator(proto).run(None, feeds), strict=True):
            np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
