"""GroupQueryAttention against ONNX Runtime: prompts padded on the right, and caches longer than what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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
