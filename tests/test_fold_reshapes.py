"""Transposes with reshapes around them: one index map where that leaves layouts free, the same elements in any case."""

from __future__ import annotations

from typing import Any

import numpy as np
from graph_cases import CONV, check_same, f32
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fusion import check, groups
from test_kernels_basic import BLOCK, F32, normals, run, workload
from test_kernels_basic import check as check_arrays

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Value
from compiler.ir.op import lookup
from compiler.ir.printer import print_graph
from compiler.ir.types import TensorType
from passes.base import PassManager, parse_passes

FOLD = f"fold-reshapes{{block = {BLOCK}}}"


def splits(draw: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dims, some of them as products."""
    found: list[int] = []
    for dim in dims:
        factor = draw(st.sampled_from([n for n in range(1, dim + 1) if dim % n == 0] or [1]))
        found += [dim] if factor in (1, dim) else [factor, dim // factor]
    return tuple(found)


def joined(draw: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The dims, some neighbours as their product; two of them at the least."""
    found = list(dims)
    while len(found) > 2 and draw(st.booleans()):
        at = draw(st.integers(0, len(found) - 2))
        found[at : at + 2] = [found[at] * found[at + 1]]
    return tuple(found)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_index_maps_of_rearranged_tensors(data: Any) -> None:
    """As numpy reshapes and transposes, in every layout the op says it can have."""
    shape = (data.draw(st.sampled_from((1, 4))), data.draw(st.sampled_from((3, 8, 16))), *data.draw(st.sampled_from(((4, 6), (5,), (2, 3, 2)))))
    split = splits(data.draw, shape)
    perm = tuple(data.draw(st.permutations(range(len(split)))))
    attrs = {"split": split, "perm": perm, "shape": joined(data.draw, tuple(split[axis] for axis in perm))}
    x, op = normals(shape), lookup("rearrange")
    (want,) = op.evaluate([x], attrs)
    np.testing.assert_array_equal(want, x.reshape(split).transpose(perm).reshape(attrs["shape"]))
    regions = op.regions([TensorType(F32, shape)], attrs)
    free = op.layouts([TensorType(F32, shape)], attrs, BLOCK).name == "ANY"
    source, result = (data.draw(st.sampled_from((1, BLOCK))) if free else 1 for _ in range(2))
    work = workload("injective", {"regions": regions}, [(x, source)], TensorType(F32, want.shape, result))
    check_arrays(run(work, [(x, source)]), want, rtol=0)


def test_a_reshape_between_two_transposes_goes_to_one_of_them() -> None:
    b = GraphBuilder("keys", folding=False)
    x = b.input("x", f32(16, 24, 8))
    heads = b.emit("reshape", b.emit("transpose", x, perm=(0, 2, 1)), shape=(4, 4, 8, 24))
    graph = b.graph([b.emit("tanh", b.emit("transpose", heads, perm=(0, 1, 3, 2)))])
    check_same(graph, PassManager(parse_passes(FOLD), verify=True).run(graph)[0])


def in_windows(batch: int, channels: int, height: int, width: int, size: int, *, last: bool) -> Graph:
    """Convolutions on windows of an image as a batch, and back; with channels last in between, or not."""
    b = GraphBuilder("windows", folding=False)

    def conv(x: Value) -> Value:
        weights = np.linspace(-1, 1, channels * channels, dtype=np.float32).reshape(channels, channels, 1, 1)
        return b.emit("conv", x, b.constant(weights), **CONV)

    x = conv(b.input("x", f32(batch, channels, height * size, width * size)))
    split = b.emit("reshape", x, shape=(batch, channels, height, size, width, size))
    windows = batch * height * width
    if last:
        rows = b.emit("reshape", b.emit("transpose", split, perm=(0, 2, 4, 3, 5, 1)), shape=(windows, size, size, channels))
        moved = b.emit("transpose", rows, perm=(0, 3, 1, 2))
    else:
        moved = b.emit("reshape", b.emit("transpose", split, perm=(0, 2, 4, 1, 3, 5)), shape=(windows, channels, size, size))
    inner = b.emit("relu", conv(moved))
    back = b.emit("transpose", b.emit("reshape", inner, shape=(batch, height, width, channels, size, size)), perm=(0, 3, 1, 4, 2, 5))
    return b.graph([conv(b.emit("reshape", back, shape=x.type.shape))])


@settings(max_examples=15, deadline=None)
@given(*(st.integers(1, 3),) * 3, st.sampled_from((3, 8, 12)), st.integers(1, 3), st.booleans())
def test_windows_as_a_batch_need_no_conversion(batch: int, height: int, width: int, channels: int, size: int, last: bool) -> None:
    planned = check(in_windows(batch, channels, height, width, size, last=last))
    inside = " ".join(groups(planned)[:-1])
    assert "to_layout" not in inside
    assert inside.count("transpose") + inside.count("rearrange") <= 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_folding_means_the_same(data: Any) -> None:
    """Chains of reshapes and transposes, of values that others may read, too."""
    b = GraphBuilder("chain", folding=False)
    value = b.input("x", f32(2, 8, data.draw(st.sampled_from((0, 1, 4))), 6))
    made = []
    for _ in range(data.draw(st.integers(1, 5))):
        dims = value.type.static_shape
        match data.draw(st.sampled_from(("split", "join", "move", "relu"))):
            case "split" if len(dims) < 7:
                value = b.emit("reshape", value, shape=splits(data.draw, dims))
            case "join":
                value = b.emit("reshape", value, shape=joined(data.draw, dims))
            case "relu":
                value = b.emit("relu", value)
            case _:
                value = b.emit("transpose", value, perm=tuple(data.draw(st.permutations(range(len(dims))))))
        made.append(value)
    graph = b.graph([value, *([data.draw(st.sampled_from(made))] if data.draw(st.booleans()) and made[-1] is not made[0] else [])])
    after, reports = PassManager(parse_passes(FOLD), verify=True).run(graph)
    check_same(graph, after, 0)
    assert reports[0].changed == (print_graph(after) != print_graph(graph))
