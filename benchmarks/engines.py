"""Time one engine on one model, in a process of its own: another engine's worker threads would slow whoever is timed next.

    python -m benchmarks.engines ENGINE MODEL.onnx [--threads 1] [--seconds 2]

prints one line of JSON: ``min_ms``, ``median_ms``, ``load_ms``. ``measure`` starts such a process and returns its result.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

Array = np.ndarray[Any, np.dtype[Any]]
ENGINES = ("tensorsmith", "onnxruntime")
_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the fastest and the median run, and from the model file to the first result."""

    min_ms: float
    median_ms: float
    load_ms: float


def installed(engine: str) -> bool:
    """Whether the engine can be imported here."""
    return importlib.util.find_spec(engine) is not None


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    """Standard normal float32 arrays (zeros for other dtypes) for each input; a symbolic dim is 1."""
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


def measure(engine: str, model: Path, *, threads: int, seconds: float = 2.0) -> Timing:
    """The engine's timing on model in a fresh process. Raises RuntimeError with the process's last line where it fails."""
    command = [sys.executable, "-m", "benchmarks.engines", engine, str(model.resolve()), "--threads", str(threads), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{engine} failed on {model.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def runner(engine: str, model: Path, threads: int, feeds: dict[str, Array]) -> Callable[[], object]:
    """A function that runs one inference."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)
    import tensorsmith

    module = tensorsmith.compile(model, threads=threads, input_shapes={name: array.shape for name, array in feeds.items()})
    return lambda: module.run(feeds)


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


def main(engine: str, model: Path, threads: Annotated[int, typer.Option()] = 1, seconds: Annotated[float, typer.Option()] = 2.0) -> None:
    """Time ENGINE on MODEL with random inputs and print JSON."""
    feeds = random_feeds(onnx.load(model, load_external_data=False))
    start = time.perf_counter()
    run = runner(engine, model, threads, feeds)
    run()
    load = time.perf_counter() - start
    times = repeat(run, seconds)
    print(json.dumps(asdict(Timing(min(times) * 1e3, float(np.median(times)) * 1e3, load * 1e3))))


if __name__ == "__main__":
    typer.run(main)
