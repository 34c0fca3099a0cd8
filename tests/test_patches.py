"""Patch-by-patch execution and memory budgets: parts of every op, random networks in pieces, and what cannot be met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_ops import SAMPLES, assert_same, feeds_of, one_node_model
from zoo_models import load, needs_zoo

import tensorsmith as ts
from compiler.cli.options import parse_bytes
from compiler.driver import Options, build
from compiler.ir.box import Box, reshaped, sizes, slices, whole
from compiler.ir.builder import GraphBuilder
from compiler.ir.control import own_symbols
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret_all
from compiler.ir.op import Sample, all_ops, lookup
from compiler.ir.verify import Stage, verify_graph
from compiler.memory_budget import MemoryBudget
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model
from passes.analysis.patches import cartesian_boxes, grid_boxes
from passes.graph.dead_code import EliminateDeadCode
from passes.graph.patch import PatchByPatch
from tests.graph_cases import check_same, f32, kernels_apart, networks

TARGET = resolve("x86-64-v3")
IN_PARTS = {
    *(
        "attention",
        "concat",
        "conv",
        "expand",
        "matmul",
        "normalize",
        "pad",
        "pool",
        "reduce",
        "reshape",
        "resize_nearest",
        "roll",
        "shuffle_channels",
        "slice",
    ),
    *("shuffle_channels", "slice", "softmax", "transpose"),
}
"""The ops of which boxes can be computed, beside all elementwise ones."""


def random_box(rng: np.random.Generator, shape: tuple[int, ...]) -> Box:
    """A box of a tensor; of every second axis all."""
    spans = [tuple(sorted(rng.choice(dim + 1, 2, replace=False).tolist())) if rng.integers(2) else (0, dim) for dim in shape]
    return tuple((int(begin), int(end)) for begin, end in spans)


@pytest.mark.parametrize("sample", SAMPLES)
def test_parts_are_what_the_whole_has_there(sample: Sample) -> None:
    graph = import_model(one_node_model(sample), {})
    values = interpret_all(graph, feeds_of(sample))
    rng = np.random.default_rng(0)
    for node in graph.nodes:
        operands = [values.get(value.name) for value in node.present_inputs]
        static = all(value.type.is_static for value in (*node.present_inputs, *node.outputs))
        if (
            not static
            or own_symbols(node)
            or len(node.outputs) != 1
            or any(array is None for array in operands)
            or values[node.output.name].size == 0
        ):
            continue
        want = values[node.output.name]
        for _ in range(6):
            box = random_box(rng, want.shape)
            part = lookup(node.op).part([value.type for value in node.present_inputs], node.attrs, box)
            if part is None:
                continue
            pieces = [array[(*slices(cut), ...)] for array, cut in zip(operands, part.boxes, strict=True) if array is not None]
            assert [piece.shape for piece in pieces] == [sizes(cut) for cut in part.boxes]
            (got,) = lookup(node.op).evaluate(pieces, part.attrs)
            assert got.shape == sizes(box)
            assert_same(got, want[(*slices(box), ...)])


def test_parts_of_shuffled_channels() -> None:
    op, x, rng = lookup("shuffle_channels"), np.arange(2 * 12 * 3 * 4).reshape(2, 12, 3, 4), np.random.default_rng(0)
    attrs = {"group": 3, "start": 1, "size": 10}
    (want,) = op.evaluate([x], attrs)
    for _ in range(20):
        box = random_box(rng, want.shape)
        part = op.part([f32(*x.shape)], attrs, box)
        assert part is not None
        (got,) = op.evaluate([x[(*slices(part.boxes[0]), ...)]], part.attrs)
        np.testing.assert_array_equal(got, want[(*slices(box), ...)])


def test_parts_of_what_is_rolled() -> None:
    op, x, rng = lookup("roll"), np.arange(2 * 7 * 3).reshape(2, 7, 3), np.random.default_rng(0)
    attrs = {"axis": 1, "start": 3}
    (want,) = op.evaluate([x], attrs)
    np.testing.assert_array_equal(want, np.concatenate([x[:, 3:], x[:, :3]], 1))
    for _ in range(40):
        box = random_box(rng, want.shape)
        part = op.part([f32(*x.shape)], attrs, box)
        across = box[1][0] < 4 < box[1][1] and box[1] != (0, 7)
        assert (part is None) == across
        if part is not None:
            (got,) = op.evaluate([x[(*slices(part.boxes[0]), ...)]], part.attrs)
            np.testing.assert_array_equal(got, want[(*slices(box), ...)])


def test_these_ops_are_computed_in_parts() -> None:
    def elementwise(op: Any) -> bool:
        return getattr(op, "broadcasts", None) == 0

    own = {op.name for op in all_ops() if not elementwise(op) and type(op).part is not type(lookup("loop")).part}
    assert own == IN_PARTS


@pytest.mark.parametrize(
    ("box", "shape", "source", "want"),
    [
        (((0, 1), (2, 4)), (1, 8), (8,), ((2, 4),)),
        (((2, 4),), (8,), (2, 4), None),
        (((4, 8),), (8,), (2, 4), ((1, 2), (0, 4))),
        (((0, 2), (1, 2), (0, 4)), (2, 3, 4), (2, 12), ((0, 2), (4, 8))),
        (((1, 2), (0, 3), (2, 4)), (2, 3, 4), (6, 4), ((3, 6), (2, 4))),
        (((0, 6), (2, 3)), (6, 5), (2, 3, 1, 5), ((0, 2), (0, 3), (0, 1), (2, 3))),
        (((0, 1), (0, 1)), (1, 1), (), ()),
    ],
)
def test_boxes_through_a_reshape(box: Box, shape: tuple[int, ...], source: tuple[int, ...], want: Box | None) -> None:
    assert reshaped(box, shape, source) == want


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.data())
def test_a_grid_covers_a_value_once(shape: list[int], data: Any) -> None:
    grid = [data.draw(st.integers(1, dim)) for dim in shape]
    seen = np.zeros(shape, int)
    spans = grid_boxes(shape, grid)
    assert all(len(axis) <= pieces for axis, pieces in zip(spans, grid, strict=True))
    for box in cartesian_boxes(spans):
        seen[slices(box)] += 1
    assert (seen == 1).all()
    assert cartesian_boxes(grid_boxes(shape, [1] * len(shape))) == [whole(shape)]


@st.composite
def stacks(draw: Any) -> Graph:
    """Convolutions of every kind, pooling, padding, resizing, gates and residual sums on one small image."""
    b = GraphBuilder("stack", folding=False)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = b.input("x", f32(1, 8, draw(st.integers(5, 12)), draw(st.integers(5, 12))))

    def pair(most: int) -> tuple[int, int]:
        return draw(st.integers(1, most)), draw(st.integers(1, most))

    def conv(x: Value, group: int, **window: Any) -> Value:
        kernel = window.pop("kernel")
        return b.emit("conv", x, b.constant(rng.standard_normal((8, 8 // group, *kernel)).astype(np.float32)), group=group, **window)

    for _ in range(draw(st.integers(1, 6))):
        rows, columns = x.type.static_shape[2:]
        kernel, dilations, strides = pair(3), pair(2), pair(2)
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
        kind = draw(st.sampled_from(("conv", "conv", "conv", "pool", "pad", "residual", "gate", "resize", "slice", "shuffle", "norm")))
        if kind in ("conv", "pool"):
            assume(all(size + pads[a] + pads[2 + a] >= extents[a] for a, size in enumerate((rows, columns))))
        window = {"strides": strides, "pads": pads, "dilations": dilations}
        match kind:
            case "conv":
                made = conv(x, draw(st.sampled_from((1, 2, 8))), kernel=kernel, **window)
                x = b.emit("relu", b.emit("add", made, b.constant(np.full((1, 8, 1, 1), 0.5, np.float32))))
            case "pool":
                kind = draw(st.sampled_from(("max", "average")))
                x = b.emit("pool", x, kind=kind, kernel_shape=kernel, **window, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans()))
            case "pad":
                x = b.emit("pad", x, begins=(0, 0, *pads[:2]), ends=(0, 0, *pads[2:]), mode=draw(st.sampled_from(("constant", "edge"))), value=0.5)
            case "residual":
                same = conv(x, 1, kernel=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1))
                x = b.emit("add", x, b.emit("relu", same))
            case "gate":
                x = b.emit("mul", x, b.emit("sigmoid", b.emit("reduce", x, kind="max", axes=(2, 3), keepdims=True)))
            case "resize":
                x = b.emit("resize_nearest", x, scales=(1, 1, 2, 1))
            case "slice":
                x = b.emit("slice", x, starts=(0, 0, rows - 1, 0), sizes=(1, 8, rows, (columns + 1) // 2), steps=(1, 1, -1, 2))
            case "shuffle":
                split = b.emit("transpose", b.emit("reshape", x, shape=(1, 2, 4, rows, columns)), perm=(0, 2, 1, 3, 4))
                x = b.emit("concat", b.emit("reshape", split, shape=(1, 8, rows, columns)), x, axis=1)
                x = b.emit("slice", x, starts=(0, 4, 0, 0), sizes=(1, 8, rows, columns), steps=(1, 1, 1, 1))
            case "norm":
                x = b.emit("softmax", x, axis=1, log=False)
        assume(min(x.type.static_shape) > 0)
    return b.graph([x])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(stacks(), st.data())
def test_pieces_make_the_whole(graph: Graph, data: Any) -> None:
    value = data.draw(st.sampled_from([node.output for node in graph.nodes if node.output.type.rank == 4]))
    sources = ["", *(node.output.name for node in graph.nodes[: [n.output for n in graph.nodes].index(value)])]
    rows, columns = (data.draw(st.integers(1, min(4, dim))) for dim in value.type.static_shape[2:])
    grid = f"1x{data.draw(st.sampled_from((1, 1, 2)))}x{rows}x{columns}"
    after = PatchByPatch(value.name, grid, data.draw(st.sampled_from(sources))).run(graph)
    cleaned = EliminateDeadCode().run(after.graph).graph
    verify_graph(cleaned, Stage.CANONICAL)
    check_same(graph, cleaned, 1e-6)
    assert after.changed == (after.graph is not graph)


def network(size: int = 24) -> Graph:
    """Wide layers on a large image, then a narrow result."""
    b = GraphBuilder("network", folding=False)
    rng = np.random.default_rng(0)
    x = b.input("x", f32(1, 3, size, size))
    for channels, out, stride, group in ((3, 16, 1, 1), (16, 16, 2, 16), (16, 24, 1, 1), (24, 24, 2, 24), (24, 8, 1, 1)):
        w = b.constant(rng.standard_normal((out, channels // group, 3, 3)).astype(np.float32))
        x = b.emit("relu", b.emit("conv", x, w, strides=(stride, stride), pads=(1, 1, 1, 1), dilations=(1, 1), group=group))
    return b.graph([b.emit("reduce", x, kind="max", axes=(2, 3), keepdims=False)]).with_(attrs={"input_names": ("x",), "output_names": ("y",)})


def arena_bytes(planned: Graph) -> int:
    found = planned.attrs["arena_bytes"]
    assert isinstance(found, int)
    return found


def arena(graph: Graph, budget: int | None = None) -> int:
    planned, _ = optimize(graph, TARGET, memory_budget=None if budget is None else MemoryBudget(budget), verify=True)
    check_same(graph, planned, 1e-5)
    return arena_bytes(planned)


def test_a_budget_is_met() -> None:
    graph = network()
    plain = arena(graph)
    assert arena(graph, plain) == plain
    for part in (0.9, 0.7, 0.5):
        assert arena(graph, int(plain * part)) <= plain * part


def test_what_meets_no_budget_says_the_least() -> None:
    graph = network()
    with pytest.raises(ts.UserError, match="memory_budget is 100 bytes, and this model takes") as caught:
        arena(graph, 100)
    least = int(caught.value.what.split("takes ")[1].split()[0])
    assert 0 < least < arena(graph) / 2
    assert arena(graph, least) <= least
    assert str(least) in (caught.value.hint or "")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.one_of(stacks(), networks()), st.sampled_from([0.9, 0.6, 0.3]))
def test_any_network_meets_a_budget_or_says_what_it_needs(graph: Graph, part: float) -> None:
    plain = kernels_apart(graph, TARGET)
    given_bytes = arena_bytes(plain)
    budget = int(part * given_bytes)
    try:
        planned, _ = optimize(graph, TARGET, memory_budget=MemoryBudget(budget), verify=True)
    except ts.UserError as error:
        least = int(error.what.split("takes ")[1].split()[0])
        assert budget < least <= given_bytes
        planned, _ = optimize(graph, TARGET, memory_budget=MemoryBudget(least), verify=True)
        budget = least
    check_same(graph, planned, 1e-4)
    assert arena_bytes(planned) <= budget


def test_empty_values_are_left_whole() -> None:
    b = GraphBuilder("empty", folding=False)
    x = b.emit("relu", b.emit("exp", b.input("x", f32(1, 2, 0, 4))))
    graph = b.graph([b.emit("softmax", x, axis=1, log=False)])
    assert not PatchByPatch(x.name, "1x1x1x2").run(graph).changed
    check_same(graph, optimize(graph, TARGET, memory_budget=MemoryBudget(0))[0])


def test_sizes_of_a_run_have_no_budget() -> None:
    node = helper.make_node("Relu", ["x"], ["t"]), helper.make_node("Softmax", ["t"], ["y"])
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3])] for name in "xy"]
    model = helper.make_model(helper.make_graph(node, "g", *sides), opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    with pytest.raises(ts.UserError, match="depends on its inputs"):
        ts.compile(model, memory_budget=1 << 30, cache=False)
    assert ts.compile(model, memory_budget=1 << 30, input_shapes={"x": (5, 3)}, cache=False).memory().arena is not None


@pytest.mark.parametrize("budget", [-1, 1.5, True, "1MB"])
def test_a_budget_is_a_number_of_bytes(budget: Any) -> None:
    with pytest.raises(ts.UserError, match="memory_budget is"):
        ts.compile(b"", memory_budget=budget)


@pytest.mark.parametrize(("text", "want"), [("1.5MB", 1_500_000), ("800kB", 800_000), ("2 MiB", 2 << 20), ("77", 77), (None, None)])
def test_sizes_as_text(text: str | None, want: int | None) -> None:
    assert parse_bytes(text) == want


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1.5 mb", "1e6", "٣MB"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ts.UserError, match="cannot read"):
        parse_bytes(text)


def test_native_code_gives_the_same_bits(tmp_path: Any) -> None:
    graph = network(32)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    modules = []
    for budget in (None, 40_000):
        path = tmp_path / f"{budget}.tsm"
        build(graph, Options.checked("native", 2, None, 3, budget)).write(path)
        modules.append(ts.load(path))
    plain, patched = modules
    assert (plain.memory().arena or 0) > 60_000 > 40_000 >= (patched.memory().arena or 0) + 2 * (patched.memory().scratch or 0) > 0
    np.testing.assert_array_equal(patched.run(feeds)["y"], plain.run(feeds)["y"])
    assert {"patch-by-patch"} == {report.name for report in patched.report()} - {report.name for report in plain.report()}
    assert plain.memory().peak in {kernel.name for kernel in plain.kernels}


def test_scratch_is_in_the_budget() -> None:
    b = GraphBuilder("sorted", folding=False)
    x = b.emit("exp", b.input("x", f32(4, 1000)))
    graph = b.graph([b.emit("top_positions", x, axis=1, k=1000, largest=True)]).with_(attrs={"input_names": ("x",), "output_names": ("y",)})
    built = build(graph, Options.checked("native", 2, None, 3)).manifest
    taken = (built.arena_bytes or 0) + 2 * (built.scratch_bytes or 0)
    assert built.scratch_bytes
    build(graph, Options.checked("native", 2, None, 3, taken))
    for less in (taken - 1, 1):
        with pytest.raises(ts.UserError, match=f"and {2 * built.scratch_bytes} of scratch at the least") as caught:
            build(graph, Options.checked("native", 2, None, 3, less))
        assert f"at least {taken} bytes" in (caught.value.hint or "")


@needs_zoo
def test_mobilenet_fits_a_quarter() -> None:
    model, feeds = load("mobilenetv2_100")
    graph = import_model(model, {name: array.shape for name, array in feeds.items()})
    plain, _ = optimize(graph, TARGET)
    patched, _ = optimize(graph, TARGET, memory_budget=MemoryBudget(1_500_000))
    assert arena_bytes(plain) <= 6_100_000
    assert arena_bytes(patched) <= 1_500_000
    inside = [inner.op for node in patched.nodes if node.op == "group" for inner in node.regions[0].nodes]
    assert "concat" not in inside, "pieces are made where they lie"
