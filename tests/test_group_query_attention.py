"""GroupQueryAttention against ONNX Runtime: prompts padded on the right, and caches longer than what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from test_ops import assert_same, expected, feeds_of, one_node_model

import tensorsmith
from compiler.ir.op import Sample

_HEADS, _KEPT, _SIZE = 4, 2, 16


def node(steps: int, past: int, lengths: list[int], total: int, **attrs: Any) -> Sample:
    rng, batch = np.random.default_rng(0), len(lengths)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    angles = np.arange(32 * _SIZE // 2, dtype=np.float32).reshape(32, -1) / 9
    new = (random(batch, steps, _HEADS * _SIZE), random(batch, steps, _KEPT * _SIZE), random(batch, steps, _KEPT * _SIZE))
    old = (random(batch, _KEPT, past, _SIZE), random(batch, _KEPT, past, _SIZE)) if past else (None, None)
    numbers = (np.array(lengths, np.int32) - 1, np.array(total, np.int32))
    inputs = (*new, *old, *numbers, np.cos(angles), np.sin(angles))
    given = {"num_heads": _HEADS, "kv_num_heads": _KEPT, "do_rotary": 1, **attrs}
    return Sample("GroupQueryAttention", inputs, given, opset=1, constant=(6,), outputs=3, domain="com.microsoft")


@pytest.mark.parametrize(
    ("steps", "past", "lengths", "total", "attrs"),
    [
        (1, 9, [4, 7], 7, {}),
        (1, 9, [4], 4, {"local_window_size": 3}),
        (3, 9, [7], 7, {}),
        (4, 9, [4, 4], 4, {"smooth_softmax": 1}),
    ],
)
def test_caches(steps: int, past: int, lengths: list[int], total: int, attrs: dict[str, Any]) -> None:
    sample = node(steps, past, lengths, total, **attrs)
    model = one_node_model(sample)
    got = tensorsmith.compile(model, cache=False, threads=1).run(feeds_of(sample))
    for value, want in zip(got.values(), expected(model, sample), strict=True):
        assert_same(value, want)


def test_a_prompt_padded_on_the_right() -> None:
    """What a sequence's padding gives is not defined."""
    sample = node(5, 0, [5, 3], 5)
    model = one_node_model(sample)
    got = tensorsmith.compile(model, cache=False, threads=1).run(feeds_of(sample))
    for value, want, axis in zip(got.values(), expected(model, sample), (0, 1, 1), strict=True):
        assert_same(value[0], want[0])
        assert_same(value[1].take(range(3), axis), want[1].take(range(3), axis))


def test_lengths_that_only_a_run_knows() -> None:
    """One compiled model decodes at any length of the past, as one compiled for that length does."""
    model = one_node_model(node(1, 5, [6], 6))
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("x6", onnx.TensorProto.INT32, ()))
    symbols = {"x0": (1, "steps"), "x1": (1, "steps"), "x2": (1, "steps"), "x3": (2, "past"), "x4": (2, "past")}
    for value in model.graph.input:
        if value.name in symbols:
            axis, name = symbols[value.name]
            value.type.tensor_type.shape.dim[axis].dim_param = name
    module = tensorsmith.compile(model, cache=False, threads=1)
    for steps, past in ((1, 5), (1, 9), (4, 3)):
        sample = node(steps, past, [past + steps], past + steps)
        feeds = {**feeds_of(sample), "x6": sample.inputs[6]}
        for value, want in zip(module.run(feeds).values(), expected(one_node_model(sample), sample), strict=True):
            assert_same(value, want)
