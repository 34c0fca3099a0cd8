"""Strings: what goes in and out of a module, and the operators that move them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.helper import make_node as node
from string_models import TEXTS, check, model_of, string_tensor, strings
from typer.testing import CliRunner

import tensorsmith
from compiler.cli.main import app
from compiler.cli.options import random_inputs
from tensorsmith import UserError

ODD = strings("", "\0", "a\0", "a\0\0b", "ÄÖ", "\U0001f600" * 3, "x" * 1000, "12345678")


def copies() -> tensorsmith.Module:
    """A module that gives back a vector and a constant."""
    constant = node("Constant", [], ["yc"], value_strings=["", "c\0", "é"])
    return tensorsmith.compile(model_of(node("Identity", ["x"], ["y"]), constant, x=ODD), cache=False)


def test_any_text_comes_back() -> None:
    module = copies()
    assert [str(info) for info in (*module.inputs, *module.outputs)] == ["x: str[x_0]", "y: str[x_0]", "yc: str[3]"]
    for x in (ODD, ODD[:0], np.tile(ODD, 1000), ODD):
        y, constant = module(x)
        assert (y.dtype, y.tolist()) == (object, x.tolist())
        assert constant.tolist() == ["", "c\0", "é"]


@pytest.mark.parametrize(
    "given_", [["ab", "é"], ("ab", "é"), np.array(["ab", "é"]), strings("ab", "é"), np.array([b"ab", "é".encode()]), np.array([b"ab", "é"], object)]
)
def test_what_is_taken_for_strings(given_: Any) -> None:
    assert copies()(given_)[0].tolist() == ["ab", "é"]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (np.zeros(2, np.float32), "input x is float32; the model takes strings"),
        (["a", 1], "element 1 of input x is of type int, not str"),
        ([None], "of type NoneType"),
        (np.array(["a", np.nan], object), "of type float"),
        ([b"\xff"], "element 0 of input x is no text"),
        (["\ud800"], "element 0 of input x is no text"),
        ([["a"]], r"shape \[1, 1\]"),
        ([["a"], "b"], "not str|no array"),
    ],
)
def test_what_is_not_taken(given_: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        copies().run({"x": given_})


def test_a_saved_module(tmp_path: Path) -> None:
    copies().save(tmp_path / "copies.tsm")
    assert tensorsmith.load(tmp_path / "copies.tsm")(ODD)[0].tolist() == ODD.tolist()


def test_the_command_line_reads_and_writes_arrays_of_text(tmp_path: Path) -> None:
    copies().save(tmp_path / "copies.tsm")
    np.save(tmp_path / "x.npy", np.array(["ab", "é"]))
    run = ["run", str(tmp_path / "copies.tsm"), "--output-dir", str(tmp_path), "--input"]
    found = CliRunner().invoke(app, [*run, f"x={tmp_path / 'x.npy'}"], catch_exceptions=False)
    assert (found.exit_code, found.output.splitlines()[0]) == (0, "y: str[x_0], the first 'ab'")
    assert np.load(tmp_path / "y.npy", allow_pickle=False).tolist() == ["ab", "é"]
    np.save(tmp_path / "objects.npy", ODD, allow_pickle=True)
    with pytest.raises(UserError, match="no array of numbers or strings") as refused:
        CliRunner().invoke(app, [*run, f"x={tmp_path / 'objects.npy'}"], catch_exceptions=False)
    assert "dtype U" in refused.value.hint


@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.lists(TEXTS, min_size=6, max_size=6), st.lists(st.booleans(), min_size=3, max_size=3), st.lists(st.integers(-2, 1), max_size=5))
def test_moving_strings(texts: list[str], mask: list[bool], rows: list[int]) -> None:
    x, m, i = np.array(texts, object).reshape(2, 3), np.array(mask), np.array(rows, np.int64)
    model = model_of(
        node("Constant", [], ["c"], value_strings=["c\0", "", "ccc"]),
        node("Constant", [], ["s"], value_string="s"),
        node("Constant", [], ["shape"], value_ints=[2, 2, 3]),
        node("Constant", [], ["pads"], value_ints=[0, 1, 1, 0]),
        node("Constant", [], ["depth"], value_int=2),
        node("Constant", [], ["two"], value_strings=["off", "on"]),
        node("Transpose", ["x"], ["y0"], perm=[1, 0]),
        node("Gather", ["x", "i"], ["y1"]),
        node("Where", ["m", "x", "c"], ["w"]),
        node("Concat", ["w", "x"], ["y2"], axis=1),
        node("Expand", ["w", "shape"], ["y3"]),
        node("Where", ["m", "x", "s"], ["y4"]),
        node("Pad", ["x", "pads"], ["y5"]),
        node("Pad", ["x", "pads", "s"], ["y6"]),
        node("Compress", ["x", "m"], ["y7"], axis=1),
        node("OneHot", ["i", "depth", "two"], ["y8"]),
        node("Flatten", ["y0"], ["y9"], axis=0),
        x=x,
        m=m,
        i=i,
    )
    c = strings("c\0", "", "ccc")
    w = np.where(m, x, c)
    padded = [np.pad(x, ((0, 1), (1, 0)), constant_values=fill) for fill in ("", "s")]
    hot = np.where((i % 2)[:, None] == np.arange(2), "on", "off").astype(object)
    wants = [x.T, x[i], np.concatenate([w, x], 1), np.stack([w, w]), np.where(m, x, "s"), *padded, x[:, m], hot, x.T.reshape(1, 6)]
    check(model, {"x": x, "m": m, "i": i}, wants)


def test_strings_in_loops_and_branches() -> None:
    texts = helper.make_tensor_value_info
    one = string_tensor("one", "ä\0")
    body = helper.make_graph(
        [node("Concat", ["before", "one"], ["after"], axis=0), node("Identity", ["go"], ["still"]), node("Identity", ["one"], ["scanned"])],
        "body",
        [texts("k", TensorProto.INT64, []), texts("go", TensorProto.BOOL, []), texts("before", TensorProto.STRING, ["n"])],
        [texts("still", TensorProto.BOOL, []), texts("after", TensorProto.STRING, ["m"]), texts("scanned", TensorProto.STRING, [1])],
        [one],
    )
    branches = {
        name: helper.make_graph([node("Identity", [value], [f"{name}_out"])], name, [], [onnx.ValueInfoProto(name=f"{name}_out")])
        for name, value in (("then_branch", "y0"), ("else_branch", "x"))
    }
    nodes = [node("Loop", ["n", "", "x"], ["y0", "y1"], body=body), node("If", ["flag"], ["y2"], **branches)]
    x = strings("x", "")
    for count, flag in ((0, True), (3, True), (2, False)):
        feeds = {"x": x, "n": np.array(count), "flag": np.array(flag)}
        long = np.concatenate([x, strings(*["ä\0"] * count)])
        check(model_of(*nodes, **feeds), feeds, [long, np.tile(strings("ä\0"), (count, 1)), long if flag else x])


def test_arithmetic_is_refused() -> None:
    with pytest.raises(UserError, match=r"NonZero.*strings are not supported"):
        tensorsmith.compile(model_of(node("NonZero", ["x"], ["y"]), x=ODD), cache=False)


def test_initializers_must_be_text() -> None:
    model = model_of(node("Concat", ["x", "c"], ["y"], axis=0), x=ODD)
    model.graph.initializer.append(string_tensor("c", "x"))
    model.graph.initializer[0].string_data[0] = b"\xff"
    with pytest.raises(UserError, match="'c' holds a string that is not UTF-8"):
        tensorsmith.compile(model, cache=False)
    model.graph.initializer[0].string_data.append(b"x")
    with pytest.raises(UserError, match="needs 1 strings and has 2"):
        tensorsmith.compile(model, cache=False)


def test_too_many_texts_for_memory_end_the_run_and_no_other() -> None:
    nodes = [
        node("Constant", [], ["yc"], value_strings=["constant"]),
        node("Expand", ["x", "n"], ["many"]),
        node("StringConcat", ["many", "many"], ["y"]),
    ]
    module = tensorsmith.compile(model_of(*nodes, x=strings("a"), n=np.array([1])[:1]), input_shapes={"n": [1]}, threads=1, cache=False)
    small = (strings("a"), np.array([2]))
    assert [y.tolist() for y in module(*small)] == [["constant"], ["aa", "aa"]]
    with pytest.raises(UserError, match="more memory than there is"):
        module(strings("x" * (1 << 26)), np.array([1 << 21]))
    assert [y.tolist() for y in module(*small)] == [["constant"], ["aa", "aa"]]


def test_profiles_and_made_up_inputs() -> None:
    module = tensorsmith.compile(model_of(node("StringSplit", ["x"], ["y0", "y1"]), x=ODD), input_shapes={"x": [3]}, cache=False)
    feeds = random_inputs(module.inputs, {})
    assert feeds["x"].tolist() == ["", "", ""]
    families = [row.family for row in module.profile(feeds, repeats=2).rows]
    assert families[-2:] == ["part_of_text_sizes", "part_of_text"]
