"""What stands around an operator and it does itself: padding, transposes, conversions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_cases import CONV, check_same, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from recovery import ops, recovered

import tensorsmith as ts
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.intexpr import minimum, sym
from compiler.ir.types import DType, TensorType
from compiler.pipeline import canonical_passes, optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.recover import RecoverOps


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(("conv", "average", "max")), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 3), st.integers(1, 2))
def test_padding_goes_into_windows(kind: str, pads: list[int], size: int, stride: int) -> None:
    """More of it than a window is wide, too; in native code."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 5))
    value = -np.inf if kind == "max" else 0.0
    around = numpy_helper.from_array(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), "around")
    weights = numpy_helper.from_array(np.arange(6 * size * size, dtype=np.float32).reshape(2, 3, size, size) - 7, "weights")
    padded = helper.make_node("Pad", ["x", "around", "value"], ["padded"])
    window = {"kernel_shape": (size, size), "strides": (stride, stride)}
    match kind:
        case "conv":
            node = helper.make_node("Conv", ["padded", "weights"], ["y"], pads=(1, 0, 0, 1), **window)
        case "max":
            node = helper.make_node("MaxPool", ["padded"], ["y"], **window)
        case _:
            node = helper.make_node("AveragePool", ["padded"], ["y"], **window)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [around, weights, numpy_helper.from_array(np.array(value, np.float32), "value")]
    model = helper.make_model(helper.make_graph([padded, node], "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 20)])
    graph, _ = PassManager(canonical_passes(3), verify=True).run(import_model(model, {}))
    assert "pad" not in ops(graph)
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)}
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(ts.compile(model, threads=1, cache=False).run(feeds)["y"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": 1.0}, "%p is padded with 1.0, not with 0"),
        ({"begins": (0, 1, 0, 0)}, "%p has more batches or channels"),
        ({"begins": (0, 0, -1, 0)}, "%p leaves something out"),
    ],
)
def test_other_padding_stays(changes: dict[str, Any], reason: str) -> None:
    b = GraphBuilder("g", folding=False)
    padding = {"begins": (0, 0, 1, 1), "ends": (0, 0, 1, 1), "mode": "constant", "value": 0.0, **changes}
    padded = b.emit("pad", b.input("x", f32(1, 2, 4, 4)), name="p", **padding)
    weights = b.constant(np.ones((2, padded.type.static_shape[1], 1, 1), np.float32))
    result = recovered(b.graph([b.emit("conv", padded, weights, **CONV)]))
    assert [(event.rule, event.reason) for event in result.events] == [("padded-conv", reason)]


def test_pools_that_do_not_count_zeros_and_other_transposes_and_casts_stay() -> None:
    b = GraphBuilder("g", folding=False)
    x, half = b.input("x", f32(1, 2, 4, 4)), b.input("h", TensorType(DType.FLOAT16, (2, 4)))
    pool = {"kernel_shape": (2, 2), "strides": (1, 1), "dilations": (1, 1), "count_include_pad": False}
    padded = b.emit("pad", x, name="p", begins=(0, 0, 1, 1), ends=(0, 0, 0, 0), mode="constant", value=0.0)
    outputs = [
        b.emit("pool", padded, kind="average", pads=(1, 1, 1, 1), ceil_mode=False, **pool),
        b.emit("pool", padded, kind="average", pads=(0, 0, 0, 0), ceil_mode=True, **pool),
        b.emit("pool", padded, kind="max", pads=(0, 0, 0, 0), ceil_mode=False, **pool),
        b.emit("transpose", b.emit("softmax", b.emit("transpose", x, perm=(0, 2, 3, 1)), axis=3, log=False), perm=(0, 2, 3, 1)),
        b.emit("cast", b.emit("softmax", b.emit("cast", half, to=DType.FLOAT32), axis=1, log=False), to=DType.FLOAT64),
    ]
    result = recovered(b.graph(outputs))
    assert not result.changed
    assert [(event.rule, event.reason) for event in result.events] == [
        ("padded-pool", "the pool does not count its own padding"),
        ("padded-pool", "the pool's last windows may begin in its padding"),
        ("padded-pool", "%p is padded with 0.0, not with -inf"),
        ("transposed-softmax", "the transposes do not undo each other"),
        ("widened", "from f16 to f64 is not there and back from what is computed in a wider type"),
    ]


