"""One engine of ``tensorsmith bench``, run as a process of its own: prints a line of JSON, writes its outputs beside the feeds."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

Feeds = dict[str, Any]
Infer = Callable[[], list[Any]]


@dataclass(frozen=True)
class Timing:
    """One round: latency, and the time to get ready (a compiled model comes from the cache)."""

    min_ms: float
    median_ms: float
    start_s: float


def tensorsmith(model: Path, threads: int, feeds: Feeds) -> Infer:
    """Ours."""
    from compiler.cli.options import as_declared, open_module

    shapes = {} if model.suffix == ".tsm" else {name: feed.shape for name, feed in feeds.items() if not isinstance(feed, list)}
    module = open_module(model, threads, shapes)
    declared = as_declared(module.inputs, feeds)
    return lambda: list(module.run(declared).values())


def onnxruntime(model: Path, threads: int, feeds: Feeds) -> Infer:
    """ONNX Runtime's default CPU provider."""
    ort = importlib.import_module("onnxruntime")

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, feeds))


def openvino(model: Path, threads: int, feeds: Feeds) -> Infer:
    """OpenVINO's CPU plugin, in float32, tuned for latency."""
    import numpy as np

    ov = importlib.import_module("openvino")

    core = ov.Core()
    read = core.read_model(model)
    read.reshape({name: list(array.shape) for name, array in feeds.items()})
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(read, "CPU", config)
    request, outputs = compiled.create_infer_request(), compiled.outputs

    def infer() -> list[Any]:
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [np.asarray(results[output]) for output in outputs]

    return infer


ENGINES: dict[str, Callable[[Path, int, Feeds], Infer]] = {"tensorsmith": tensorsmith, "onnxruntime": onnxruntime, "openvino": openvino}


def save_arrays(path: Path, values: Sequence[Any]) -> None:
    """Write arrays, lists of arrays and None, for ``load_arrays``."""
    import numpy as np

    from compiler.cli.options import plain

    flat: dict[str, Any] = {}
    for index, value in enumerate(values):
        if isinstance(value, list):
            flat |= {f"{index}.length": np.array(len(value)), **{f"{index}.{number}": plain(element) for number, element in enumerate(value)}}
        else:
            flat[f"{index}.absent" if value is None else f"{index}"] = np.array(0) if value is None else plain(value)
    np.savez(path, **flat)


def load_arrays(path: Path) -> list[Any]:
    """What ``save_arrays`` has written: strings as numpy's own, the bytes of what numpy lacks."""
    import numpy as np

    values: list[Any] = []
    with np.load(path) as file:
        while True:
            index = str(len(values))
            if index in file:
                values.append(file[index])
            elif f"{index}.length" in file:
                values.append([file[f"{index}.{number}"] for number in range(int(file[f"{index}.length"]))])
            elif f"{index}.absent" in file:
                values.append(None)
            else:
                return values


def main(job: dict[str, Any]) -> Timing:
    """Time ``job["repeats"]`` inferences after one that is not counted."""
    folder = Path(job["folder"])
    feeds = dict(zip(job["names"], load_arrays(folder / "feeds.npz"), strict=True))
    started = time.perf_counter()
    infer = ENGINES[job["engine"]](Path(job["model"]), job["threads"], feeds)
    outputs = infer()
    start_s = time.perf_counter() - started
    save_arrays(folder / f"{job['engine']}.npz", outputs)
    times = []
    for _ in range(job["repeats"]):
        before = time.perf_counter()
        infer()
        times.append(1e3 * (time.perf_counter() - before))
    return Timing(min(times), median(times), start_s)


if __name__ == "__main__":
    print(json.dumps(asdict(main(json.loads(sys.argv[1])))))
