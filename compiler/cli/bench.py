"""tensorsmith bench: latency, beside other engines where asked; each engine in a process of its own, in alternating rounds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compiler.cli.options import InputFiles, InputShapes, ModuleFile, Threads, console, open_module, parse_shapes, random_inputs, read_inputs
from compiler.errors import UserError

if TYPE_CHECKING:
    from compiler.cli.bench_engine import Timing
    from runtime.module import Array

ROUNDS = 3
_TIMEOUT_SECONDS = 600

Against = Annotated[str, typer.Option(help="Engines to time beside it, comma-separated: onnxruntime, openvino.", show_default=False)]


def bench_command(
    model: ModuleFile,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Inferences each round.", min=1)] = 50,
    against: Against = "",
    inputs: InputFiles = None,
    input_shape: InputShapes = None,
) -> None:
    """Time inferences; inputs that are not given are random."""
    from compiler.cli.bench_engine import ENGINES, save_arrays
    from runtime.cpus import available_cpus

    peers = [name.strip() for name in against.split(",") if name.strip()]
    for peer in peers:
        if peer not in ENGINES or peer == "tensorsmith":
            raise UserError(f"unknown engine {peer!r}", where="--against", hint="name onnxruntime, openvino or both, with a comma between")
        if importlib.util.find_spec(peer) is None:
            raise UserError(f"{peer} is not installed", where="--against", hint=f"pip install {peer}")
    given, shapes = read_inputs(inputs), parse_shapes(input_shape)
    opened = open_module(model, threads, shapes)
    if peers and model.suffix == ".tsm":
        raise UserError("other engines cannot run a compiled module", where="--against", hint="give the ONNX file")
    feeds = random_inputs(opened.inputs, given)
    opened.run(feeds)
    workers = threads or available_cpus()
    timings: dict[str, list[Timing]] = {}
    with tempfile.TemporaryDirectory(prefix="tensorsmith-bench-") as folder:
        names = [info.name for info in opened.inputs if info.name in feeds]
        save_arrays(Path(folder) / "feeds.npz", [feeds[name] for name in names])
        for _ in range(ROUNDS):
            for engine in ["tensorsmith", *peers]:
                timings.setdefault(engine, []).append(_round(engine, model, names, workers, repeats, Path(folder)))
        differences = {engine: difference(Path(folder), engine) for engine in peers}
    console().print(_table(f"{model.name}, {workers} threads", timings, differences))


def _round(engine: str, model: Path, names: list[str], threads: int, repeats: int, folder: Path) -> Timing:
    """One engine in a fresh process. Raises UserError with its message where it fails."""
    from compiler.cli.bench_engine import Timing

    job = json.dumps({"engine": engine, "model": str(model), "names": names, "threads": threads, "repeats": repeats, "folder": str(folder)})
    command = [sys.executable, "-m", "compiler.cli.bench_engine", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        what = f"{engine} did not end within {_TIMEOUT_SECONDS} s"
        raise UserError(what, where=str(model), hint="ask for fewer --repeats, or leave this engine out") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
        raise UserError(f"{engine} failed: {last}", where=str(model), hint="leave this engine out, or run it alone to see more")
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def difference(folder: Path, engine: str) -> float:
    """The largest difference of an engine's outputs from ours, relative to each output's scale; what is no number is equal or infinitely far."""
    import numpy as np

    with np.load(folder / "tensorsmith.npz") as ours, np.load(folder / f"{engine}.npz") as theirs:
        if set(ours.files) != set(theirs.files):  # sequences of other lengths
            return float("inf")
        pairs = [(ours[name], theirs[name]) for name in ours.files]
    return max((_distance(a, b) for a, b in pairs if a.size), default=0.0)


def _distance(ours: Array, theirs: Array) -> float:
    import numpy as np

    if ours.shape != theirs.shape or not {"U", "V"}.isdisjoint((ours.dtype.kind, theirs.dtype.kind)):  # texts, and bits of types that numpy lacks
        return 0.0 if np.array_equal(ours, theirs) else float("inf")
    a, b = (array.astype(np.float64) for array in (ours, theirs))
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not np.isfinite([a[differ], b[differ]]).all():
        return float("inf")
    return float(np.abs(a[differ] - b[differ]).max(initial=0) / max(np.abs(b[np.isfinite(b)]).max(initial=0), 1e-12))


def _table(title: str, timings: dict[str, list[Timing]], differences: dict[str, float]) -> Any:
    from statistics import median

    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("engine", "min ms", "median ms", "start s", "x tensorsmith", "difference"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    base = min(timing.min_ms for timing in timings["tensorsmith"])
    for engine, rounds in timings.items():
        fastest = min(timing.min_ms for timing in rounds)
        middle = median(timing.median_ms for timing in rounds)
        start = min(timing.start_s for timing in rounds)
        distance = f"{differences[engine]:.1e}" if engine in differences else ""
        table.add_row(engine, f"{fastest:.3f}", f"{middle:.3f}", f"{start:.2f}", f"{fastest / base:.2f}", distance)
    return table
