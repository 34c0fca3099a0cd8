"""Small groups inside of those that read them: the pass, the functions it makes, and that memory is not kept for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import sym
from compiler.ir.loop import Access, For, Function, LoopKind, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.loop_chain import Link, chained
from compiler.ir.loop_interp import run_function
from compiler.ir.loop_verify import verify_function
from compiler.ir.parser import parse_graph
from compiler.ir.types import DType, TensorType
from compiler.ir.verify import Stage, verify_graph
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from tests.graph_cases import f32, networks
from tests.test_lowering import check_program

TARGET = resolve("x86-64-v3")
F32 = VecType(DType.FLOAT32, 1)


def check(graph: Graph) -> list[str]:
    """The ops of each kernel, those of its inner groups in brackets, once its program has been run beside the interpreter."""
    planned, _ = optimize(graph, TARGET, verify=True)
    check_program(graph, lower(planned, TARGET, threads=2), workers=2)
    return [_ops(node) for node in planned.nodes if node.op == "group"]


def _ops(group: Node) -> str:
    return " ".join(f"({_ops(node)})" if node.op == "group" else node.op for node in group.regions[0].nodes)


def gated(channels: int, spread: int) -> Graph:
    """Squeeze and excite of ``channels`` at ``spread`` x ``spread``, the first product an input of its own."""
    b = GraphBuilder("g", folding=False)
    x, squeezed = b.input("x", f32(1, channels, spread, spread)), b.input("s", f32(1, channels))
    less = b.emit("relu", b.emit("matmul", squeezed, b.constant(np.ones((channels, 4), np.float32))))
    gate = b.emit("sigmoid", b.emit("matmul", less, b.constant(np.full((4, channels), 0.1, np.float32))))
    return b.graph([b.emit("mul", x, b.emit("reshape", gate, shape=(1, channels, 1, 1)))])


def test_small_products_are_computed_where_they_are_read() -> None:
    assert check(gated(16, 5)) == ["(matmul relu) (matmul sigmoid) reshape mul"]


def test_large_ones_are_computed_once() -> None:
    assert check(gated(5000, 2)) == ["matmul relu", "matmul sigmoid", "mul"]
    assert check(gated(3000, 2)) == ["(matmul relu) matmul sigmoid", "mul"]


def ranged(rows: int, columns: int) -> Graph:
    """Rows less the least of all their elements, times weights: the least is little work beside the product, however large."""
    b = GraphBuilder("g", folding=False)
    x = b.emit("relu", b.emit("matmul", b.input("x", f32(rows, 8)), b.constant(np.ones((8, 64), np.float32))))
    least = b.emit("reduce", x, kind="min", axes=(0, 1), keepdims=True)
    y = b.emit("matmul", x, b.constant(np.ones((64, columns), np.float32)))
    return b.graph([b.emit("add", y, least)])


@pytest.mark.parametrize(("columns", "kernels"), [(512, 2), (16, 3)])
def test_what_is_little_beside_the_readers_own_work_goes_into_it(columns: int, kernels: int) -> None:
    assert len(check(ranged(512, columns))) == kernels


def test_every_reader_computes_it_and_none_twice() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(4, 4))
    total = b.emit("reduce", x, kind="sum", axes=(0, 1), keepdims=True)
    mixed = b.emit("matmul", b.emit("div", b.emit("softmax", x, axis=1, log=False), total), x)
    big = b.input("big", f32(300, 300))
    assert check(b.graph([b.emit("mul", big, total), b.emit("sub", b.emit("reduce", mixed, kind="max", axes=(0, 1), keepdims=True), total)])) == [
        "(reduce) mul",
        "(reduce) (softmax div) (matmul) reduce sub",
    ]


def two_readers(make: Callable[[GraphBuilder, Value], Value], outputs: Callable[[Value, Value], list[Value]]) -> Graph:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(6, 6))
    small = make(b, x)
    return b.graph(outputs(small, b.emit("matmul", small, b.constant(np.ones((6, 6), np.float32)))))


def test_an_output_is_a_kernel_of_its_own() -> None:
    graph = two_readers(lambda b, x: b.emit("softmax", x, axis=1, log=False), lambda small, read: [small, read])
    assert check(graph) == ["softmax", "matmul"]


def test_kernels_that_report_stay_apart() -> None:
    b = GraphBuilder("g", folding=False)
    x, y = (b.input(name, TensorType(DType.INT32, (3, 5))) for name in "xy")
    ratio = b.emit("div", x, b.emit("maximum", y, b.constant(np.int32(1))))
    columns, rows = (b.emit("reduce", ratio, kind="max", axes=(axis,), keepdims=False) for axis in (0, 1))
    assert check(b.graph([columns, rows])) == ["maximum div", "reduce", "reduce"]


def test_sizes_of_a_run_stay_apart() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", f32(sym("n"), 4))
    total = b.emit("reduce", x, kind="sum", axes=(0,), keepdims=True)
    assert check(b.graph([b.emit("sub", x, total)])) == ["reduce", "sub"]


def test_a_reader_of_a_size_of_a_run() -> None:
    b = GraphBuilder("g", folding=False)
    x, k = b.input("x", f32(sym("n"), 4)), b.input("k", f32(4, 4))
    weights = b.emit("softmax", k, axis=1, log=False)
    assert check(b.graph([b.emit("matmul", x, weights)])) == ["(softmax) matmul"]


def test_large_operands_do_not_wait_for_the_reader() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.emit("exp", b.emit("matmul", b.input("x", f32(40, 40)), b.constant(np.eye(40, dtype=np.float32))))
    total = b.emit("reduce", x, kind="sum", axes=(0, 1), keepdims=True)
    y = b.emit("matmul", b.emit("matmul", x, b.input("a", f32(40, 40))), b.input("b", f32(40, 40)))
    assert check(b.graph([b.emit("mul", y, total)]))[1] == "reduce"


def test_half_precision_is_stored_as_such_between_kernels() -> None:
    b = GraphBuilder("g", folding=False)
    x = b.input("x", TensorType(DType.FLOAT16, (4, 9)))
    small = b.emit("softmax", x, axis=1, log=False)
    planned, _ = optimize(b.graph([b.emit("matmul", small, b.emit("transpose", x, perm=(1, 0)))]), TARGET, verify=True)
    assert len(planned.nodes) == 1
    check_program(planned, lower(planned, TARGET, threads=2), workers=2, tolerance=1e-3)


@settings(max_examples=40, deadline=None)
@given(networks())
def test_random_networks(graph: Graph) -> None:
    check(graph)


NESTED = """graph @g {
  input %x: f32[4]
  %y: f32[4] = group(%x)
    region @body {
      input %x.1: f32[4]
      %m: f32[4] = group(%x.1)
        region @body {
          input %x.2: f32[4]
          %m.1: f32[4] = relu(%x.2)
          return %m.1
        }
      %y.1: f32[4] = exp(%m)
      return %y.1
    }
  return %y
}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[4]", "[N]", "size that only a run knows"),
        ("      %y.1: f32[4] = exp(%m)", "      %n: i32[4] = bitcast(%m) {to = i32}\n      %y.1: f32[4] = cast(%n) {to = f32}", "as another type"),
        (
            "          %m.1: f32[4] = relu(%x.2)",
            "%m.1: f32[4] = group(%x.2)\nregion @body {\ninput %x.3: f32[4]\n%m.2: f32[4] = relu(%x.3)\nreturn %m.2\n}",
            "a group has no place here",
        ),
    ],
)
def test_rules_of_inner_groups(old: str, new: str, message: str) -> None:
    verify_graph(parse_graph(NESTED), Stage.GROUPED)
    with pytest.raises(InternalError, match=message):
        verify_graph(parse_graph(NESTED.replace(old, new)), Stage.GROUPED)


