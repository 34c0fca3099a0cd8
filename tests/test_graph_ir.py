"""Graph IR: text, rules and meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import arrays, attrs, graphs

import compiler.ops  # noqa: F401 # registers the ops
from compiler.errors import InternalError, UserError
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.ir.interp import interpret, interpret_all
from compiler.ir.intexpr import sym
from compiler.ir.parser import parse_graph, parse_type
from compiler.ir.printer import constants_of, equal_graphs, print_attr, print_graph
from compiler.ir.types import DType, TensorType, begins_with, pack_physical, unpack_physical
from compiler.ir.verify import Stage, verify_graph

F32 = DType.FLOAT32

CANONICAL = """graph @net {
  input %x: f32[N, 4]
  const %one: f32[4] = [1.0, -0.0, inf, 2.5]
  const %big: f32[4, 8] = @DIGEST
  %a: f32[N, 4] = add(%x, %one) "first"
  %b: f32[N, 4] = relu(%a)
  %c: f32[2*N, 2] = reshape(%b) {shape = [<2*N>, 2]}
  return %c, %a
}
"""
BIG = np.arange(32, dtype=np.float32).reshape(4, 8)

LAID_OUT = """graph @net {
  input %x: f32[1, 8, 4, 4]
  input %w: f32[8, 8, 1, 1]
  input %bias: f32[1, 8, 1, 1]{8c}
  input %scale: f32[4]
  %b: f32[1, 8, 4, 4]{8c} = to_layout(%x) {block = 8}
  %c: f32[1, 8, 4, 4]{8c} = conv(%b, %w) {strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1}
  %d: f32[1, 8, 4, 4]{8c} = add(%c, %bias)
  %e: f32[1, 8, 4, 4]{8c} = mul(%d, %scale)
  return %e
}
"""

PLANNED = """graph @net(arena_bytes = 192) {
  input %x: f32[16]
  %a: f32[16] = group(%x) {offset = [0]} "first"
    region @first {
      input %x1: f32[16]
      %a1: f32[16] = relu(%x1)
      return %a1
    }
  %v: f32[4, 4] = reshape(%a) {shape = [4, 4]}
  %b: f32[4, 4] = group(%v) {offset = [64]}
    region @second {
      input %v1: f32[4, 4]
      %b0: f32[4, 4] = neg(%v1)
      %b1: f32[4, 4] = add(%b0, %v1)
      return %b1
    }
  %c: f32[4, 4] = group(%b, %v)
    region @third {
      input %b2: f32[4, 4]
      input %v2: f32[4, 4]
      %c1: f32[4, 4] = mul(%b2, %v2)
      return %c1
    }
  return %c
}
"""


def canonical() -> Graph:
    constant = Constant(BIG)
    return parse_graph(CANONICAL.replace("DIGEST", constant.digest), {constant.digest: BIG})


# -- text ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)
@given(graphs())
def test_every_graph_reads_back(graph: Graph) -> None:
    text = print_graph(graph)
    parsed = parse_graph(text, constants_of(graph))
    assert print_graph(parsed) == text
    assert equal_graphs(graph, parsed)
    for left, right in zip(graph.nodes, parsed.nodes, strict=True):
        assert (left.op, left.name, list(left.attrs)) == (right.op, right.name, list(right.attrs))
        assert repr((left.inputs, left.outputs)) == repr((right.inputs, right.outputs))


@given(attrs())
def test_every_attribute_reads_back_as_itself(attr: Any) -> None:
    parsed = parse_graph(f"graph @g(a = {print_attr(attr)}) {{ return }}").attrs["a"]
    assert type(parsed) is type(attr)
    assert repr(parsed) == repr(attr)


@given(arrays())
def test_constants_read_back_to_the_bit(array: np.ndarray[Any, Any]) -> None:
    value = Value("k", TensorType(DType.of(array.dtype), array.shape))
    graph = Graph("g", (), (value,), (), {value: Constant(array)})
    (parsed,) = parse_graph(print_graph(graph), constants_of(graph)).constants.values()
    assert parsed.array.dtype == array.dtype
    assert parsed.array.shape == array.shape
    same = (array.tolist(), parsed.array.tolist()) if array.dtype == object else (array.tobytes(), parsed.array.tobytes())
    assert same[0] == same[1]


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFC00000, 0x80000000, 0x00000001])
def test_unusual_bits_survive(bits: int) -> None:
    value = Value("k", TensorType(F32, (1,)))
    graph = Graph("g", (), (value,), (), {value: Constant(np.array([bits], np.uint32).view(np.float32))})
    (parsed,) = parse_graph(print_graph(graph)).constants.values()
    assert parsed.array.view(np.uint32)[0] == bits


def test_the_text_is_the_documented_one() -> None:
    graph = canonical()
    assert print_graph(graph) == CANONICAL.replace("DIGEST", Constant(BIG).digest)
    assert [v.name for v in graph.outputs] == ["c", "a"]
    assert graph.nodes[0].name == "first"
    assert graph.nodes[2].attrs["shape"] == (2 * sym("N"), 2)


def test_comments_and_layout_of_the_text_do_not_matter() -> None:
    assert equal_graphs(canonical(), parse_graph("// a net\n" + print_graph(canonical()).replace("\n  ", " "), constants_of(canonical())))


def test_equality_looks_past_inner_names_alone() -> None:
    graph = canonical()
    text = print_graph(graph)
    assert equal_graphs(graph, parse_graph(text.replace("%b", "%other"), constants_of(graph)))
    for old, new in (("relu", "neg"), ("%x", "%y"), ("-0.0", "0.0"), ('"first"', '"1st"'), ("<2*N>", "<N>"), ("neg(%a)", "neg(%x)")):
        changed = parse_graph(text.replace(old, new), constants_of(graph))
        assert equal_graphs(graph, changed) == (old not in text), old


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("relu(%a)", "relu(%q)", 6, "%q is read before it is defined"),
        ("relu(%a)", "relu(%a", 7, "expected"),
        ("f32[N, 4] = relu", "f99[N, 4] = relu", 6, "a tensor type"),
        ("= [1.0, -0.0, inf, 2.5]", "= [1.0]", 3, "not the data of"),
        ("f32[4, 8] = @", "f32[8, 4] = @", 4, "not f32[8, 4]"),
        ("<2*N>", "<2**N>", 7, "expected a number or a name"),
        ("f32[N, 4] = add", "f32[N, 4+] = add", 5, "is not a tensor type"),
        ("return", "return %c } %", 8, "cannot begin"),
        ("graph @net", "graph net", 1, "the graph's @name"),
    ],
)
def test_errors_name_the_line(old: str, new: str, line: int, what: str) -> None:
    text = print_graph(canonical()).replace(old, new)
    with pytest.raises(UserError) as caught:
        parse_graph(text, constants_of(canonical()))
    assert caught.value.where == f"IR text, line {line}"
    assert what in caught.value.what


def test_a_missing_array_is_an_error() -> None:
    with pytest.raises(UserError, match="was not given"):
        parse_graph(print_graph(canonical()), {})


@pytest.mark.parametrize("text", ["f32", "f32[N", "f32[]x", "f99[1]", "f32[1,,2]"])
def test_text_that_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a tensor type"):
        parse_type(text)


# -- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 8, 2), (3, 9), (2, 0, 3)])
def test_blocked_arrays_hold_each_channel_once(shape: tuple[int, ...]) -> None:
    logical = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    type_ = TensorType(F32, shape, 4)
    packed = pack_physical(logical, 4)
    assert packed.shape == type_.physical_shape
    for at in np.ndindex(*shape):
        assert packed[(at[0], at[1] // 4, *at[2:], at[1] % 4)] == logical[at]
    assert np.count_nonzero(packed) == logical.size
    np.testing.assert_array_equal(unpack_physical(packed.reshape(-1), shape, 4), logical)


@pytest.mark.parametrize("shape", [(2, 8, 1, 1), (2, 6, 1, 1), (1, 6, 1, 1), (1, 8, 2, 1), (2, 8), (1, 6)])
def test_layouts_that_begin_with_the_bytes_of_others(shape: tuple[int, ...]) -> None:
    type_, logical = TensorType(F32, shape), np.random.default_rng(0).random(shape)
    blocked, plain = pack_physical(logical, 4).reshape(-1), logical.reshape(-1)
    assert begins_with(type_.with_block(4), type_) is np.array_equal(blocked[: plain.size], plain)
    assert begins_with(type_, type_.with_block(4)) is np.array_equal(blocked, plain)


# -- rules --------------------------------------------------------------------------------------------------------


def test_graphs_that_keep_the_rules_pass() -> None:
    verify_graph(canonical(), Stage.CANONICAL)
    verify_graph(canonical(), Stage.LAID_OUT)
    verify_graph(parse_graph(PLANNED), Stage.GROUPED)
    verify_graph(parse_graph(PLANNED), Stage.PLANNED)


def _refuse(graph: Graph, stage: Stage, what: str) -> None:
    with pytest.raises(InternalError) as caught:
        verify_graph(graph, stage)
    assert what in str(caught.value)
    assert stage.value in caught.value.where


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("f32[N, 4] = relu", "f32[N, 5] = relu", "relu infers f32[N, 4]"),
        ("f32[N, 4] = relu", "i32[N, 4] = relu", "relu infers f32[N, 4]"),
        ("add(%x, %one)", "add(%x, %big)", "do not fit add"),
        ("f32[N, 4] = relu", "f32[N, 4]{8c} = relu", "not row-major"),
        ("= relu", "= no_such_op", "no op is called 'no_such_op'"),
        ("= relu", "= group", "no place in this stage"),
    ],
)
def test_rules_of_canonical_graphs(old: str, new: str, what: str) -> None:
    text = print_graph(canonical()).replace(old, new, 1)
    with pytest.raises(InternalError) as caught:
        verify_graph(parse_graph(text, constants_of(canonical())), Stage.CANONICAL)
    assert what in str(caught.value)


def _swap_nodes(graph: Graph) -> Graph:
    first, second, *rest = graph.nodes
    return graph.with_(nodes=(second, first, *rest))


def _define_twice(graph: Graph) -> Graph:
    return graph.with_(nodes=(*graph.nodes, replace(graph.nodes[1])))


def _lose_a_node(graph: Graph) -> Graph:
    return graph.with_(nodes=graph.nodes[:2])


def _wrong_constant(graph: Graph) -> Graph:
    (first, *_) = graph.constants
    return graph.with_(constants={**graph.constants, first: Constant(np.zeros(4))})


def _block_a_vector(graph: Graph) -> Graph:
    value = Value("z", TensorType(F32, (8,), 8))
    return graph.with_(inputs=(*graph.inputs, value))


def _one_name_for_two(graph: Graph) -> Graph:
    return graph.with_(inputs=(*graph.inputs, Value("one", TensorType(F32, ()))))


def _foreign_attribute(graph: Graph) -> Graph:
    return graph.with_(nodes=(replace(graph.nodes[0], attrs={"axis": np.int64(1)}), *graph.nodes[1:]))


def _odd_symbol(graph: Graph) -> Graph:
    return graph.with_(inputs=(*graph.inputs, Value("z", TensorType(F32, (sym("batch size"),)))))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_swap_nodes, "%a is read before it is defined"),
        (_define_twice, "%b is defined twice"),
        (_lose_a_node, "output %c is not defined"),
        (_wrong_constant, "holds float64[4]"),
        (_block_a_vector, "has no such layout"),
        (_one_name_for_two, "two values are called %one"),
        (_foreign_attribute, "of type int64 cannot be an attribute"),
        (_odd_symbol, "not an identifier"),
    ],
)
def test_rules_of_every_stage(change: Callable[[Graph], Graph], what: str) -> None:
    with pytest.raises(InternalError) as caught:
        verify_graph(change(canonical()), Stage.LAID_OUT)
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("%c: f32[1, 8, 4, 4]{8c}", "%c: f32[1, 8, 4, 4]", "conv cannot run in these layouts"),
        ("%w: f32[8, 8, 1, 1]", "%w: f32[8, 8, 1, 1]{8c}", "conv cannot run in these layouts"),
        ("%bias: f32[1, 8, 1, 1]{8c}", "%bias: f32[1, 8, 1, 1]", "add cannot run in these layouts"),
        ("%d: f32[1, 8, 4, 4]{8c}", "%d: f32[1, 8, 4, 4]{4c}", "add cannot run in these layouts"),
        ("%e: f32[1, 8, 4, 4]{8c} = mul(%d, %scale)", "%e: f32[128]{1c} = reshape(%d) {shape = [128]}", "reshape cannot run in these layouts"),
        ("{block = 8}", "{block = 4}", "to_layout's block"),
    ],
)
def test_rules_of_layouts(old: str, new: str, what: str) -> None:
    verify_graph(parse_graph(LAID_OUT), Stage.LAID_OUT)
    _refuse(parse_graph(LAID_OUT.replace(old, new, 1)), Stage.LAID_OUT, what)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("%v: f32[4, 4] = reshape(%a) {shape = [4, 4]}", "%r: f32[16] = neg(%a)\n%v: f32[4, 4] = reshape(%r) {shape = [4, 4]}", "is not a view"),
        ("input %v1: f32[4, 4]", "input %v1: f32[16]", "not of the types of the group's"),
        ("return %b1", "%b3: f32[16] = reshape(%b1) {shape = [16]} return %b3", "outputs are not of the types"),
        ("add(%b0, %v1)", "add(%b0, %v)", "reads %v from outside"),
        (
            "%b0: f32[4, 4] = neg(%v1)",
            "%r: f32[4, 4] = softmax(%v1) {axis = 1, log = false} %b0: f32[4, 4] = softmax(%r) {axis = 1, log = false}",
            "more than one anchor",
        ),
        ('%a: f32[16] = group(%x) {offset = [0]} "first"', "%a: f32[16], %d: f32[4, 4] = group(%x)", "not of the types of the group's"),
        ("return %a1", "return %x1", "%x1 of the region is there before its anchor"),
        (
            "%a1: f32[16] = relu(%x1)\n      return %a1",
            "%e: f32[16] = exp(%x1) %a1: f32[16] = softmax(%e) {axis = 0, log = false} return %e",
            "%e of the region is",
        ),
        ("input %x: f32[16]", "input %x: f32[16] input %none: f32[1]", ""),
    ],
)
def test_rules_of_grouped_graphs(old: str, new: str, what: str) -> None:
    graph = parse_graph(PLANNED.replace(old, new, 1))
    if what:
        _refuse(graph, Stage.GROUPED, what)
    else:
        verify_graph(graph, Stage.GROUPED)


def test_outputs_of_a_group_are_of_one_shape() -> None:
    text = PLANNED.replace("%a: f32[16] = group(%x) {offset = [0]}", "%a: f32[16], %d: f32[4, 4] = group(%x)")
    graph = parse_graph(text.replace("return %a1", "%d1: f32[4, 4] = reshape(%a1) {shape = [4, 4]} return %a1, %d1"))
    _refuse(graph, Stage.GROUPED, "more than one shape or layout")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("(arena_bytes = 192)", "", "None is not a number of bytes"),
        ("offset = [64]", "offset = [32]", "not a multiple of 64"),
        ("{offset = [64]}", "", "offset None"),
        ("{offset = [64]}", "{offset = 64}", "does not say offset for each of 1 outputs"),
        ("{offset = [64]}", "{offset = [64, 128]}", "does not say offset for each of 1 outputs"),
        ("offset = [64]", "offset = [0]", "overlaps %a, which is still read"),
        ("offset = [64]", "offset = [192]", "outside the arena"),
        ("= group(%b, %v)", "= group(%b, %v) {offset = [64]}", "overlaps %b"),
    ],
)
def test_rules_of_planned_graphs(old: str, new: str, what: str) -> None:
    _refuse(parse_graph(PLANNED.replace(old, new, 1)), Stage.PLANNED, what)


def test_outputs_live_to_the_end() -> None:
    text = PLANNED.replace("= group(%b, %v)", "= group(%b, %b) {offset = [0]}")
    verify_graph(parse_graph(text), Stage.PLANNED)
    _refuse(parse_graph(text.replace("return %c\n", "return %c, %v\n")), Stage.PLANNED, "overlaps %a")


def test_memory_of_dead_values_may_be_used_again() -> None:
    last = "%d: f32[4, 4] = group(%c) region @fourth { input %c2: f32[4, 4] %d1: f32[4, 4] = neg(%c2) return %d1 } return %d }"
    text = PLANNED.replace("= group(%b, %v)", "= group(%b, %b) {offset = [0]}").removesuffix("return %c\n}\n") + last
    verify_graph(parse_graph(text), Stage.PLANNED)


# -- meaning ------------------------------------------------------------------------------------------------------


def test_interpretation_is_numpys() -> None:
    x = np.array([[1, -2, 3, -4], [0.5, -0.5, -np.inf, np.nan]], np.float32)
    out = interpret(canonical(), {"x": x})
    with np.errstate(invalid="ignore"):
        a = x + np.array([1, -0.0, np.inf, 2.5], np.float32)
    np.testing.assert_array_equal(out["a"], a)
    np.testing.assert_array_equal(out["c"], np.maximum(a, 0).reshape(4, 2))
    assert list(out) == ["c", "a"]


def test_groups_mean_what_their_regions_do() -> None:
    x = np.linspace(-3, 3, 16, dtype=np.float32)
    graph = parse_graph(PLANNED)
    a = np.maximum(x, 0).reshape(4, 4)
    np.testing.assert_array_equal(interpret(graph, {"x": x})["c"], (a - a) * a)
    everything = interpret_all(graph, {"x": x})
    np.testing.assert_array_equal(everything["b0"], -a)
    assert {"x", "a", "a1", "v", "b", "c"} <= set(everything)


@pytest.mark.parametrize(
    ("feeds", "what"),
    [
        ({}, "['x'] are missing"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(1)}, "['y'] are unknown"),
        ({"x": np.zeros((2, 4))}, "float64[2, 4], not f32[N, 4]"),
        ({"x": np.zeros((2, 5), np.float32)}, "float32[2, 5], not f32[N, 4] with N = 2"),
        ({"x": np.zeros(4, np.float32)}, "float32[4], not f32[N, 4]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as caught:
        interpret(canonical(), feeds)
    assert what in caught.value.what


def test_one_symbol_is_one_number() -> None:
    x, y = (Value(name, TensorType(F32, (sym("N"), sym("N") + k))) for k, name in enumerate("xy"))
    graph = Graph("g", (x, y), (y,), ())
    interpret(graph, {"x": np.zeros((3, 3), np.float32), "y": np.zeros((3, 4), np.float32)})
    with pytest.raises(UserError, match="input y"):
        interpret(graph, {"x": np.zeros((3, 3), np.float32), "y": np.zeros((4, 5), np.float32)})


def test_results_are_held_to_their_types() -> None:
    x = Value("x", TensorType(F32, (3,)))
    y = Value("y", TensorType(F32, (4,)))
    graph = Graph("g", (x,), (y,), (Node("relu", (x,), (y,)),))
    with pytest.raises(InternalError, match=r"float32\[3\]"):
        interpret(graph, {"x": np.zeros(3, np.float32)})
