"""The pass manager, parsing of passes, rewriting, the memory planner and, by random graphs, the whole pipeline."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import InternalError, UserError
from compiler.ir.builder import GraphBuilder
from compiler.ir.control import planned_places
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import sym
from compiler.ir.verify import Stage, is_view
from compiler.lowering import lower
from compiler.pipeline import OPT_LEVELS, optimize, passes_for
from compiler.target import resolve
from passes.analysis.liveness import Interval, estimated_bytes, max_live_bytes, typical_sizes
from passes.analysis.packing import place
from passes.base import PassManager, PassReport, PassResult, parse_passes
from passes.graph.constant_fold import ConstantFold
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.group import Group
from passes.graph.plan import PlanMemory
from passes.rewrite import rewrite
from tests.graph_cases import check_same, f32, networks

TARGET = resolve("x86-64-v3")


@dataclass(frozen=True)
class _Breaking:
    """A pass that forgets to define what the graph returns."""

    name: ClassVar[str] = "breaking"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        return PassResult(graph.with_(outputs=(Value("nowhere", f32(2)),)), changed=True)


def small_graph() -> Graph:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2))
    b.emit("exp", x)
    return b.graph([b.emit("relu", x)])


def test_manager_reports_and_observes_each_pass() -> None:
    seen: list[tuple[str, int]] = []

    def observer(step: Any, graph: Graph, report: PassReport) -> None:
        seen.append((step.name, len(graph.nodes)))

    graph, reports = PassManager((ConstantFold(), EliminateDeadCode()), verify=True, observer=observer).run(small_graph())
    assert seen == [("constant-fold", 2), ("eliminate-dead-code", 1)]
    assert [(r.name, r.changed, r.nodes_before, r.nodes_after) for r in reports] == [
        ("constant-fold", False, 2, 2),
        ("eliminate-dead-code", True, 2, 1),
    ]
    assert [n.op for n in graph.nodes] == ["relu"]


def test_manager_names_the_pass_that_broke_a_rule() -> None:
    with pytest.raises(InternalError, match=r"after pass breaking.*nowhere"):
        PassManager((EliminateDeadCode(), _Breaking()), verify=True).run(small_graph())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-pass", "no pass is called 'no-such-pass'"),
        ("constant-fold{grow=3}", "has no option 'grow'"),
        ("constant-fold{growth_bytes=lots}", "has value 'lots'"),
        ("group{fuse=1}", "give it a value of type bool"),
        ("assign-layout", "assign-layout"),
        ("group(fuse=True)", "cannot read 'group(fuse=True)' as a pass"),
        ("group{", "cannot read 'group{' as a pass"),
        ("simplify,", "cannot read '' as a pass"),
        ("", "cannot read '' as a pass"),
    ],
)
def test_bad_pass_texts(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_passes(text)


def test_parse_passes_reads_options() -> None:
    expected = (ConstantFold(growth_bytes=3), Group(fuse=False), EliminateDeadCode())
    assert parse_passes(" constant-fold{ growth_bytes = 3 },group{fuse=False}, eliminate-dead-code ") == expected


def test_unknown_level_is_refused() -> None:
    with pytest.raises(UserError, match="opt_level is 7"):
        passes_for(TARGET, 7)


def test_rewrite_keeps_the_interface() -> None:
    """Whatever replaces an output, even an input or another output, the names and their order stay."""
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(2))
    outputs = [b.emit(op, x, name=op) for op in ("exp", "relu", "neg", "abs")]
    graph = b.graph(outputs)
    negated: list[Value] = []

    def rule(node: Node, builder: GraphBuilder) -> Value | None:
        match node.op:
            case "exp":
                return x
            case "relu" | "neg":
                if not negated:
                    negated.append(builder.emit("neg", x))
                return negated[0]
            case _:
                return outputs[0]

    result, count = rewrite(graph, rule)
    assert count == 4
    assert [v.name for v in result.outputs] == ["exp", "relu", "neg", "abs"]
    array = np.array([1.0, -2.0], np.float32)
    got = interpret(result, {"x": array})
    np.testing.assert_array_equal([got["exp"], got["relu"], got["neg"], got["abs"]], [array, -array, -array, array])
    again, count = rewrite(result, lambda node, builder: node.present_inputs[0] if node.op == "identity" else None)
    assert count == 0
    assert [n.op for n in again.nodes] == [n.op for n in result.nodes]


def test_memory_of_unknown_sizes_is_planned_as_expressions() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(sym("batch"), 3))
    wide = b.emit("matmul", x, b.constant(np.ones((3, 70), np.float32)))
    narrow = b.emit("matmul", wide, b.constant(np.ones((70, 5), np.float32)))
    graph = b.graph([b.emit("softmax", b.emit("matmul", narrow, b.constant(np.ones((5, 9), np.float32))), axis=1, log=False)])
    planned, _ = optimize(graph, TARGET, verify=True)
    assert planned.attrs["arena_bound_bytes"] is None
    names = {name for name, _ in planned.attrs["definitions"]}
    assert planned.attrs["arena_bytes"] in {sym(name) for name in names}
    check_same(graph, planned)


def test_sizes_derived_from_those_of_inputs_are_estimated_and_defined_once() -> None:
    """Two unknown lengths meet, and the larger one is a symbol of its own."""
    b = GraphBuilder("g")
    met = b.emit("add", b.input("x", f32(sym("a"), 8)), b.input("y", f32(sym("b"), 8)))
    made = b.emit("matmul", met, b.constant(np.ones((8, 64), np.float32)))
    graph = b.graph([b.emit("softmax", made, axis=0, log=False)])
    sizes = typical_sizes(graph)
    assert sizes.keys() > {"a", "b"}
    assert estimated_bytes(made.type, sizes) == 4 * 64 * max(sizes["a"], sizes["b"])
    planned, _ = optimize(graph, TARGET, verify=True)
    assert planned.attrs["arena_bound_bytes"] is None
    definitions = planned.attrs["definitions"]
    assert isinstance(definitions, tuple)
    assert len(dict(definitions)) == len(definitions) >= 2
    check_same(graph, planned)


sizes, starts, lengths = st.integers(1, 999), st.integers(0, 30), st.integers(0, 9)
intervals = st.lists(st.builds(lambda size, first, length: Interval(size, first, first + length), sizes, starts, lengths))


@settings(max_examples=60, deadline=None)
@given(intervals, st.integers(0, 20_000))
def test_placement_is_disjoint_and_not_below_the_bound(found: list[Interval], effort: int) -> None:
    bound = max_live_bytes(found)
    assert bound == max((sum(i.nbytes for i in found if i.first <= t <= i.last) for t in range(50)), default=0)
    offsets, arena = place(found, effort)
    assert arena >= bound
    assert (offsets, arena) == place(found, effort)
    for i, (one, at) in enumerate(zip(found, offsets, strict=True)):
        assert at % 64 == 0
        assert at + one.nbytes <= arena
        for other, begin in zip(found[:i], offsets[:i], strict=True):
            assert not one.overlaps(other) or at + one.nbytes <= begin or begin + other.nbytes <= at


def test_search_finds_what_first_fit_does_not() -> None:
    rng = np.random.default_rng(6)
    found = [Interval(64 * int(rng.integers(1, 40)), first, first + int(rng.integers(1, 8))) for first in map(int, rng.integers(0, 40, 60))]
    bound = max_live_bytes(found)
    assert bound <= place(found, 10_000_000)[1] < place(found, 0)[1]


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from(OPT_LEVELS))
def test_pipeline_keeps_the_meaning(graph: Graph, level: int) -> None:
    """Every stage of random networks verifies and computes the same; what is left are groups and views; the arena is tight."""
    stages: list[Graph] = []
    planned, _ = optimize(graph, TARGET, level, verify=True, observer=lambda step, result, report: stages.append(result))
    check_same(graph, planned, 1e-4)
    for stage in stages[::3]:
        check_same(graph, stage, 1e-4)
    assert all(node.op == "group" or is_view(node) for node in planned.nodes)
    program = lower(planned, TARGET, threads=2)
    assert len(program.calls) == sum(node.op == "group" for node in planned.nodes)
    assert program.arena_bytes <= 64 * len(program.calls) + 1.25 * program.arena_bound_bytes


@settings(max_examples=30, deadline=None)
@given(networks())
def test_in_place_never_costs_memory(graph: Graph) -> None:
    steps = passes_for(TARGET)
    grouped, _ = PassManager(steps[:-1]).run(graph)
    planned = PlanMemory().run(grouped).graph
    places = ((n, planned_places(n, "in_place")) for n in planned.nodes if n.op == "group")
    written_over = [n.present_inputs[over] for n, operands in places for over in operands if isinstance(over, int)]
    assert len(set(written_over)) == len(written_over)
    plain = sum(value.type.nbytes for n in grouped.nodes if n.op == "group" for value in n.outputs)  # type: ignore[misc]
    assert planned.attrs["arena_bound_bytes"] <= plain  # type: ignore[operator]


def test_options_are_fields() -> None:
    assert replace(PlanMemory(), effort=3) == parse_passes("plan-memory{effort=3}")[0]


def test_constants_that_cannot_be_computed_name_their_node() -> None:
    builder = GraphBuilder("g", folding=False)
    y = builder.emit("pow", builder.constant(np.array([2, 3])), builder.constant(np.array([-1, 1])))
    with pytest.raises(UserError, match="negative integer powers") as caught:
        ConstantFold().run(builder.graph((y,)))
    assert y.name in caught.value.where
    assert caught.value.hint