def double(name: str, scratch: Access = Access.SCRATCH) -> Function:
    """Twice each of four elements, by way of a further buffer."""
    b = LoopBuilder(name)
    x, out = b.buffer("x", DType.FLOAT32, 4, Access.READ), b.buffer("out", DType.FLOAT32, 4, Access.WRITE)
    own = b.buffer("own", DType.FLOAT32, 1, scratch)
    with b.loop("i", 0, 4, parallel=True) as i:
        value = b.load(x, i.var)
        b.store(own, 0, b.op("add", value, value))
        at = b.bind(b.index_value(i.var))
        b.store(out, at, b.load(own, 0))
    return b.function()


def add(name: str) -> Function:
    """The sum of two elements each, of buffers of two and four."""
    b = LoopBuilder(name)
    x, y, out = (
        b.buffer("x", DType.FLOAT32, 2, Access.READ),
        b.buffer("y", DType.FLOAT32, 2, Access.READ),
        b.buffer("out", DType.FLOAT32, 2, Access.WRITE),
    )
    with b.loop("i", 0, 2, parallel=True) as i:
        b.store(out, i.var, b.op("add", b.load(x, i.var), b.load(y, i.var)))
    return b.function()


def test_a_chain_passes_on_what_its_links_make() -> None:
    function = chained("both", [Link(double("first")), Link(double("second"), {0: (0, 0)}), Link(add("third"), {0: (0, 1), 1: (1, 2)})])
    verify_function(function)
    assert [buffer.access for buffer in function.buffers[:2]] == [Access.READ, Access.WRITE]
    loops = [stmt.kind for stmt in function.body if isinstance(stmt, For)]
    assert loops == [LoopKind.SERIAL, LoopKind.SERIAL, LoopKind.PARALLEL]
    out = np.empty(2, np.float32)
    rest = [np.full(buffer.size, np.nan, np.float32) for buffer in function.buffers[2:]]
    run_function(function, [np.arange(4, dtype=np.float32), out, *rest])
    np.testing.assert_array_equal(out, [2 + 8, 4 + 12])


def test_a_link_that_reports_is_refused() -> None:
    with pytest.raises(InternalError, match="buffer own of first is shared"):
        chained("both", [Link(double("first", Access.STATUS)), Link(double("second"), {0: (0, 0)})])
