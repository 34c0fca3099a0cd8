"""Meeting a memory budget: values computed patch by patch, as few as it takes."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import UserError
from compiler.ir.graph import Graph
from passes.analysis.patch_search import Candidate, candidates
from passes.base import Pass, PassManager
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.patch import PatchByPatch

_ROUNDS, _TRIALS = 4, 6
"""Values that may be computed in patches, one after another, and ways to do it that are planned for each."""


@dataclass(frozen=True)
class _Attempt:
    """A graph after some passes, and the arena that it takes."""

    graph: Graph
    passes: tuple[Pass, ...]
    arena_bytes: int


def budget_passes(graph: Graph, backend: tuple[Pass, ...], budget: int) -> tuple[Pass, ...]:
    """Passes for a canonical graph after which ``backend`` plans an arena of at most ``budget`` bytes; none where it does already.

    Of the ways that fit, one that adds little work. Raises UserError, with the least bytes found, where none does, and for a graph whose
    sizes only a run knows.
    """
    best = _planned(graph, (), backend)
    for _ in range(_ROUNDS):
        if best.arena_bytes <= budget:
            return best.passes
        found = _round(best, backend, budget)
        if found is None:
            break
        best = found
    if best.arena_bytes <= budget:
        return best.passes
    raise UserError(
        f"memory_budget is {budget} bytes, and the activations of this model take {best.arena_bytes} at the least that was found",
        where=f"model {graph.name}",
        hint=f"give a budget of at least {best.arena_bytes} bytes, or a smaller input",
    )


def _round(before: _Attempt, backend: tuple[Pass, ...], budget: int) -> _Attempt | None:
    """One value more in patches: what meets the budget, or else lowers the arena most; None where nothing lowers it."""
    found = candidates(before.graph, budget)
    fitting = [candidate for candidate in found if candidate.peak_bytes <= budget]
    tried = fitting or sorted(found, key=lambda candidate: candidate.peak_bytes)[:2]
    best: _Attempt | None = None
    trials, scale = 0, 1.0
    for candidate in tried:
        if trials == _TRIALS:
            break
        if fitting and candidate.peak_bytes * scale > budget:
            continue
        trials += 1
        attempt = _planned(before.graph, before.passes, backend, candidate)
        if attempt.arena_bytes <= budget:
            return attempt
        if attempt.arena_bytes < (before if best is None else best).arena_bytes:
            best = attempt
        if candidate.rest_bytes <= budget:
            scale = max(scale, attempt.arena_bytes / candidate.peak_bytes)
    return best


def _planned(graph: Graph, passes: tuple[Pass, ...], backend: tuple[Pass, ...], candidate: Candidate | None = None) -> _Attempt:
    if candidate is not None:
        source = "" if candidate.source is None else candidate.source.name
        more = (PatchByPatch(candidate.value.name, candidate.grid, source), EliminateDeadCode())
        graph, _ = PassManager(more).run(graph)
        passes = (*passes, *more)
    planned, _ = PassManager(backend).run(graph)
    arena = planned.attrs["arena_bytes"]
    if not isinstance(arena, int) or planned.attrs.get("dynamic"):
        hint = "give inputs with symbolic dims their shapes with input_shapes, or compile without memory_budget"
        raise UserError("memory_budget is given, and how much memory a run takes depends on its inputs", where=f"model {graph.name}", hint=hint)
    return _Attempt(graph, passes, arena)
