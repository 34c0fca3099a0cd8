"""How inference degrades when there are twice as many threads as CPUs.

    python -m benchmarks.oversubscription [MODEL] [--limit 2.5]

Runs alternate between ``threads = CPUs`` and ``threads = 2 x CPUs``, each in a process of its own; the median counts, because what
oversubscription does to latency is in the slow runs. Exits with status 1 above the limit.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import onnx
import typer

from benchmarks.engines import measure
from benchmarks.models import load
from runtime.cpus import available_cpus

_ROUNDS = 3


def main(
    model: Annotated[str, typer.Argument()] = "mobilenet_v2",
    limit: Annotated[float, typer.Option(help="The largest accepted ratio.")] = 2.5,
    repeats: Annotated[int, typer.Option(help="Inferences timed in each round.")] = 300,
) -> None:
    """Compare the median latency of MODEL with as many threads as CPUs and with twice as many."""
    cpus = available_cpus()
    medians: dict[int, list[float]] = {cpus: [], 2 * cpus: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        proto, feeds = load(model)
        onnx.save(proto, path)
        for _ in range(_ROUNDS):
            for threads, found in medians.items():
                found.append(measure("tensorsmith", path, feeds, threads=threads, repeats=repeats).median_ms)
    fitting, over = (min(found) for found in medians.values())
    print(f"{model}: {cpus} threads {fitting:.2f} ms, {2 * cpus} threads {over:.2f} ms (medians), {over / fitting:.2f} x (limit {limit})")
    raise typer.Exit(0 if over <= limit * fitting else 1)


if __name__ == "__main__":
    typer.run(main)
