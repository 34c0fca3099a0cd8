"""Timing: one engine on one model in a process of its own, repeated calls, and random inputs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compiler.cli.bench_engine import ENGINES, Timing

Array = np.ndarray[Any, np.dtype[Any]]
_WARM_UP = 3


def installed_engines() -> tuple[str, ...]:
    """The engines that can be timed here, ours first."""
    return tuple(engine for engine in ENGINES if importlib.util.find_spec(engine) is not None)


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Standard normal arrays for floating-point inputs, zeros for others; a symbolic dim is 1."""
    rng = np.random.default_rng(seed)
    initialized = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for info in model.graph.input:
        if info.name not in initialized:
            tensor = info.type.tensor_type
            shape = [max(dim.dim_value, 1) for dim in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            feeds[info.name] = rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
    return feeds


def measure(engine: str, model: Path, feeds: dict[str, Array], *, threads: int, repeats: int) -> Timing:
    """The engine's timing in a fresh process: another engine's worker threads would slow whoever is timed next.

    Raises RuntimeError with the process's last line where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        arrays: dict[str, Any] = {str(index): array for index, array in enumerate(feeds.values())}
        np.savez(Path(folder) / "feeds.npz", **arrays)
        job = {"engine": engine, "model": str(model), "names": list(feeds), "threads": threads, "repeats": repeats, "folder": folder}
        command = [sys.executable, "-m", "compiler.cli.bench_engine", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{engine} failed on {model.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def repeat(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each of many runs after a warm-up; at least 5 runs."""
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
