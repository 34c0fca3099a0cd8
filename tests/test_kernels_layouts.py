"""Index maps whose operands and result lie in different layouts, against numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_kernels_basic import BLOCK, F32, TARGET, Tensor, check, normals, numbers, quick, run, workload

from compiler.ir.graph import Region
from compiler.ir.intexpr import Dim, sym
from compiler.ir.loop import For, Let, Stmt
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, call
from compiler.ir.types import DType, TensorType
from compiler.kernels.base import family

layouts = st.sampled_from([1, BLOCK])


@quick
@given(st.data(), st.sampled_from([F32, DType.UINT8, DType.INT64]))
def test_parts_of_transposed_tensors_side_by_side(data: Any, dtype: DType) -> None:
    """A concatenation along any axis of slices of transposed tensors, each in a layout of its own."""
    rank = data.draw(st.integers(2, 4))
    axis = data.draw(st.integers(0, rank - 1))
    around = [data.draw(st.integers(1, 19 if k == 1 else 5)) for k in range(rank)]
    place, regions, tensors, parts = 0, [], [], []
    for number in range(data.draw(st.integers(1, 3))):
        shape = [data.draw(st.integers(1, 19)) if k == axis else around[k] for k in range(rank)]
        perm = data.draw(st.permutations(range(rank)))
        starts = [data.draw(st.integers(0, 9)) for _ in range(rank)]
        whole = [0] * rank
        for k, dim in enumerate(perm):
            whole[dim] = shape[k] + starts[k] + data.draw(st.integers(0, 3))
        x = numbers(whole, dtype, number)
        index: list[Dim] = [0] * rank
        for k, dim in enumerate(perm):
            index[dim] = sym(f"i{k}") + starts[k]
        offset = tuple(place if k == axis else 0 for k in range(rank))
        regions.append(Region(offset, tuple(shape), number, tuple(index)))
        tensors.append((x, data.draw(layouts)))
        parts.append(x.transpose(perm)[tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))])
        place += shape[axis]
    expected = np.concatenate(parts, axis)
    block = data.draw(layouts)
    epilogue = call("add", Arg(0, dtype), Arg(1, dtype))
    other: Tensor = (numbers(expected.shape, dtype, 9), block)
    work = workload("injective", {"regions": tuple(regions)}, tensors, TensorType(dtype, expected.shape, block), epilogue, [other])
    check(run(work, [*tensors, other]), (expected + other[0]).astype(dtype.numpy), rtol=0)


@quick
@given(st.data(), layouts, layouts)
def test_single_positions_and_strides(data: Any, source: int, result: int) -> None:
    x = normals((2, 21, 5, 7))
    channel, step = data.draw(st.integers(0, 20)), data.draw(st.sampled_from([1, 2, -1]))
    rows = x[:, channel : channel + 1, :, ::step]
    start = 6 if step < 0 else 0
    index = (sym("i0"), sym("i1") * 0 + channel, sym("i2"), sym("i3") * step + start)
    regions = (Region((0,) * 4, rows.shape, 0, index),)
    work = workload("injective", {"regions": regions}, [(x, source)], TensorType(F32, rows.shape, result))
    check(run(work, [(x, source)]), rows, rtol=0)


@quick
@given(st.data(), layouts, layouts, st.sampled_from([F32, DType.UINT8, DType.INT64]))
def test_shuffled_channels(data: Any, source: int, result: int, dtype: DType) -> None:
    group, rank = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 4))
    channels = group * data.draw(st.integers(1, 30))
    start = data.draw(st.integers(0, channels - 1))
    attrs = {"group": group, "start": start, "size": data.draw(st.integers(1, channels - start))}
    x = numbers((data.draw(st.integers(1, 2)), channels, *(data.draw(st.integers(1, 6)) for _ in range(rank - 2))), dtype)
    op = lookup("shuffle_channels")
    (expected,) = op.evaluate([x], attrs)
    regions = op.regions([TensorType(dtype, x.shape)], attrs)
    work = workload("injective", {"regions": regions}, [(x, source)], TensorType(dtype, expected.shape, result))
    check(run(work, [(x, source)]), expected, rtol=0)


@quick
@given(st.data(), layouts, layouts, st.sampled_from([F32, DType.UINT8, DType.INT64]))
def test_rolled(data: Any, source: int, result: int, dtype: DType) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=4)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    attrs = {"axis": axis, "start": data.draw(st.integers(0, shape[axis] - 1))}
    x, op = numbers(shape, dtype), lookup("roll")
    (expected,) = op.evaluate([x], attrs)
    regions = op.regions([TensorType(dtype, x.shape)], attrs)
    work = workload("injective", {"regions": regions}, [(x, source)], TensorType(dtype, expected.shape, result))
    check(run(work, [(x, source)]), expected, rtol=0)


@quick
@given(st.data(), layouts, layouts)
def test_shuffled_channels_behind_others(data: Any, source: int, result: int) -> None:
    """A region that begins inside a block."""
    first, group = data.draw(st.integers(0, 19)), data.draw(st.integers(2, 4))
    x, before = normals((1, group * data.draw(st.integers(1, 20)), 3, 4)), normals((1, first, 3, 4), 1)
    (region,) = lookup("shuffle_channels").regions([TensorType(F32, x.shape)], {"group": group, "start": 0, "size": x.shape[1]})
    i = tuple(sym(f"i{k}") for k in range(4))
    regions = (Region((0,) * 4, before.shape, 0, i), replace(region, offset=(0, first, 0, 0), source=1))
    tensors = [(before, source), (x, source)]
    expected = np.concatenate([before, x.reshape(1, group, -1, 3, 4).swapaxes(1, 2).reshape(x.shape)], 1)
    check(run(workload("injective", {"regions": regions}, tensors, TensorType(F32, expected.shape, result)), tensors), expected, rtol=0)


def test_two_groups_are_shuffled_as_vectors() -> None:
    x = normals((1, 48, 9, 9))
    regions = lookup("shuffle_channels").regions([TensorType(F32, x.shape)], {"group": 2, "start": 0, "size": 48})
    work = workload("injective", {"regions": regions}, [(x, BLOCK)], TensorType(F32, x.shape, BLOCK))
    body = family("injective").build(work, family("injective").heuristic(work, TARGET), TARGET, "kernel").body
    assert "insert" not in operations(body)
    assert len(body) == 2  # every other block is alike


def test_lanes_before_the_last_ones_are_not_taken_for_padding() -> None:
    """Every block is two pieces, of which the second is the output's end in the last one alone."""
    first, second = normals((1, 3)), normals((1, 16), 1)
    regions = (Region((0, 0), (1, 3), 0, (sym("i0"), sym("i1"))), Region((0, 3), (1, 16), 1, (sym("i0"), sym("i1"))))
    tensors = [(first, BLOCK), (second, BLOCK)]
    work = workload("injective", {"regions": regions}, tensors, TensorType(F32, (1, 19), BLOCK))
    check(run(work, tensors), np.concatenate([first, second], 1), rtol=0)


