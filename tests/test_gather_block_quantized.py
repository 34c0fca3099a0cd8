"""GatherBlockQuantized with tables of four-bit types, which are constants, against ONNX Runtime; and rows that do not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ml_dtypes import int4, uint4
from test_ops import assert_same, expected, feeds_of, one_node_model

import tensorsmith
from compiler.ir.op import Sample

_CODES = (np.arange(3 * 4 * 32) * 7 % 16 - 8).reshape(3, 4, 32)
_SCALES = np.linspace(0.1, 0.9, 24).astype(np.float32).reshape(3, 4, 2)
_ROWS = np.array([2, -3, 1], np.int64)


@pytest.mark.parametrize(
    ("table", "zeros", "attrs"),
    [
        (_CODES.astype(int4), None, {"quantize_axis": -1}),
        (_CODES.astype(int4), _CODES[..., :2].astype(int4), {"quantize_axis": 2, "gather_axis": 1}),
        ((_CODES + 8).astype(uint4), (_CODES[..., 3:5] + 8).astype(uint4), {"quantize_axis": 2}),
    ],
)
def test_tables_of_four_bits(table: np.ndarray, zeros: np.ndarray | None, attrs: dict[str, Any]) -> None:
    inputs = (table, _ROWS, _SCALES) if zeros is None else (table, _ROWS, _SCALES, zeros)
    given = {"block_size": 16, **attrs}
    sample = Sample("GatherBlockQuantized", inputs, given, opset=1, constant=(0, 2, 3)[: len(inputs) - 1], domain="com.microsoft")
    model = one_node_model(sample)
    got = tensorsmith.compile(model, cache=False, threads=1).run(feeds_of(sample))
    (want,) = expected(model, sample)
    assert_same(got["y0"], want)


def test_rows_that_do_not_exist_are_zero() -> None:
    inputs = (_CODES.astype(int4), np.array([3, 1, -4], np.int64), _SCALES)
    sample = Sample("GatherBlockQuantized", inputs, {"block_size": 16, "quantize_axis": 2}, opset=1, constant=(0, 2), domain="com.microsoft")
    got = tensorsmith.compile(one_node_model(sample), cache=False, threads=1).run(feeds_of(sample))["y0"]
    assert not got[[0, 2]].any()
    assert got[1].any()
