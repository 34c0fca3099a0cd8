"""Every simplification: a node it replaces, and by what; one that it nearly replaces, and why not; and that the numbers stay.

The tables are complete: a rule that has no entry fails a test.
"""

from __future__ import annotations

import numpy as np
import pytest
from simplify_cases import CASES, Case, Maker, Nodes

from compiler.ir.graph import Graph
from compiler.ir.interp import interpret
from compiler.ir.op import all_ops
from compiler.ir.printer import equal_graphs, print_graph
from compiler.ir.types import DType
from passes.base import PassManager, PassReport
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.simplify import BROADCASTING, NESTED_CONCAT, Simplify, rule_name

RUNS = [(case, dtype) for case in CASES for dtype in case.dtypes]
IDS = [f"{number}-{case.op}-{case.rule}-{dtype.value}" for number, (case, dtype) in enumerate(RUNS)]


def written(make: Maker, dtype: DType) -> Graph:
    """A graph that gives what a maker makes; its output has a name of its own, whatever that is."""
    nodes = Nodes(dtype)
    return EliminateDeadCode().run(nodes.graph([nodes.emit("identity", make(nodes), name="out")])).graph


def simplified(graph: Graph) -> tuple[Graph, PassReport]:
    after, (report, _) = PassManager((Simplify(), EliminateDeadCode()), verify=True).run(graph)
    return after, report


def feeds(graph: Graph) -> dict[str, np.ndarray]:
    """Numbers of every kind: both zeros, infinities, what is not a number, denormal and huge ones; of integers the ends of their range."""
    rng, found = np.random.default_rng(0), {}
    for value in graph.inputs:
        shape = [dim if isinstance(dim, int) else 3 for dim in value.type.shape]
        dtype, count = value.type.dtype, int(np.prod(shape))
        if dtype is DType.BOOL:
            numbers = rng.integers(0, 2, count)
        elif dtype.is_float:
            edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-7, 6e4, 0.5, 2.5]
            numbers = rng.permutation([*edges, *rng.standard_normal(max(count - len(edges), 0)) * 4])[:count]
        else:
            ends = np.iinfo(dtype.numpy)
            numbers = rng.permutation([ends.min, ends.max, 0, 1, *rng.integers(max(ends.min, -99), min(ends.max, 99), count)])[:count]
        found[value.name] = np.asarray(numbers).astype(dtype.numpy).reshape(shape)
    return found


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=IDS)
def test_a_rule_replaces_what_it_says_and_keeps_the_numbers(case: Case, dtype: DType) -> None:
    graph, wanted = written(case.before, dtype), written(case.after, dtype)
    after, report = simplified(graph)
    assert case.rule in {event.rule for event in report.events}
    assert equal_graphs(after, wanted), f"{print_graph(after)}is not\n{print_graph(wanted)}"
    assert not simplified(after)[1].changed
    given = feeds(graph)
    with np.errstate(all="ignore"):
        got, want = (np.asarray(interpret(g, {v.name: given[v.name] for v in g.inputs})["out"]) for g in (after, graph))
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=case.rounding, atol=0)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=IDS)
def test_a_rule_leaves_what_it_nearly_replaces(case: Case, dtype: DType) -> None:
    graph = written(case.near, dtype)
    after, report = simplified(graph)
    assert not report.changed, f"{case.why}; {report.notes}"
    assert equal_graphs(after, graph)


def test_every_rule_has_cases() -> None:
    declared = {(op.name, rule_name(rule)) for op in all_ops() for rule in op.simplifications}
    declared |= {("*", rule_name(rule)) for rule in BROADCASTING} | {("concat", NESTED_CONCAT)}
    assert {(case.op, case.rule) for case in CASES} == declared