def operations(body: tuple[Stmt, ...]) -> list[str]:
    found = []
    for stmt in body:
        found += operations(stmt.body) if isinstance(stmt, For) else [stmt.op] if isinstance(stmt, Let) else []
    return found


def test_channels_that_begin_inside_a_block_move_as_vectors() -> None:
    x = normals((1, 20, 9, 9))
    i = tuple(sym(f"i{k}") for k in range(4))
    regions = (Region((0,) * 4, x.shape, 0, i), Region((0, 20, 0, 0), x.shape, 1, i))
    work = workload("injective", {"regions": regions}, [(x, BLOCK), (x, BLOCK)], TensorType(F32, (1, 40, 9, 9), BLOCK))
    ops = operations(family("injective").build(work, family("injective").heuristic(work, TARGET), TARGET, "kernel").body)
    assert "insert" not in ops


@quick
@given(st.data(), layouts, st.sampled_from([F32, DType.FLOAT64]))
def test_resampling(data: Any, block: int, dtype: DType) -> None:
    rank = data.draw(st.integers(3, 4))
    shape = [data.draw(st.integers(1, 2)), data.draw(st.integers(1, 19)), *(data.draw(st.integers(1, 7)) for _ in range(rank - 2))]
    axes = tuple(sorted(data.draw(st.sets(st.integers(2 if block > 1 else 0, rank - 1), min_size=1, max_size=2))))
    rng, tables, constant = np.random.default_rng(0), [], data.draw(st.booleans())
    for axis in axes:
        size = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)))
        tables += [rng.integers(0, shape[axis], size), rng.normal(size=size).astype(dtype.numpy)]
    x = normals(shape).astype(dtype.numpy)
    (expected,) = lookup("resample").evaluate([x, *tables], {"axes": axes})
    tensors = [(x, block), *((table, 1) for table in tables)]
    other: Tensor = (normals(expected.shape, 5).astype(dtype.numpy), block)
    epilogue = call("mul", Arg(0, dtype), Arg(1, dtype))
    work = workload("resample", {"axes": axes}, tensors, TensorType(dtype, expected.shape, block), epilogue, [other])
    if constant:
        work = replace(work, inputs=(work.inputs[0], *(replace(operand, constant=True) for operand in work.inputs[1:])))
    check(run(work, [*tensors, other]), expected * other[0], rtol=1e-4, atol=1e-4)


def test_resampling_reads_nothing_outside() -> None:
    x, weights = normals((5, 3)), np.ones((1, 4), np.float32)
    places = np.array([[-99, 2**40, 4, -5]], np.int64)
    tensors = [(x, 1), (places, 1), (weights, 1)]
    check(run(workload("resample", {"axes": (0,)}, tensors, TensorType(F32, (4, 3))), tensors), x[[0, 4, 4, 0]], rtol=0)


@quick
@given(st.data(), layouts, layouts)
def test_interleaved_channels(data: Any, source: int, result: int) -> None:
    strides = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    group, width = data.draw(st.sampled_from(((1, 1), (1, 3), (1, 8), (1, 20), (1, 16), (3, 1), (2, 5), (20, 1), (3, 8))))
    x = normals((data.draw(st.integers(1, 2)), group * width * int(np.prod(strides)), *(data.draw(st.integers(1, 6)) for _ in strides)))
    op, type_ = lookup("interleave"), TensorType(F32, x.shape)
    (expected,) = op.evaluate([x], {"group": group, "strides": strides})
    regions = op.regions([type_], {"group": group, "strides": strides})
    check(run(workload("injective", {"regions": regions}, [(x, source)], TensorType(F32, expected.shape, result)), [(x, source)]), expected, rtol=0)


def test_whole_blocks_are_interleaved_as_vectors() -> None:
    x = normals((1, 64, 5, 5))
    regions = lookup("interleave").regions([TensorType(F32, x.shape)], {"group": 1, "strides": (2, 2)})
    work = workload("injective", {"regions": regions}, [(x, BLOCK)], TensorType(F32, (1, 16, 10, 10), BLOCK))
    ops = operations(family("injective").build(work, family("injective").heuristic(work, TARGET), TARGET, "kernel").body)
    assert "insert" not in ops
