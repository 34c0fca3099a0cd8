"""Meeting a memory budget: values computed patch by patch, as few as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import UserError
from compiler.ir.graph import Graph
from passes.analysis.patch_search import Patching, PatchSearch
from passes.base import Pass, PassManager
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.patch import PatchByPatch

_ATTEMPTS = 4
"""Plans that are made for smaller and smaller estimates, since an estimate may be below what the plan then takes."""

_MARGIN = 0.7
"""The part of a budget down to which estimates may have to go."""


@dataclass(frozen=True)
class _Attempt:
    """Passes after which a graph takes an arena of so many bytes."""

    passes: tuple[Pass, ...]
    arena_bytes: int


@dataclass(frozen=True)
class MemoryBudget:
    """At most ``nbytes`` for what a run needs beside weights, inputs and outputs; of these the workers' scratch takes ``scratch_bytes``."""

    nbytes: int
    scratch_bytes: int = 0


def budget_passes(graph: Graph, backend: tuple[Pass, ...], memory: MemoryBudget) -> tuple[Pass, ...]:
    """Passes for a canonical graph after which ``backend`` plans an arena within a budget, for little work; none where it does already.

    Raises UserError, with the least bytes found, where nothing meets the budget, and for a graph whose memory depends on a run.
    """
    budget = memory.nbytes - memory.scratch_bytes
    plain = _attempt(graph, (), backend)
    if plain.arena_bytes <= budget:
        return ()
    fitting = _cheapest(graph, backend, budget)
    if fitting is not None:
        return fitting.passes
    smallest = _attempt(graph, PatchSearch(graph, 0, plain.arena_bytes).smallest(), backend)
    least = min(plain, smallest, key=lambda attempt: attempt.arena_bytes)
    if least.arena_bytes > budget:
        scratch = f" and {memory.scratch_bytes} of scratch" if memory.scratch_bytes else ""
        raise UserError(
            f"memory_budget is {memory.nbytes} bytes, and this model takes {least.arena_bytes} for activations{scratch} at the least that was found",
            where=f"model {graph.name}",
            hint=f"give a budget of at least {least.arena_bytes + memory.scratch_bytes} bytes, or a smaller input",
        )
    return least.passes


def _cheapest(graph: Graph, backend: tuple[Pass, ...], budget: int) -> _Attempt | None:
    """A plan within the budget; None where the search finds none that is by its estimates and by the plan."""
    search = PatchSearch(graph, round(_MARGIN * budget), budget)
    limit = budget
    for _ in range(_ATTEMPTS):
        found = search.cheapest(limit)
        if found is None:
            return None
        attempt = _attempt(graph, found, backend)
        if attempt.arena_bytes <= budget:
            return attempt
        limit = min(limit - 1, limit * budget // attempt.arena_bytes)
    return None


def _attempt(graph: Graph, patchings: Sequence[Patching], backend: tuple[Pass, ...]) -> _Attempt:
    """What the backend plans. The last value comes first: what it starts from is still there then."""
    steps = [PatchByPatch(p.value.name, "x".join(map(str, p.grid)), "" if p.source is None else p.source.name) for p in reversed(patchings)]
    passes: tuple[Pass, ...] = (*steps, EliminateDeadCode()) if steps else ()
    planned, _ = PassManager((*passes, *backend)).run(graph)
    arena = planned.attrs["arena_bytes"]
    static = all(value.type.is_static for node in graph.nodes for value in node.outputs)
    if not isinstance(arena, int) or not static or planned.attrs.get("dynamic"):
        hint = "give inputs with symbolic dims their shapes with input_shapes, or compile without memory_budget"
        raise UserError("memory_budget is given, and how much memory a run takes depends on its inputs", where=f"model {graph.name}", hint=hint)
    return _Attempt(passes, arena)
