"""The shared model zoo: real architectures with seeded weights, found through TENSORSMITH_MODELS."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

FOLDER = Path(os.environ.get("TENSORSMITH_MODELS", Path(__file__).resolve().parent.parent.parent / "shared" / "models"))
REASON = f"no model zoo in {FOLDER}; set TENSORSMITH_MODELS to a folder with zoo.py"
needs_zoo = pytest.mark.skipif(not (FOLDER / "zoo.py").exists(), reason=REASON)


def load(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A zoo model and its inputs; ``real/NAME`` is a trained model, with a photo-sized random input."""
    if name.startswith("real/"):
        model = onnx.load(FOLDER / f"{name}.onnx")
        constants = {i.name for i in model.graph.initializer}
        shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input if i.name not in constants}
        rng = np.random.default_rng(0)
        return model, {key: rng.uniform(-1, 1, shape).astype(np.float32) for key, shape in shapes.items()}
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    import zoo

    return zoo.load(name)


def session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime's, on the CPU and without its warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnxruntime_outputs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    outputs: list[np.ndarray] = session(model).run(None, dict(feeds))
    return outputs


def relative_difference(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest value wanted."""
    scale = float(np.abs(want.astype(np.float64)).max(initial=0))
    worst = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0))
    return worst / scale if scale else worst
