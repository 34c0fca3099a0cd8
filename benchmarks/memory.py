"""The memory that models take: the arena beside its lower bound, in the order given and in the order found, and under a budget.

    python -m benchmarks.memory [MODEL …] [--budget 0.5]

Without MODEL every model of the zoo. No machine code is made and nothing is run. Exits with status 1 where plans are too far from their bounds
or take too long.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.models import load, zoo_names
from compiler.errors import UserError
from compiler.memory_budget import MemoryBudget
from compiler.pipeline import optimize, passes_for
from compiler.target import native
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.graph.order import OrderNodes
from passes.graph.plan import PlanMemory

OVER_BOUND, TIGHT_SHARE, PLANNING_S = 1.02, 0.95, 1.0
"""The most that an arena may be over its bound, the share of models that reach it, and the seconds that ordering, joining and planning may take."""


@dataclass(frozen=True)
class Figures:
    """Bytes: the most alive at once in the given order and in the order found, and the arena; the seconds of ordering, joining and planning."""

    given: int
    bound: int
    arena: int
    seconds: float

    @property
    def over_bound(self) -> float:
        """The arena as a multiple of what no plan can be below."""
        return self.arena / self.bound if self.bound else 1.0


def measure(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Figures:
    """The figures of a model for the shapes of feeds. Raises UserError for a model that cannot be imported."""
    graph = import_model(model, {name: array.shape for name, array in feeds.items()})
    steps = passes_for(native())
    at = [step.name for step in steps].index(OrderNodes.name)
    graph, _ = PassManager(steps[:at]).run(graph)
    given = PlanMemory(effort=0).run(graph).graph.attrs["arena_bound_bytes"]
    begin = time.process_time()
    planned = PassManager(steps[at:]).run(graph)[0].attrs
    seconds = time.process_time() - begin
    bound, arena = planned["arena_bound_bytes"], planned["arena_bytes"]
    if not isinstance(given, int) or not isinstance(bound, int) or not isinstance(arena, int):
        raise UserError("the arena depends on sizes that only a run knows", where="benchmarks.memory", hint="give a model of fixed shapes")
    return Figures(given, bound, arena, seconds)


def under_budget(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], budget: int) -> tuple[str, float]:
    """The arena under a budget in MB, or why there is none, and the seconds all passes take."""
    graph = import_model(model, {name: array.shape for name, array in feeds.items()})
    begin = time.process_time()
    try:
        planned, _ = optimize(graph, native(), memory_budget=MemoryBudget(budget))
    except UserError as error:
        return error.hint, time.process_time() - begin
    return f"{_mb(planned.attrs['arena_bytes'])} MB", time.process_time() - begin


def _mb(nbytes: object) -> str:
    return f"{nbytes / 1e6:.3f}" if isinstance(nbytes, int) else str(nbytes)


def main(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Files or models of the zoo; by default all of it.")] = None,
    budget: Annotated[float | None, typer.Option(help="Also the arena under this part of what it is without a budget.")] = None,
) -> None:
    """Print a table of arenas, their bounds, and the time that planning takes."""
    names = models or zoo_names()
    table = Table(box=None, pad_edge=False)
    for column in ("model", "in given order, MB", "bound, MB", "arena, MB", "arena / bound", "plan, ms", *(("under budget", "s") if budget else ())):
        table.add_column(column, justify="left" if column in ("model", "under budget") else "right")
    found = []
    for name in names:
        model, feeds = load(name)
        figures = measure(model, feeds)
        found.append(figures)
        row = [name, _mb(figures.given), _mb(figures.bound), _mb(figures.arena), f"{figures.over_bound:.3f}", f"{1e3 * figures.seconds:.0f}"]
        if budget:
            text, seconds = under_budget(model, feeds, int(budget * figures.arena))
            row += [text, f"{seconds:.1f}"]
        table.add_row(*row)
    Console(width=200).print(table)
    tight = sum(figures.arena == figures.bound for figures in found)
    most, slowest = max(figures.over_bound for figures in found), max(figures.seconds for figures in found)
    lower = sum(figures.bound < figures.given for figures in found)
    print(f"{tight} of {len(found)} at the bound, at most {most:.3f} over it; {lower} in a better order; planning took at most {slowest:.2f} s")
    if tight < TIGHT_SHARE * len(found) or most > OVER_BOUND or slowest > PLANNING_S:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
