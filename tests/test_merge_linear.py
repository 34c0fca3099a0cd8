"""Merging of linear regions: random ones, what must stay, networks with train-time branches, and the checks of ``verify``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_cases import check_same, f32
from hypothesis import given, settings
from linear_regions import check, graphs
from typer.testing import CliRunner
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

import tensorsmith as ts
from compiler.cli.main import app
from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.interp import interpret
from compiler.ir.intexpr import floordiv, sym
from compiler.ir.types import DType, TensorType
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import native
from examples.digits.run import MODEL as DIGITS
from frontend.onnx.importer import import_model
from passes.base import PassManager
from passes.claims import Claim
from passes.graph.merge_linear import MergeLinear
from passes.linear import forms


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_random_regions_keep_their_meaning(graph: Graph) -> None:
    check(graph)


class Region:
    """A graph under construction, of one input."""

    def __init__(self, *shape: Any, dtype: DType = DType.FLOAT32) -> None:
        self.builder = GraphBuilder("region", folding=False)
        self.x = self.builder.input("x", TensorType(dtype, shape))
        self.rng = np.random.default_rng(0)

    def const(self, *shape: int) -> Value:
        return self.builder.constant(self.rng.standard_normal(shape).astype(self.x.type.dtype.numpy))

    def conv(self, x: Value, *shape: int, pads: Any = None, strides: Any = None, group: int = 1) -> Value:
        axes = len(shape) - 2
        same = tuple(size // 2 for size in shape[2:]) * 2
        attrs: dict[str, Any] = {"strides": strides or (1,) * axes, "pads": same if pads is None else pads, "dilations": (1,) * axes, "group": group}
        return self.builder.emit("conv", x, self.const(*shape), **attrs)

    def merged(self, *outputs: Value) -> Counter[str]:
        """The ops of the merged graph, which computes the same."""
        graph = self.builder.graph(outputs)
        result, _ = PassManager((MergeLinear(),), verify=True).run(graph)
        check_same(graph, result, 1e-5)
        return Counter(node.op for node in result.nodes)


def test_branches_of_one_size_become_one_convolution() -> None:
    r = Region(1, 8, 9, 9)
    emit = r.builder.emit
    total = emit("add", r.conv(r.x, 8, 8, 3, 3), r.conv(r.x, 8, 8, 1, 1))
    total = emit("add", total, r.conv(r.x, 8, 8, 1, 3))
    total = emit("sub", total, emit("mul", r.x, r.const(1, 8, 1, 1)))
    assert r.merged(emit("add", total, emit("div", r.x, r.const()))) == {"conv": 1}


def test_a_depthwise_mixer_with_a_scaled_difference_becomes_one_convolution() -> None:
    r = Region(1, 8, 9, 9)
    emit = r.builder.emit
    mixed = emit("add", r.conv(r.x, 8, 1, 3, 3, group=8), r.conv(r.x, 8, 1, 7, 7, group=8))
    normal = emit("add", emit("mul", r.x, r.const(1, 8, 1, 1)), r.const(1, 8, 1, 1))
    assert r.merged(emit("add", r.x, emit("mul", emit("sub", mixed, normal), r.const(1, 8, 1, 1)))) == {"conv": 1, "add": 1}


def test_a_narrow_product_stays_in_two_factors() -> None:
    r = Region(1, 64, 9, 9)
    assert r.merged(r.conv(r.conv(r.x, 4, 64, 1, 1), 64, 4, 3, 3)) == {"conv": 2}
    r = Region(1, 4, 9, 9)
    assert r.merged(r.conv(r.conv(r.x, 64, 4, 3, 3), 4, 64, 1, 1)) == {"conv": 1}


def test_a_bias_under_padding_stays() -> None:
    for pads, convs in (((1, 1, 1, 1), 2), ((0, 0, 0, 0), 1)):
        r = Region(1, 4, 9, 9)
        shifted = r.builder.emit("add", r.conv(r.x, 64, 4, 1, 1), r.const(1, 64, 1, 1))
        assert r.merged(r.conv(shifted, 4, 64, 3, 3, pads=pads))["conv"] == convs


def test_a_window_under_padding_stays() -> None:
    for pads, convs in (((1, 1, 1, 1), 2), ((0, 0, 0, 0), 1)):
        r = Region(1, 4, 9, 9)
        assert r.merged(r.conv(r.conv(r.x, 64, 4, 3, 3), 4, 64, 3, 3, pads=pads)) == {"conv": convs}


def test_values_read_elsewhere_are_computed_once() -> None:
    r = Region(1, 8, 9, 9)
    inner = r.conv(r.x, 8, 8, 3, 3)
    assert r.merged(r.conv(inner, 8, 8, 1, 1), inner) == {"conv": 2}


def test_a_value_that_stays_is_not_computed_again_for_a_branch_that_goes() -> None:
    """A 1 x 1 branch over the stem alone would be cheaper from the image, and costs nothing once it is a part of the 3 x 3 one beside it."""
    r = Region(1, 3, 12, 12)
    stem = r.conv(r.conv(r.conv(r.x, 6, 3, 1, 1), 48, 6, 3, 3), 24, 48, 1, 1)
    stem = r.builder.emit("add", stem, r.conv(r.x, 24, 3, 1, 1))
    wide = r.conv(r.conv(r.conv(stem, 48, 24, 1, 1), 48, 48, 3, 3), 24, 48, 1, 1)
    block = r.builder.emit("add", wide, r.conv(stem, 24, 24, 1, 1))
    gated = r.builder.emit("sigmoid", r.builder.emit("relu", stem))
    assert r.merged(r.builder.emit("mul", r.builder.emit("relu", block), gated)) == {"conv": 2, "relu": 2, "sigmoid": 1, "mul": 1}


def test_branches_add_up_before_what_they_read_is_moved_into_them() -> None:
    r = Region(1, 24, 28, 28)
    emit = r.builder.emit
    total = emit("add", r.conv(r.x, 40, 24, 1, 1), emit("relu", r.conv(r.x, 40, 24, 1, 1)))
    branches = [r.conv(total, 60, 40, 1, 1) for _ in range(3)]
    assert r.merged(emit("add", emit("add", *branches[:2]), branches[2]), total) == {"conv": 3, "relu": 1, "add": 1}


def test_groups_that_would_become_dense_stay() -> None:
    r = Region(1, 32, 9, 9)
    assert r.merged(r.builder.emit("add", r.conv(r.x, 32, 1, 3, 3, group=32), r.conv(r.x, 32, 32, 1, 1))) == {"conv": 2, "add": 1}


def test_sequences_of_products() -> None:
    r = Region(1, 6, 16)
    wide = r.builder.emit("add", r.builder.emit("matmul", r.x, r.const(16, 64)), r.const(64))
    assert r.merged(r.builder.emit("matmul", wide, r.const(64, 8))) == {"matmul": 1, "add": 1}


@pytest.mark.parametrize(("starts", "ops"), [((0, 16), {"matmul": 1, "slice": 2, "relu": 2}), ((16,), {"matmul": 1, "relu": 1})])
def test_a_product_is_not_split_but_what_nobody_reads_of_it_goes(starts: tuple[int, ...], ops: dict[str, int]) -> None:
    r = Region(1, 512, 16)
    both = r.builder.emit("matmul", r.x, r.const(16, 32))
    halves = [r.builder.emit("slice", both, starts=(0, 0, start), sizes=(1, 512, 16), steps=(1, 1, 1)) for start in starts]
    assert r.merged(*(r.builder.emit("relu", half) for half in halves)) == ops


def test_zero_padding_and_shuffles_go_into_convolutions() -> None:
    r = Region(1, 8, 9, 9)
    padded = r.builder.emit("pad", r.x, begins=(0, 0, 1, 2), ends=(0, 0, 2, 1), mode="constant", value=0.0)
    assert r.merged(r.conv(padded, 8, 8, 3, 3, pads=(0, 0, 0, 0))) == {"conv": 1}
    r = Region(1, 8, 9, 9)
    table = r.builder.emit("transpose", r.builder.emit("reshape", r.x, shape=(1, 2, 4, 9, 9)), perm=(0, 2, 1, 3, 4))
    assert r.merged(r.conv(r.builder.emit("reshape", table, shape=(1, 8, 9, 9)), 8, 8, 3, 3)) == {"conv": 1}
    r = Region(1, 8, 9, 9)
    some = r.builder.emit("shuffle_channels", r.conv(r.x, 12, 4, 3, 3, group=2), group=3, start=2, size=8)
    assert r.merged(r.conv(some, 8, 8, 1, 1)) == {"conv": 1}


def test_symbolic_sizes_merge_where_the_algebra_does_not_need_them() -> None:
    r = Region(sym("N"), 8, sym("H"), sym("W"))
    total = r.builder.emit("add", r.conv(r.x, 8, 8, 3, 3, strides=(2, 2)), r.conv(r.x, 8, 8, 1, 1, strides=(2, 2)))
    graph = r.builder.graph((r.builder.emit("add", total, r.const(1, 8, 1, 1)),))
    result, (report,) = PassManager((MergeLinear(),), verify=True).run(graph)
    assert Counter(node.op for node in result.nodes) == {"conv": 1, "add": 1}, report.notes
    for height, width in ((1, 1), (4, 7), (5, 2)):
        feeds = {"x": r.rng.standard_normal((3, 8, height, width)).astype(np.float32)}
        (want,), (got,) = interpret(graph, feeds).values(), interpret(result, feeds).values()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_claims_are_checked_at_sizes_that_operators_can_compute() -> None:
    r = Region(sym("N"), sym("S"), floordiv(sym("P") * 8, sym("S")))
    graph = r.builder.graph((r.builder.emit("mul", r.builder.emit("matmul", r.x, r.const(8, 4)), r.const(4)),))
    result, (report,) = PassManager((MergeLinear(),), verify=True).run(graph)
    assert report.changed
    assert Counter(node.op for node in result.nodes) == {"matmul": 1}


@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
def test_weights_that_would_not_be_finite_stay(number: float) -> None:
    r = Region(1, 2, 3, 3)
    weights = r.builder.constant(np.full((2, 2, 1, 1), number, np.float32))
    conv = r.builder.emit("conv", r.x, weights, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)
    graph = r.builder.graph((r.builder.emit("mul", conv, r.builder.constant(np.float32(4))),))
    result = MergeLinear().run(graph)
    assert not result.changed
    assert result.graph is graph
    assert any(event.reason == "its weights would not be finite" for event in result.events)


def test_half_precision_stays() -> None:
    r = Region(1, 8, 9, 9, dtype=DType.FLOAT16)
    graph = r.builder.graph((r.builder.emit("mul", r.conv(r.x, 8, 8, 1, 1), r.const(1, 8, 1, 1)),))
    assert not MergeLinear().run(graph).changed


def test_work_is_bounded() -> None:
    r = Region(1, 64, 9, 9)
    graph = r.builder.graph((r.conv(r.conv(r.x, 64, 64, 1, 1), 64, 64, 3, 3),))
    assert MergeLinear(work_limit=64**3 * 9).run(graph).changed
    assert not MergeLinear(work_limit=64**3 * 9 - 1).run(graph).changed


def test_work_is_bounded_over_all_searches() -> None:
    """Convolutions are searched before matrix products, which get what is left."""
    r = Region(1, 64, 8, 8)
    products = [r.builder.emit("matmul", r.builder.emit("relu", r.x), r.const(8, 64))]
    products.append(r.builder.emit("matmul", products[0], r.const(64, 8)))
    graph = r.builder.graph((r.conv(r.conv(r.x, 64, 64, 1, 1), 64, 64, 3, 3), products[1]))
    windows, rows = 64**3 * 9, 64 * 8 * 8
    for limit, ops in ((windows + rows, ["conv", "matmul"]), (windows + rows - 1, ["conv", "matmul", "matmul"])):
        result = MergeLinear(work_limit=limit).run(graph)
        assert sorted(node.op for node in result.graph.nodes if node.op != "relu") == ops


def scaled(factor: float) -> Graph:
    builder = GraphBuilder("part", folding=False)
    x = builder.input("x", f32(2, sym("N")))
    return builder.graph((builder.emit("mul", x, builder.constant(np.float32(factor))),))


def test_a_false_claim_names_its_region() -> None:
    Claim("right", lambda: (scaled(2), scaled(2 * (1 + 1e-7)))).check()
    with pytest.raises(InternalError, match=r"stem.*differs by 0\.001"):
        Claim("stem", lambda: (scaled(2), scaled(2.002))).check()
    with pytest.raises(InternalError, match="differs by nan"):
        Claim("stem", lambda: (scaled(2), scaled(np.nan))).check()


def test_verify_finds_a_wrong_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule on borders a bias would reach into the padding."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] y)
        {
            h = Conv(x, a, b)
            y = Conv<pads = [1, 1, 1, 1]>(h, c)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("a", (64, 4, 1, 1)), ("b", (64,)), ("c", (4, 64, 3, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    feeds = {"x": rng.standard_normal((1, 4, 9, 9)).astype(np.float32)}
    module = ts.compile(model, threads=1, verify=True)
    assert relative_difference(module.run(feeds)["y"], onnxruntime_outputs(model, feeds)[0]) <= 1e-5
    monkeypatch.setattr(forms, "reads_padding", lambda windows, sizes: False)
    with pytest.raises(InternalError, match=r"merge-linear.*into.*differs by"):
        ts.compile(model, threads=1, verify=True)


def test_verify_on_the_command_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compile", str(DIGITS), "-o", str(tmp_path / "digits.tsm"), "--verify", "--no-cache"])
    assert done.exit_code == 0, done.output
    assert ts.load(tmp_path / "digits.tsm").outputs


def kernels(model: Any) -> list[tuple[Any, ...]]:
    """The kernels of a model: what each computes and how, and its arithmetic and traffic. Every merge is checked on random numbers."""
    planned, _ = optimize(import_model(model), native(), verify=True)
    return [(call.family, call.schedule, call.flops, call.nbytes) for call in lower(planned, native(), 1).calls]


@needs_zoo
@pytest.mark.parametrize(
    ("trained", "deployed"),
    [
        ("mobileone_s0_train", "mobileone_s0_fused"),
        ("mobileone_s0_train_dynamo", "mobileone_s0_fused"),
        ("repvgg_a0_train", "repvgg_a0_fused"),
        ("repghostnet_100_train", "repghostnet_100_fused"),
        ("sesr_m5_train", "sesr_m5_collapsed"),
    ],
)
def test_train_time_networks_have_the_kernels_of_their_deployed_forms(trained: str, deployed: str) -> None:
    assert kernels(load(trained)[0]) == kernels(load(deployed)[0])


@needs_zoo
@pytest.mark.parametrize("name", ["repvgg_a0_train", "repghostnet_100_train", "sesr_m5_train"])
def test_train_time_networks_agree_with_onnxruntime(name: str) -> None:
    model, feeds = load(name)
    got = ts.compile(model, threads=1, cache=False).run(feeds)
    for output, expected in zip(got.values(), onnxruntime_outputs(model, feeds), strict=True):
        assert relative_difference(output, expected) <= 2e-5


def test_the_digit_network_is_one_convolution_for_each_block() -> None:
    result, _ = PassManager((MergeLinear(),), verify=True).run(import_model(str(DIGITS)))
    ops = Counter(node.op for node in result.nodes)
    assert ops["conv"] == ops["relu"] == 9
