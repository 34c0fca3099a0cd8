"""The passes of each optimisation level, in order."""

from __future__ import annotations

from dataclasses import replace

import compiler.kernels
import compiler.ops  # noqa: F401  (importing registers the ops and the kernel families)
from compiler.errors import UserError
from compiler.ir.graph import Graph
from compiler.memory_budget import MemoryBudget, budget_passes
from compiler.target import Target
from passes.base import Observer, Pass, PassManager, PassReport
from passes.graph.append import AppendInLoops
from passes.graph.attention import FuseAttention
from passes.graph.canonicalize import EqualizeRanks, GatherConstants
from passes.graph.chain_shares import ChainShares
from passes.graph.common_subexpressions import CommonSubexpressions
from passes.graph.constant_fold import ConstantFold
from passes.graph.control_flow import SimplifyControlFlow
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.fold_reshapes import FoldReshapes
from passes.graph.fuse_siblings import FuseSiblings
from passes.graph.group import Group
from passes.graph.hoist import HoistInvariants
from passes.graph.inline_groups import InlineGroups
from passes.graph.integer_products import IntegerProducts
from passes.graph.join import JoinInPlace
from passes.graph.layout import AssignLayout
from passes.graph.merge_groups import MergeGroups
from passes.graph.merge_linear import MergeLinear
from passes.graph.order import OrderNodes
from passes.graph.outputs import CopyOutputs
from passes.graph.plan import PlanMemory
from passes.graph.recover import RecoverOps
from passes.graph.simplify import Simplify
from passes.graph.sink_transposes import SinkTransposes
from passes.graph.sink_views import SinkViews
from passes.graph.untranspose import UntransposeRegions

OPT_LEVELS = (0, 1, 2, 3)
"""0: only what code generation needs. 1: exact simplification and fusion. 2: weights folded (rounding differs). 3: as 2, larger search."""


def passes_for(target: Target, opt_level: int = 3, threads: int = 1) -> tuple[Pass, ...]:
    """Every pass from the canonical graph to the planned one. Raises UserError for a level that does not exist."""
    if opt_level not in OPT_LEVELS:
        raise UserError(f"opt_level is {opt_level!r}", where="compile", hint=f"use one of {', '.join(map(str, OPT_LEVELS))}")
    return (*canonical_passes(opt_level), *backend_passes(target, opt_level, threads))


def canonical_passes(opt_level: int) -> tuple[Pass, ...]:
    """Canonical graph to canonical graph, the same for every target: what says how numbers are rounded, then what may be done in any order."""
    return (*rounding_passes(opt_level), *free_passes(opt_level))


def rounding_passes(opt_level: int) -> tuple[Pass, ...]:
    """What must see the graph as the model has it: between its conversions to integers all others would move factors and round anew."""
    return (IntegerProducts(),) if opt_level >= 2 else ()


def free_passes(opt_level: int) -> tuple[Pass, ...]:
    """The other canonical passes, whose order decides what is found, not what it means (``tests/pass_orders.py``)."""
    clean: tuple[Pass, ...] = (ConstantFold(), EliminateDeadCode())
    if opt_level >= 1:
        clean = (
            ConstantFold(),
            Simplify(),
            ConstantFold(),
            CommonSubexpressions(),
            SinkViews(),
            AppendInLoops(),
            SimplifyControlFlow(),
            HoistInvariants(),
            SimplifyControlFlow(),
            EliminateDeadCode(),
        )
    if opt_level >= 2:
        late = (RecoverOps(), SinkViews(), MergeLinear(), SinkTransposes(), UntransposeRegions(), GatherConstants())
        attention = (EliminateDeadCode(), FuseAttention(), Simplify(), EliminateDeadCode())
        clean = (*clean, *late, *attention)
    return clean


def backend_passes(target: Target, opt_level: int, threads: int) -> tuple[Pass, ...]:
    """Canonical graph to a grouped, laid-out and planned one."""
    return (
        *((FuseSiblings(target.lanes),) if opt_level >= 1 else ()),
        EqualizeRanks(),
        CommonSubexpressions(),
        EliminateDeadCode(),
        *((FoldReshapes(target.lanes), EliminateDeadCode()) if opt_level >= 1 else ()),
        AssignLayout(target.lanes),
        CopyOutputs(),
        Group(fuse=opt_level >= 1),
        *((ChainShares(target.l2_bytes, threads), OrderNodes(), JoinInPlace(), InlineGroups(), MergeGroups()) if opt_level >= 1 else ()),
        PlanMemory(effort=400_000 if opt_level == 3 else 50_000),
    )


def optimize(
    graph: Graph,
    target: Target,
    opt_level: int = 3,
    *,
    threads: int = 1,
    memory_budget: MemoryBudget | None = None,
    verify: bool = False,
    observer: Observer | None = None,
) -> tuple[Graph, tuple[PassReport, ...]]:
    """The planned graph, ready for lowering, and what each pass did. Raises UserError where nothing meets ``memory_budget``.

    With a budget products stay apart, whose results are alive at once where they are one, and no group goes into another: every worker would have
    its results to itself. Joins may take what the budget has.
    """
    steps = passes_for(target, opt_level, threads)
    canonical = canonical_passes(opt_level)
    graph, reports = PassManager(canonical, verify, observer).run(graph)
    rest = steps[len(canonical) :]
    if memory_budget is not None:
        enough = memory_budget.nbytes - memory_budget.scratch_bytes
        rest = tuple(step for step in rest if not isinstance(step, FuseSiblings | InlineGroups | ChainShares))
        rest = tuple(replace(step, enough=enough) if isinstance(step, JoinInPlace) else step for step in rest)
        rest = (*budget_passes(graph, rest, memory_budget), *rest)
    graph, more = PassManager(rest, verify, observer).run(graph)
    return graph, (*reports, *more)
