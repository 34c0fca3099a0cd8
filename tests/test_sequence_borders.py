"""Sequences and optional values at a model's borders: what modules say and take of them, and what is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sequences import EDIT, LOOP, NESTED, OPTIONAL, RANKS, compiled, model, same

import tensorsmith as ts
from frontend.onnx.importer import import_model


def test_what_a_module_says_of_its_borders() -> None:
    module = compiled(OPTIONAL)
    assert [str(info) for info in module.inputs] == [
        "o: optional(float32)[N, 2]",
        "x: float32[M, 2]",
        "q: optional(seq(float32))[?]",
        "c: bool[]",
    ]
    assert [info.dtype for info in module.outputs] == ["float32", "bool", "optional(float32)", "optional(float32)", "seq(float32)", "int64"]
    assert str(compiled(RANKS).inputs[0]) == "s: seq(float32)[...]"


PAIR = "g (seq(float[N, 2]) s, optional(float[N]) o, float[N] x) => (seq(float[N, 2]) y, optional(float[N]) z) { y = Identity (s) z = Identity (o) }"
V = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"s": np.zeros((2, 2), np.float32), "x": V}, r"input s is a ndarray; the model takes seq\(float32\)"),
        ({"s": "text", "x": V}, "input s is a str"),
        ({"s": [V.reshape(3, 1)], "x": V}, r"input s, element 0, has shape \[3, 1\]; the model takes \[\?, 2\]"),
        ({"s": [np.zeros((1, 2), np.float32), V], "x": V}, r"input s, element 1, has shape \[3\]"),
        ({"s": [np.zeros((1, 2))], "x": V}, "input s, element 0, is float64; the model takes float32"),
        ({"s": [[[1, 2], [3]]], "x": V}, "input s, element 0, is no array"),
        ({"x": V}, "inputs s are missing"),
        ({"s": [], "x": V, "t": V}, "the model has no inputs called t"),
        ({"s": [], "x": V, "o": V[:1]}, r"has shape \[3\]; the model takes \[N\], where N = 1"),
        ({"s": [], "x": V, "o": V.astype(np.int8)}, "input o is int8; the model takes float32"),
        ({"s": [], "x": V, "o": [[1], [2, 3]]}, "input o is no array"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(ts.UserError, match=message):
        compiled(PAIR).run(feeds)


def test_inputs_by_position_and_outputs_of_their_own() -> None:
    module, s = compiled(PAIR), [np.ones((2, 2), np.float32), np.zeros((0, 2), np.float32)]
    y, z = module(s, None, V)
    same(y, s)
    assert z is None
    y[0][:] = 5
    same(module(tuple(s), V, V)[0], s)


def test_a_saved_module(tmp_path: Path) -> None:
    compiled(PAIR).save(tmp_path / "pair.tsm")
    module = ts.load(tmp_path / "pair.tsm")
    assert module.inputs == compiled(PAIR).inputs
    same(list(module([], V, V)), [[], V])


def test_shapes_given_for_elements() -> None:
    text = "g (seq(float[]) s, optional(float[N]) o, int64 i) => (float[A, B] y, float[C] z) { y = SequenceAt (s, i) z = OptionalGetElement (o) }"
    module = ts.compile(model(text), input_shapes={"s": (2, 3), "o": (4,)}, cache=False)
    assert [str(info) for info in (*module.inputs, *module.outputs)] == [
        "s: seq(float32)[2, 3]",
        "o: optional(float32)[4]",
        "i: int64[]",
        "y: float32[2, 3]",
        "z: float32[4]",
    ]
    s = [np.full((2, 3), number, np.float32) for number in range(3)]
    same(module.run({"s": s, "o": np.ones(4, np.float32), "i": np.int64(-1)})["y"], s[2])
    with pytest.raises(ts.UserError, match="an optional value is read that is absent"):
        module.run({"s": s, "i": np.int64(0)})
    with pytest.raises(ts.UserError, match="the model fixes"):
        ts.compile(model(EDIT), input_shapes={"s": (2, 4)}, cache=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (seq(float[N]) s) => (float[N] y) { y = Relu (s) }", "an operand is a sequence"),
        ("g (optional(float[N]) o) => (float[N] y) { y = Relu (o) }", "an operand is an optional value"),
        ("g (float[N] x) => (int64 y) { y = SequenceLength (x) }", r"input input_sequence is a tensor\(float\)"),
        ("g (seq(float[N]) s) => (float[N] y) { y = Identity (s) }", "declares it as a tensor, and it is a sequence"),
        ("g (float[N] x) => (seq(float[N]) y) { y = Identity (x) }", "declares it as a sequence, and it is a tensor"),
        ("g (seq(float[N]) s, int64[M] x) => (seq(float[N]) y) { y = SequenceInsert (s, x) }", "a sequence of f32 cannot have an element of i64"),
        ("g (seq(seq(float[N])) s) => (int64 y) { y = SequenceLength (s) }", "'s' is neither a tensor, nor a sequence of tensors"),
        ("g (optional(float[]) o) => (bool y) { y = OptionalHasElement (o) }", "input 'o' has no shape, not even a rank"),
        ("g (seq(float[N]) s, seq(float[N]) t) => (seq(float[]) y) { y = SequenceConstruct (s, t) }", "input 0 is a sequence, not a tensor"),
    ],
)
def test_what_cannot_be_compiled(text: str, message: str) -> None:
    with pytest.raises(ts.UserError, match=message):
        import_model(model(text))


def test_an_empty_sequence_is_what_it_is_declared_to_be() -> None:
    made = model("g (float[N] x) => (seq(int64[M]) y) { y = SequenceEmpty () }")
    assert str(ts.compile(made, cache=False).outputs[0]).startswith("y: seq(int64)")
    made.graph.output[0].ClearField("type")
    with pytest.raises(ts.UserError, match="does not declare what its elements would be"):
        import_model(made)


def test_many_runs_of_changing_lengths_take_no_memory() -> None:
    module, random = ts.compile(model(LOOP), threads=1, cache=False), np.random.default_rng(0)
    feeds = [
        {"s": [np.ones(random.integers(0, 40), np.float32) for _ in range(count)], "n": np.int64(count), "go": np.True_, "limit": np.float32(9)}
        for count in random.integers(1, 8, 40)
    ]
    for number in range(1200):
        module.run({name: np.asarray(value) if name != "s" else value for name, value in feeds[number % 40].items()})
        if number == 200:
            before = resident_bytes()
    assert resident_bytes() - before < 4 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_runs_at_once() -> None:
    module = compiled(NESTED)
    cases = [([np.full(size, size, np.float32) for size in range(length)], count) for length in range(4) for count in range(4)]
    wanted = [module.run({"s": s, "n": np.int64(n)}) for s, n in cases]
    with ThreadPoolExecutor(4) as workers:
        for found, want in zip(workers.map(lambda case: module.run({"s": case[0], "n": np.int64(case[1])}), cases * 3), wanted * 3, strict=True):
            same(list(found.values()), list(want.values()))
