"""Branches, loops and numbers of run time in generated code: what the graph means is what its program computes, on every backend."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_control_flow import BRANCH, LOOP, PREFIX

from backends.reference import run_program
from compiler.driver import Options, build
from compiler.errors import UserError
from compiler.ir.graph import Graph
from compiler.ir.interp import interpret
from compiler.ir.parser import parse_graph
from compiler.ir.program import Program
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import native
from runtime.module import Module, load

NESTED = """
graph @nested {
  input %x: f32[N]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  %y: f32[N], %all: f32[u3, N] = loop(none, %x)
      {trips = <u1>, iteration = "u2", carried = 1, has_condition = false, symbols = [], count = "u3"}
    region @outer {
      input %a: f32[N]
      const %hundred: f32[] = [100.0]
      %z: f32[N] = loop(none, %a)
          {trips = <u2>, iteration = "u4", carried = 1, has_condition = false, symbols = [], count = "u5"}
        region @inner {
          input %b: f32[N]
          const %two: f32[1] = [2.0]
          %c: f32[N] = mul(%b, %two)
          return %c
        }
      %s: f32[] = reduce(%z) {kind = "sum", axes = [0], keepdims = false}
      %big: bool[] = less(%hundred, %s)
      %w: f32[N] = if(%big, %z) {symbols = []}
        region @then {
          input %p: f32[N]
          %q: f32[N] = neg(%p)
          return %q
        }
        region @else {
          input %p: f32[N]
          const %one: f32[1] = [1.0]
          %q: f32[N] = add(%p, %one)
          return %q
        }
      %copy: f32[N] = abs(%w)
      return %w, %copy
    }
  return %y, %all
}
"""

SWAPPED = """
graph @swapped {
  input %x: f32[4]
  input %y: f32[4]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  %a: f32[4], %b: f32[4] = loop(none, %x, %y)
      {trips = <u1>, iteration = "u2", carried = 2, has_condition = false, symbols = [], count = "u3"}
    region @body {
      input %p: f32[4]
      input %q: f32[4]
      %next: f32[4] = add(%p, %q)
      %last: f32[4] = identity(%p)
      return %next, %last
    }
  %r: f32[4] = sub(%a, %b)
  return %r, %b
}
"""


def _graph(text: str) -> Graph:
    graph = parse_graph(text)
    names = {"input_names": tuple(v.name for v in graph.inputs), "output_names": tuple(v.name for v in graph.outputs)}
    return graph.with_(attrs=names)


STACKED = """
graph @stacked {
  input %x: f32[1, 2]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  %y: f32[1, u2] = loop(none, %x)
      {trips = <u1>, iteration = "u4", carried = 1, has_condition = false, symbols = [["u2", 2, <u2 + 1>]], count = "u3"}
    region @body {
      input %a: f32[1, u2]
      const %one: f32[1, 1] = [1.0]
      %next: f32[1, u2 + 1] = concat(%a, %one) {axis = 1}
      return %next
    }
  return %y
}
"""


@cache
def _program(text: str) -> Program:
    target = native()
    planned, _ = optimize(_graph(text), target, verify=True)
    return lower(planned, target, 3)


@cache
def _module(text: str, threads: int, folder: Path) -> Module:
    path = folder / f"{hash(text)}_{threads}.tsm"
    build(_graph(text), Options.checked("native", threads, None, 3)).write(path)
    return load(path, threads=threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


def _check(text: str, folder: Path, **feeds: Any) -> dict[str, np.ndarray[Any, Any]]:
    dtypes = {"n": np.int64, "c": np.bool_}
    arrays = {name: np.array(value, dtypes.get(name, np.float32)) for name, value in feeds.items()}
    expected = interpret(_graph(text), arrays)
    found = [run_program(_program(text), arrays, workers) for workers in (1, 3)]
    found += [_module(text, threads, folder).run(arrays) for threads in (1, 3)]
    for outputs in found:
        for name, array in expected.items():
            np.testing.assert_allclose(outputs[name], array, rtol=1e-6, err_msg=name)
            assert outputs[name].shape == array.shape
    return expected


@pytest.mark.parametrize("text", [PREFIX, BRANCH, LOOP, NESTED, SWAPPED])
def test_programs_read_back(text: str) -> None:
    program = _program(text)
    printed = print_program(program)
    parsed = parse_program(printed, weights_of(program))
    assert print_program(parsed) == printed
    assert (parsed.body, parsed.definitions, parsed.results) == (program.body, program.definitions, program.results)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_bound_numbers(folder: Path, count: int) -> None:
    assert _check(PREFIX, folder, x=[1, 2, 3, 4], n=count)["s"].tolist() == [count, count * count + 4]


def test_a_check_that_fails_ends_the_run(folder: Path) -> None:
    feeds = {"x": np.ones(4, np.float32), "n": np.array(5)}
    for threads in (1, 3):
        module = _module(PREFIX, threads, folder)
        with pytest.raises(UserError, match="asked for 5 of 4 elements"):
            module.run(feeds)
        assert module.run(feeds | {"n": np.array(2)})["y"].tolist() == [1, 1]
    with pytest.raises(UserError, match="asked for 5 of 4 elements"):
        run_program(_program(PREFIX), feeds)


def test_one_region_of_a_branch_runs(folder: Path) -> None:
    for length in (1, 3, 0, 70):
        for condition in (True, False):
            _check(BRANCH, folder, x=np.arange(length), c=condition)


@pytest.mark.parametrize(("trips", "limit"), [(3, 99), (0, 99), (9, 3), (1, -1), (300, 1e9)])
def test_loops_grow_what_they_carry_and_stack(folder: Path, trips: int, limit: float) -> None:
    _check(LOOP, folder, x=[0.5, 1], n=trips, limit=limit)


def test_shapes_that_are_known_in_part(folder: Path) -> None:
    assert _check(STACKED, folder, x=[[3, 4]], n=3)["y"].tolist() == [[3, 4, 1, 1, 1]]


@pytest.mark.parametrize("trips", [0, 1, 2, 7])
def test_nested_loops_and_branches(folder: Path, trips: int) -> None:
    _check(NESTED, folder, x=np.linspace(0, 1, 37), n=trips)


@pytest.mark.parametrize("trips", [0, 1, 2, 9])
def test_carried_values_change_places(folder: Path, trips: int) -> None:
    _check(SWAPPED, folder, x=[1, 2, 3, 4], y=[5, 6, 7, 8], n=trips)


VIEWED = """
graph @viewed {
  input %c: bool[]
  input %x: f32[4, 6]
  %a: f32[4, 6] = if(%c, %x) {symbols = []}
    region @then {
      input %p: f32[4, 6]
      %q: f32[4, 6] = abs(%p)
      return %q
    }
    region @else {
      input %p: f32[4, 6]
      %q: f32[4, 6] = neg(%p)
      return %q
    }
  %b: f32[2, 12] = reshape(%a) {shape = [2, 12]}
  %s: f32[2, 12] = softmax(%b) {axis = 1, log = false}
  %l: f32[2, 12] = loop(none, %s) {trips = 3, iteration = "i", carried = 1, has_condition = false, symbols = [], count = "k"}
    region @body {
      input %p: f32[2, 12]
      %q: f32[2, 12] = abs(%p)
      return %q
    }
  %m: f32[3, 8] = reshape(%l) {shape = [3, 8]}
  %y: f32[3, 8] = softmax(%m) {axis = 1, log = false}
  return %y
}
"""


def test_views_of_what_branches_and_loops_make(folder: Path) -> None:
    for condition in (True, False):
        _check(VIEWED, folder, x=np.linspace(-1, 1, 24).reshape(4, 6), c=condition)


FILLED = """
graph @filled {
  input %n: i64[2]
  const %one: f32[1, 1] = [1.0]
  bind(%n) {symbols = ["n1", "n2"]}
  %y: f32[n1, n2] = expand(%one) {shape = [<n1>, <n2>]}
  return %y
}
"""


ALIKE = """
graph @alike {
  input %x: f32[N, 3]
  input %w: f32[3, 3]
  input %n: i64[]
  bind(%n) {symbols = ["u1"]}
  %y: f32[N, 3], %all: f32[u3, N, 3] = loop(none, %x, %w, %x)
      {trips = <u1>, iteration = "u2", carried = 1, has_condition = false, symbols = [], count = "u3"}
    region @body {
      input %h: f32[N, 3]
      input %weights: f32[3, 3]
      input %given: f32[N, 3]
      %turned: f32[3, 3] = transpose(%weights) {perm = [1, 0]}
      %square: f32[3, 3] = matmul(%turned, %weights)
      %first: f32[N, 3] = matmul(%given, %weights)
      %step: f32[N, 3] = matmul(%h, %square)
      %sum: f32[N, 3] = add(%step, %first)
      %next: f32[N, 3] = tanh(%sum)
      %shown: f32[N, 3] = relu(%next)
      return %next, %shown
    }
  return %y, %all
}
"""


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_work_that_all_iterations_share_is_done_once(folder: Path, trips: int) -> None:
    rng = np.random.default_rng(trips)
    x, w = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 3)).astype(np.float32)
    assert _check(ALIKE, folder, x=x, w=w, n=np.array(trips))["all"].shape == (trips, 5, 3)
    (loop,) = (node for node in optimize(_graph(ALIKE), native(), verify=True)[0].nodes if node.op == "loop")
    assert sum(node.op == "group" for node in loop.regions[0].nodes) == 1


def test_sizes_that_no_memory_has(folder: Path) -> None:
    assert _check(FILLED, folder, n=[2, 3])["y"].shape == (2, 3)
    for sizes in ((1 << 40, 1 << 40), (1 << 32, 1 << 30), (1 << 31, 1 << 33)):
        for threads in (1, 3):
            with pytest.raises(UserError, match="more memory than there is"):
                _module(FILLED, threads, folder).run({"n": np.array(sizes)})
    assert _check(FILLED, folder, n=[5, 1])["y"].shape == (5, 1)


def test_memory_does_not_grow_with_the_number_of_runs(folder: Path) -> None:
    module = _module(LOOP, 1, folder)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def runs(count: int) -> None:
        for k in range(count):
            x = np.zeros(1 + k % 50, np.float32)
            module.run({"x": x, "n": np.array(k % 17), "limit": np.float32(99)})

    runs(1000)
    before = resident()
    runs(10_000)
    assert resident() - before < 4 << 20
