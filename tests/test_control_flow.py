"""Branches, loops and numbers of run time in Graph IR: text, rules, meaning and passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import compiler.ops  # noqa: F401
from compiler.errors import InternalError, UserError
from compiler.ir.graph import Graph
from compiler.ir.interp import interpret
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.ir.verify import Stage, verify_graph
from passes.base import PassManager
from passes.graph.common_subexpressions import CommonSubexpressions
from passes.graph.control_flow import SimplifyControlFlow
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.group import Group
from passes.graph.simplify import Simplify

PREFIX = """
graph @prefix {
  input %x: f32[N]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  check() {low = 0, value = <u1>, high = <N>, message = "asked for {value} of {high} elements"}
  define() {symbol = "u2", value = <u1*u1>}
  %y: f32[u1] = slice(%x) {starts = [0], sizes = [<u1>], steps = [1]}
  %s: i64[2] = dims() {values = [<u1>, <u2 + N>], scalar = false}
  return %y, %s
}
"""

BRANCH = """
graph @branch {
  input %x: f32[N]
  input %c: bool[]
  %y: f32[u1] = if(%c, %x) {symbols = [["u1", <N>, <2*N>]]} "choice"
    region @then {
      input %x: f32[N]
      %y: f32[N] = neg(%x)
      return %y
    }
    region @else {
      input %a: f32[N]
      const %k: f32[1] = [2.0]
      %b: f32[N] = mul(%a, %k)
      %c: f32[2*N] = concat(%a, %b) {axis = 0}
      return %c
    }
  %n: i64[1] = dims() {values = [<u1>], scalar = false}
  return %y, %n
}
"""

LOOP = """
graph @loop {
  input %x: f32[N]
  input %n: i64[]
  input %limit: f32[]
  bind(%n) {symbols = ["u1"]}
  %y: f32[u2], %sums: f32[u3] = loop(none, %x, %limit)
      {trips = <u1>, iteration = "u4", carried = 1, has_condition = true, symbols = [["u2", <N>, <u2 + 1>]], count = "u3"}
    region @body {
      input %a: f32[u2]
      input %most: f32[]
      %i: i64[1] = dims() {values = [<u4>], scalar = false}
      %f: f32[1] = cast(%i) {to = f32}
      %next: f32[u2 + 1] = concat(%a, %f) {axis = 0}
      %sum: f32[] = reduce(%next) {kind = "sum", axes = [0], keepdims = false}
      %on: bool[] = less(%sum, %most)
      return %on, %next, %sum
    }
  return %y, %sums
}
"""


def _arrays(**feeds: Any) -> dict[str, np.ndarray[Any, Any]]:
    dtypes = {"n": np.int64, "c": np.bool_}
    return {name: np.array(value, dtypes.get(name, np.float32)) for name, value in feeds.items()}


@pytest.mark.parametrize("text", [PREFIX, BRANCH, LOOP])
def test_text_reads_back_and_is_legal(text: str) -> None:
    graph = parse_graph(text)
    verify_graph(graph, Stage.CANONICAL)
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)


def _stages(text: str) -> list[Graph]:
    graph = parse_graph(text)
    found = [graph]
    for steps in ((CommonSubexpressions(), Simplify(), EliminateDeadCode()), (Group(),)):
        graph, _ = PassManager(steps, verify=True).run(graph)
        found.append(graph)
    return found


@pytest.mark.parametrize("count", [0, 1, 4])
def test_bound_numbers_are_dims(count: int) -> None:
    for graph in _stages(PREFIX):
        found = interpret(graph, _arrays(x=[1, 2, 3, 4], n=count))
        np.testing.assert_array_equal(found["y"], np.arange(1, 1 + count, dtype=np.float32))
        assert found["s"].tolist() == [count, count * count + 4]


def test_a_check_that_fails_says_what_was_met() -> None:
    for graph in _stages(PREFIX):
        with pytest.raises(UserError, match="asked for 5 of 4 elements"):
            interpret(graph, _arrays(x=[1, 2, 3, 4], n=5))


def test_a_branch_runs_one_region() -> None:
    for graph in _stages(BRANCH):
        assert interpret(graph, _arrays(x=[1, 2], c=True))["y"].tolist() == [-1, -2]
        found = interpret(graph, _arrays(x=[1, 2], c=False))
        assert found["y"].tolist() == [1, 2, 2, 4]
        assert found["n"].tolist() == [4]


@pytest.mark.parametrize(("trips", "limit", "count"), [(3, 99, 3), (0, 99, 0), (9, 3, 3), (1, -1, 1)])
def test_a_loop_carries_growing_values_and_stacks_scans(trips: int, limit: float, count: int) -> None:
    for graph in _stages(LOOP):
        found = interpret(graph, _arrays(x=[0.5], n=trips, limit=limit))
        assert found["y"].tolist() == [0.5, *range(count)]
        assert found["sums"].tolist() == [0.5 + sum(range(i + 1)) for i in range(count)]


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (PREFIX, 'symbols = ["u1"]', 'symbols = ["u9"]', "symbol u1 is used before it is defined"),
        (PREFIX, 'symbol = "u2"', 'symbol = "u1"', "symbol u1 is defined twice"),
        (PREFIX, 'symbols = ["u1"]', 'symbols = ["u1", "u7"]', "cannot be named one by one"),
        (BRANCH, "<2*N>", "<3*N>", "the outputs of region else"),
        (BRANCH, "return %c\n", "return %a\n", "is not made by a node of it"),
        (BRANCH, "input %a: f32[N]", "input %a: f32[7]", "the inputs of region else"),
        (BRANCH, "%c: bool[]", "%c: i64[]", "not one bool"),
        (LOOP, "<u2 + 1>", "<u2>", "the next values"),
        (BRANCH, "<2*N>", "<u5>", "the outputs of region else"),
        (LOOP, "trips = <u1>", "trips = <u4>", "symbol u4 is used before it is defined"),
        (LOOP, "%sums: f32[u3]", "%sums: f32[u1]", "the results"),
    ],
)
def test_rules_are_checked(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(InternalError, match=message):
        verify_graph(parse_graph(text.replace(old, new, 1)), Stage.CANONICAL)


KNOWN = """
graph @known {
  input %x: f32[N]
  const %c: bool[] = [false]
  %y: f32[u1], %z: f32[N] = if(%c, %x) {symbols = [["u1", <N>, <2*N>]]}
    region @then {
      input %a: f32[N]
      %p: f32[N] = neg(%a)
      %q: f32[N] = exp(%a)
      return %p, %q
    }
    region @else {
      input %a: f32[N]
      %p: f32[2*N] = concat(%a, %a) {axis = 0}
      %q: f32[N] = neg(%a)
      return %p, %q
    }
  %n: i64[1] = dims() {values = [<u1>], scalar = false}
  return %y, %z, %n
}
"""

IDLE = """
graph @idle {
  input %x: f32[N]
  input %c: bool[]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  %same: f32[N], %sum: f32[N], %unread: f32[N], %rows: f32[u3, N], %more: f32[u3, N] = loop(none, %x, %x, %x, %n, %x)
      {trips = <u1>, iteration = "u2", carried = 3, has_condition = false, symbols = [], count = "u3"}
    region @body {
      input %a: f32[N]
      input %b: f32[N]
      input %d: f32[N]
      input %m: i64[]
      input %k: f32[N]
      %e: f32[N] = identity(%a)
      %f: f32[N] = add(%b, %a)
      %g: f32[N] = neg(%k)
      %h: f32[N] = abs(%f)
      %i: f32[N] = exp(%f)
      return %e, %f, %g, %h, %i
    }
  %p: f32[N], %q: f32[N] = if(%c, %same, %sum) {symbols = []}
    region @then {
      input %a: f32[N]
      input %b: f32[N]
      %s: f32[N] = neg(%a)
      %t: f32[N] = exp(%b)
      return %s, %t
    }
    region @else {
      input %a: f32[N]
      input %b: f32[N]
      %s: f32[N] = abs(%a)
      %t: f32[N] = neg(%b)
      return %s, %t
    }
  return %p, %rows, %same
}
"""


def test_a_known_branch_takes_the_place_of_its_if() -> None:
    graph, _ = PassManager((SimplifyControlFlow(), EliminateDeadCode()), verify=True).run(parse_graph(KNOWN))
    assert [node.op for node in graph.nodes] == ["concat", "neg", "define", "reshape", "identity", "identity", "dims"]
    found = interpret(graph, _arrays(x=[1, 2]))
    assert [found[name].tolist() for name in ("y", "z", "n")] == [[1, 2, 1, 2], [-1, -2], [4]]


def test_what_control_flow_does_for_nothing_is_taken_out() -> None:
    before = parse_graph(IDLE)
    verify_graph(before, Stage.CANONICAL)
    clean = (SimplifyControlFlow(), EliminateDeadCode())
    after, _ = PassManager((*clean, *clean), verify=True).run(before)
    loop, branch = (next(node for node in after.nodes if node.op == op) for op in ("loop", "if"))
    assert [value.name for value in loop.outputs] == ["sum", "rows"]
    assert [value.name for value in branch.outputs] == ["p"]
    assert len(branch.inputs) == 2
    for condition in (True, False):
        feeds = _arrays(x=[1, 2], c=condition, n=3)
        for wanted, got in zip(interpret(before, feeds).values(), interpret(after, feeds).values(), strict=True):
            np.testing.assert_array_equal(got, wanted)
