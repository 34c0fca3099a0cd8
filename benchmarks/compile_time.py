"""What a model costs before and beside its first inference: compile time cold and cached, load time, file size, memory.

    python -m benchmarks.compile_time [MODEL] [--threads 2]

Every step runs in a process of its own with a cache folder of its own, so that cold is cold. Exits with status 1 if a limit is passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import onnx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.engines import random_feeds
from benchmarks.models import ROOT, load

_MB = 1e6
COLD_S, CODE_GENERATION_S, CACHED_S, LOAD_S = 5.0, 3.0, 0.3, 0.030
ARTIFACT_OVER_WEIGHTS = 400 << 10
ARENA_OVER_BOUND = 1.02
RESIDENT_OVER_DATA = 80 << 20


@dataclass(frozen=True)
class Limit:
    """A measured quantity and the most it may be (None: anything), in ``unit``."""

    what: str
    value: float
    most: float | None
    unit: str

    @property
    def kept(self) -> bool:
        """Whether the quantity is within its limit."""
        return self.most is None or self.value <= self.most


def resident_bytes() -> int:
    """Physical memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def compile_step(model: Path, saved: Path, threads: int) -> dict[str, float]:
    """Compile from the file and save: seconds of the compilation, the sizes of weights, arena and its bound."""
    import tensorsmith as ts

    feeds = random_feeds(onnx.load(model, load_external_data=False))
    start = time.perf_counter()
    module = ts.compile(model, threads=threads, input_shapes={name: array.shape for name, array in feeds.items()})
    seconds = time.perf_counter() - start
    module.save(saved)
    memory = module.memory()
    return {"seconds": seconds, "weights": memory.weights, "arena": memory.arena or 0, "arena_bound": memory.bound or 0}


def stages_step(model: Path, saved: Path, threads: int) -> dict[str, float]:
    """Seconds of each stage of a compilation, as the driver runs them; nothing is saved."""
    del saved
    from backends.llvm.engine import compile_program
    from compiler.lowering import lower
    from compiler.pipeline import optimize
    from compiler.target import native
    from frontend.onnx.importer import import_model
    from runtime.cpus import available_cpus

    feeds = random_feeds(onnx.load(model, load_external_data=False))
    target = native()
    stamps = [time.perf_counter()]
    graph = import_model(model, {name: array.shape for name, array in feeds.items()})
    stamps.append(time.perf_counter())
    planned, _ = optimize(graph, target)
    stamps.append(time.perf_counter())
    program = lower(planned, target, threads)
    stamps.append(time.perf_counter())
    compile_program(program, target, available_cpus())
    stamps.append(time.perf_counter())
    names = ("import", "passes", "kernels", "code generation")
    return dict(zip(names, (after - before for before, after in pairwise(stamps)), strict=True))


def load_step(model: Path, saved: Path, threads: int) -> dict[str, float]:
    """Load the saved module and run it: seconds of loading, bytes of physical memory beyond those after the import."""
    import tensorsmith as ts

    feeds = random_feeds(onnx.load(model, load_external_data=False))
    before = resident_bytes()
    start = time.perf_counter()
    module = ts.load(saved, threads=threads)
    seconds = time.perf_counter() - start
    module.run(feeds)
    return {"seconds": seconds, "resident": resident_bytes() - before}


STEPS = {"compile": compile_step, "stages": stages_step, "load": load_step}


def in_process(step: str, model: Path, saved: Path, threads: int, cache: Path) -> dict[str, float]:
    """The result of a step in a fresh process whose cache folder is cache. Raises RuntimeError with its last line where it fails."""
    command = [sys.executable, "-m", "benchmarks.compile_time", str(model), "--threads", str(threads), "--step", step, "--saved", str(saved)]
    environment = {**os.environ, "TENSORSMITH_CACHE_DIR": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{step} of {model} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(model: onnx.ModelProto, threads: int) -> list[Limit]:
    """Every quantity with its limit."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved, cache = Path(folder) / "model.onnx", Path(folder) / "model.tsm", Path(folder) / "cache"
        onnx.save(model, path)
        arguments: Any = (path, saved, threads, cache)
        cold = in_process("compile", *arguments)
        stages = in_process("stages", *arguments)
        cached = in_process("compile", *arguments)
        loaded = [in_process("load", *arguments) for _ in range(3)]
        size = saved.stat().st_size
    data = cold["weights"] + cold["arena"]
    return [
        Limit("compile, cold", cold["seconds"], COLD_S, "s"),
        *(Limit(f"  {stage}", seconds, CODE_GENERATION_S if stage == "code generation" else None, "s") for stage, seconds in stages.items()),
        Limit("compile, cached", cached["seconds"], CACHED_S, "s"),
        Limit("load a saved module", min(step["seconds"] for step in loaded) * 1e3, LOAD_S * 1e3, "ms"),
        Limit("saved module", size / _MB, (cold["weights"] + ARTIFACT_OVER_WEIGHTS) / _MB, "MB"),
        Limit("arena", cold["arena"] / _MB, ARENA_OVER_BOUND * cold["arena_bound"] / _MB, "MB"),
        Limit("resident after load and run", min(step["resident"] for step in loaded) / _MB, (data + RESIDENT_OVER_DATA) / _MB, "MB"),
    ]


def main(
    model: Annotated[str, typer.Argument()] = "mobilenet_v2",
    threads: Annotated[int, typer.Option()] = 2,
    step: Annotated[str, typer.Option(hidden=True)] = "",
    saved: Annotated[Path, typer.Option(hidden=True)] = Path("model.tsm"),
) -> None:
    """Measure MODEL."""
    if step:
        print(json.dumps(STEPS[step](Path(model), saved, threads)))
        return
    limits = measure(load(model)[0], threads)
    table = Table("", "measured", "at most", "", title=f"{model}, {threads} threads")
    for limit in limits:
        most = "" if limit.most is None else f"{limit.most:.3f} {limit.unit}"
        table.add_row(limit.what, f"{limit.value:.3f} {limit.unit}", most, "" if limit.kept else "over")
    Console().print(table)
    raise typer.Exit(0 if all(limit.kept for limit in limits) else 1)


if __name__ == "__main__":
    typer.run(main)
