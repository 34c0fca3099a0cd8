"""The attention kernel against the operator's own meaning, compiled and interpreted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import run_everywhere

import compiler.ops  # noqa: F401 - registers the operators
from compiler.errors import UnsupportedForm, UserError
from compiler.ir.box import slices
from compiler.ir.builder import GraphBuilder
from compiler.ir.op import lookup
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.ir.scalar import Arg, Call, Const, Scalar
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.kernels.base import Operand, Workload, family
from compiler.target import resolve

TARGETS = [resolve("x86-64-v3"), resolve("x86-64-v4")]
PERMS = [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2), (2, 0, 1, 3)]
F32 = DType.FLOAT32


def score_of(kinds: tuple[str, ...], dtype: DType) -> Scalar:
    """Scaled products with what each kind of operand does to them."""
    score: Scalar = Call("mul", (Arg(0, dtype), Const(0.3, dtype)), dtype)
    for number, kind in enumerate(kinds):
        if kind == "add":
            score = Call("add", (score, Arg(1 + number, dtype)), dtype)
        else:
            score = Call("select", (Arg(1 + number, DType.BOOL), score, Const(-3.4e38, dtype)), dtype)
    return score


def weight_of(kinds: tuple[str, ...], dtype: DType) -> Scalar:
    """Nothing of what is no number, and the others twice, or as much as an operand says."""
    weight: Scalar = Call("select", (Call("ne", (Arg(0, dtype), Arg(0, dtype)), DType.BOOL), Const(0.0, dtype), Arg(0, dtype)), dtype)
    for number, kind in enumerate(kinds):
        operand = Arg(1 + number, dtype if kind == "add" else DType.BOOL)
        weight = Call("mul", (weight, operand if kind == "add" else Call("cast", (operand,), dtype)), dtype)
    return Call("add", (weight, weight), dtype)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(*(st.integers(1, most) for most in (2, 2, 3, 20, 37, 20, 20))), st.sampled_from([F32, DType.FLOAT16, DType.FLOAT64]))
def test_kernels_do_what_the_operator_means(data: st.DataObject, sizes: tuple[int, ...], dtype: DType) -> None:
    batch, groups, repeats, rows, keys, size, columns = sizes
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    shapes = [(batch, groups * repeats, rows, size), (batch, groups, keys, size), (batch, groups, keys, columns)]
    arrays = [rng.normal(size=shape).astype(dtype.numpy) for shape in shapes]
    kinds = tuple(data.draw(st.lists(st.sampled_from(["add", "where"]), max_size=2)))
    for kind in kinds:
        shape = tuple(n if data.draw(st.booleans()) else 1 for n in (batch, groups * repeats, rows, keys))
        arrays.append(rng.normal(size=shape).astype(compute_dtype(dtype).numpy) if kind == "add" else rng.random(shape) < 0.7)
    attrs = {"score": score_of(kinds, compute_dtype(dtype)), "perm": data.draw(st.sampled_from(PERMS))}
    if data.draw(st.booleans()):
        attrs["weight"] = weight_of(kinds, compute_dtype(dtype))
    wide = [x.astype(compute_dtype(DType.of(x.dtype)).numpy) for x in arrays]
    (want,) = lookup("attention").evaluate(wide, attrs)
    inputs = tuple(Operand(TensorType(DType.of(x.dtype), x.shape)) for x in arrays)
    output = TensorType(compute_dtype(dtype), want.shape)
    work = Workload("attention", tuple(attrs.items()), inputs, output, output, Arg(0, output.dtype), (), data.draw(st.integers(1, 4)))
    builder, target = family("attention"), data.draw(st.sampled_from(TARGETS))
    assert builder.supports(work, target)
    schedule = data.draw(st.sampled_from(list(builder.space(work, target))))
    got = run_everywhere(builder, work, schedule, arrays, target)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(*(st.integers(1, 4) for _ in range(6))), st.sampled_from(PERMS))
def test_parts_are_what_the_whole_has_there(data: st.DataObject, sizes: tuple[int, ...], perm: tuple[int, ...]) -> None:
    batch, heads, rows, keys, size, columns = sizes
    groups = data.draw(st.sampled_from((1, heads)))
    rng = np.random.default_rng(0)
    shapes = [(batch, heads, rows, size), (batch, groups, keys, size), (batch, groups, keys, columns), (batch, 1, rows, keys)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    attrs = {"score": score_of(("add",), F32), "perm": perm}
    (want,) = lookup("attention").evaluate(arrays, attrs)
    spans = [sorted(data.draw(st.tuples(st.integers(0, dim - 1), st.integers(0, dim - 1)))) for dim in want.shape]
    box = tuple((begin, end + 1) for begin, end in spans)
    part = lookup("attention").part([TensorType(F32, x.shape) for x in arrays], attrs, box)
    if part is None:
        assert groups != heads
        return
    (got,) = lookup("attention").evaluate([x[slices(cut)] for x, cut in zip(arrays, part.boxes, strict=True)], part.attrs)
    np.testing.assert_allclose(got, want[slices(box)], rtol=1e-5, atol=1e-6)


def test_scores_that_use_something_often_are_short_texts() -> None:
    score: Scalar = Arg(0, F32)
    for _ in range(40):
        score = Call("mul", (score, score), F32)
    b = GraphBuilder("g", folding=False)
    operands = [b.input(name, TensorType(F32, (1, 1, 2, 2))) for name in "qkv"]
    graph = b.graph([b.emit("attention", *operands, score=Call("add", (score, score), F32), perm=(0, 1, 2, 3))])
    text = print_graph(graph)
    assert len(text) < 3_000
    assert print_graph(parse_graph(text)) == text
    assert parse_graph(text).nodes[0].attrs == graph.nodes[0].attrs
    with pytest.raises(UserError, match="expected #7 = and what it stands for before"):
        parse_graph(text.replace("#7 =", "#70 ="))


def test_operands_that_do_not_fit_are_refused() -> None:
    query, key, value = (TensorType(F32, shape) for shape in ((2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 9)))
    attrs = {"score": score_of((), F32), "perm": (0, 2, 1, 3)}
    assert lookup("attention").infer([query, key, value], attrs) == (TensorType(F32, (2, 5, 6, 9)),)
    for operands, given_attrs in (
        ([query, TensorType(F32, (2, 4, 7, 4)), TensorType(F32, (2, 4, 7, 9))], attrs),
        ([query, key, TensorType(F32, (2, 3, 8, 9))], attrs),
        ([query, TensorType(F32, (2, 3, 7, 5)), value], attrs),
        ([TensorType(F32, (6, 5, 4)), key, value], attrs),
        ([query, key, value, TensorType(F32, (2, 6, 5, 8))], attrs),
        ([query, key, value], {**attrs, "score": score_of((), DType.FLOAT64)}),
        ([query, key, value], {**attrs, "score": 1}),
        ([query, key, value], {**attrs, "weight": score_of((), DType.FLOAT64)}),
        ([query, key, value], {**attrs, "weight": "all"}),
    ):
        with pytest.raises(UnsupportedForm):
            lookup("attention").infer(operands, given_attrs)