def pixels(channels: int, axes: int, stride: int, *, bias: tuple[int, ...] = (), dtype: DType = DType.FLOAT32, **changes: Any) -> Graph:
    """A convolution whose channels become neighbours along every axis, read by another convolution."""
    b, rng = GraphBuilder("g", folding=False), np.random.default_rng(0)

    def conv(x: Value, outputs: int) -> Value:
        weights = b.constant(rng.standard_normal((outputs, x.type.static_shape[1], *(3,) * axes)).astype(dtype.numpy))
        return b.emit("conv", x, weights, strides=(1,) * axes, pads=(1,) * 2 * axes, dilations=(1,) * axes, group=1)

    places = tuple(range(4, 4 + axes))
    x = conv(b.input("x", TensorType(dtype, (1, 3, *places))), channels * stride**axes)
    x = b.emit("add", x, b.constant(rng.standard_normal(bias or (x.type.static_shape[1], *(1,) * axes)).astype(dtype.numpy)), name="biased")
    split = b.emit("reshape", x, shape=(1, channels, *(stride,) * axes, *places), name="split")
    perm = changes.get("perm", (0, 1, *(k for axis in range(axes) for k in (2 + axes + axis, 2 + axis))))
    spread = b.emit("transpose", split, perm=perm)
    y = b.emit("reshape", spread, shape=changes.get("shape", (1, channels, *(place * stride for place in places))), name="y")
    return b.graph([conv(y, 8)])


@settings(max_examples=10, deadline=None)
@given(st.sampled_from((1, 3, 8, 16)), st.integers(1, 3), st.integers(1, 3))
def test_pixel_shuffles_take_their_order_from_the_convolution(channels: int, axes: int, stride: int) -> None:
    """The channels that become neighbours are given in whole blocks, which move as vectors; nothing is converted between the convolutions."""
    graph = pixels(channels, axes, stride)
    canonical, _ = PassManager(canonical_passes(3), verify=True).run(graph)
    assert set(ops(canonical)) <= {"conv", "add", "interleave"}
    check_same(graph, canonical, 1e-5)
    planned, _ = optimize(graph, resolve("x86-64-v3"), verify=True)
    check_same(graph, planned, 1e-5)
    if channels % 8 == 0:
        assert [node.op for node in planned.nodes if node.op == "group" and "to_layout" in ops(node.regions[0])] == ["group"], "the result's"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": DType.FLOAT16}, "only a convolution of constant weights, not in half precision, can take the order of the channels"),
        ({"bias": (4, 5)}, "%const.1 is not one number for each channel"),
        ({"perm": (0, 1, 4, 3, 5, 2)}, "it is not parts of the channels that become neighbouring elements"),
        ({"shape": (1, 2, 10, 8)}, "it is not parts of the channels that become neighbouring elements"),
        ({"shape": (1, 4, 8, 5)}, "%split does not split the channels alone"),
    ],
)
def test_other_orders_of_pixels_stay(changes: dict[str, Any], reason: str) -> None:
    result = recovered(pixels(2, 2, 2, **changes))
    assert not result.changed
    assert ("pixel-shuffle", reason) in [(event.rule, event.reason) for event in result.events]


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"starts": (0, 3, 0, 0), "sizes": (1, 4, 4, 5), "steps": (1, 1, 1, 1)}, True),
        ({"starts": (0, 0, 0, 4), "sizes": (1, 8, 4, 5), "steps": (1, 1, 1, -1)}, False),
        ({"starts": (0, 0, 0, 0), "sizes": (1, 4, 4, 5), "steps": (1, 2, 1, 1)}, False),
        ({"starts": (0, 0, 1, 0), "sizes": (1, 4, 3, 5), "steps": (1, 1, 1, 1)}, False),
        ({"starts": (0, 0, 0, 0), "sizes": (1, minimum(8, sym("n")), 4, 5), "steps": (1, 1, 1, 1)}, False),
    ],
)
def test_parts_of_shuffles(part: dict[str, Any], found: bool) -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("shuffle_channels", b.input("x", f32(1, 8, 4, 5)), group=2, start=0, size=8)
    b.input("beside", f32(sym("n")))
    result = recovered(b.graph([b.emit("slice", x, name="y", **part)]))
    assert (result.changed, ops(result.graph).count("slice")) == (found, not found)
    reason = None if found else "it is not neighbouring channels, of a known number, as they are"
    assert ("part-of-shuffle", reason) in [(event.rule, event.reason) for event in result.events]


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_norms_of_narrow_floats_between_casts(dtype: DType) -> None:
    """Centred in 16 bits, the rest between conversions, as exporters write it before LayerNormalization; one over 10 is rounded."""
    b = GraphBuilder("g", folding=False)
    x = b.input("x", TensorType(dtype, (3, 10)))
    total = b.emit("reduce", x, kind="sum", axes=(1,), keepdims=True)
    centered = b.emit("sub", x, b.emit("mul", total, b.constant(np.asarray(0.1).astype(dtype.numpy))))
    wide = b.emit("cast", centered, to=DType.FLOAT32)
    squares = b.emit("reduce", b.emit("mul", wide, wide), kind="sum", axes=(1,), keepdims=True)
    root = b.emit("sqrt", b.emit("add", b.emit("mul", squares, b.constant(np.float32(0.1))), b.constant(np.float32(1e-3))))
    graph = b.graph([b.emit("cast", b.emit("div", wide, root), to=dtype)])
    after = RecoverOps().run(graph).graph
    assert [(node.op, node.attrs["center"]) for node in after.nodes] == [("normalize", True)]
    check_same(graph, after, 2e-2)
