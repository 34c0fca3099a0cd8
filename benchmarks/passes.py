"""How long the graph optimiser takes, pass by pass.

    python -m benchmarks.passes [MODEL …] [--limit 1.5] [--rows 10]

Without MODEL every model of the zoo, of which the slowest are listed with their slowest passes. No machine code is made and nothing is run.
Exits with status 1 where a model takes longer than the limit.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.models import load, zoo_names
from compiler.pipeline import optimize
from compiler.target import native
from frontend.onnx.importer import import_model

_SLOWEST = 4


def seconds(name: str) -> dict[str, float]:
    """Wall-clock seconds of each pass over a model at the sizes of its example inputs, runs of one pass added up."""
    model, feeds = load(name)
    graph = import_model(model, {key: array.shape for key, array in feeds.items()})
    found = defaultdict[str, float](float)
    for report in optimize(graph, native())[1]:
        found[report.name] += report.seconds
    return found


def main(
    models: Annotated[list[str] | None, typer.Argument()] = None,
    limit: Annotated[float, typer.Option(help="The most seconds for one model.")] = 1.5,
    rows: Annotated[int, typer.Option(help="Models listed.")] = 10,
) -> None:
    """Time the passes on MODELS."""
    found = {name: seconds(name) for name in models or zoo_names()}
    table = Table("model", "all passes, s", "slowest passes, s")
    totals = {name: sum(times.values()) for name, times in found.items()}
    for name in sorted(totals, key=totals.__getitem__, reverse=True)[:rows]:
        slowest = sorted(found[name].items(), key=lambda item: -item[1])[:_SLOWEST]
        table.add_row(name, f"{totals[name]:.2f}", ", ".join(f"{step} {spent:.2f}" for step, spent in slowest))
    Console(width=160).print(table)
    raise typer.Exit(0 if all(total <= limit for total in totals.values()) else 1)


if __name__ == "__main__":
    typer.run(main)
