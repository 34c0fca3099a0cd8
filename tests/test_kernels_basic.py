"""Elementwise, index-mapping, layout, gather, pooling, reduction, softmax and normalisation kernels against numpy.

Every kernel runs compiled, with 1 and 3 workers, and in the interpreter; padding lanes of blocked inputs hold NaN or large integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import check_in_strides, unpack

import compiler.kernels
import compiler.ops  # registers the reference semantics
from backends.llvm.engine import jit
from compiler.ir.graph import Region
from compiler.ir.intexpr import floordiv, sym
from compiler.ir.loop import Access, For, Let, Stmt
from compiler.ir.loop_interp import run_function
from compiler.ir.loop_text import print_function
from compiler.ir.loop_verify import verify_function
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, Const, Scalar, call, cast, evaluate
from compiler.ir.types import DType, TensorType, pack_physical
from compiler.kernels.base import Operand, Workload, family
from compiler.target import resolve

TARGET = resolve("x86-64-v3")
BLOCK = TARGET.lanes
F32 = DType.FLOAT32
Tensor = tuple[np.ndarray, int]
"""An array and the channel block it is stored in."""

quick = settings(max_examples=25, deadline=None)


def type_of(tensor: Tensor) -> TensorType:
    return TensorType(DType.of(tensor[0].dtype), tensor[0].shape, tensor[1])


def memory(tensor: Tensor) -> np.ndarray:
    """The flat buffer of a tensor, with hostile padding lanes."""
    array, block = tensor
    packed = pack_physical(array, block)
    if block > 1:
        hostile = np.array(np.nan if packed.dtype.kind == "f" else 101).astype(packed.dtype)
        packed = np.where(pack_physical(np.ones(array.shape, bool), block), packed, hostile)
    return np.ascontiguousarray(packed).reshape(-1)


def workload(
    name: str,
    params: dict[str, Any],
    inputs: Sequence[Tensor],
    output: TensorType,
    epilogue: Scalar | None = None,
    operands: Sequence[Tensor] = (),
    threads: int = 3,
) -> Workload:
    expr = epilogue or Arg(0, output.dtype)
    types = [tuple(Operand(type_of(t)) for t in tensors) for tensors in (inputs, operands)]
    anchor = type_of(inputs[0]).dtype if inputs and name not in ("arg_reduce",) else output.dtype
    return Workload(name, tuple(params.items()), types[0], TensorType(anchor, output.shape, output.block), output, expr, types[1], threads)


def run(work: Workload, tensors: Sequence[Tensor], schedule: object = None) -> list[np.ndarray]:
    """The logical results: compiled with one worker and three, interpreted with one and three."""
    builder = family(work.family)
    assert builder.supports(work, TARGET)
    function = builder.build(work, schedule or builder.heuristic(work, TARGET), TARGET, "kernel")
    verify_function(function)
    inputs = [memory(t) for t in tensors]
    kernel = jit(function, TARGET)
    size, dtype = int(work.output.elements), work.output.dtype.numpy
    results = []
    for workers in (1, 3):
        out = np.full(size + 64, 1, dtype)
        scratch = [np.full(int(b.size) * b.dtype.itemsize, 0xFF, np.uint8) for b in function.buffers if b.access is Access.SCRATCH]
        kernel([*inputs, out, *scratch], workers=workers)
        assert (out[size:] == np.ones(1, dtype)).all(), "wrote past the end of the output"
        interpreted = np.zeros(size, dtype)
        run_function(function, [*inputs, interpreted, *(None for _ in scratch)], workers=workers)
        results += [unpack(out, work.output), unpack(interpreted, work.output)]
    check_in_strides(builder, work, schedule or builder.heuristic(work, TARGET), inputs, results[-1], TARGET)
    return results


def check(results: Sequence[np.ndarray], expected: np.ndarray, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for result in results:
        assert result.shape == np.shape(expected)
        np.testing.assert_allclose(result.astype(np.float64), np.asarray(expected).astype(np.float64), rtol=rtol, atol=atol)


def numbers(shape: Sequence[int], dtype: DType = F32, seed: int = 0) -> np.ndarray:
    """Values that every dtype holds exactly."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(0, 2 if dtype is DType.BOOL else 30, size=tuple(shape))).astype(dtype.numpy)


def normals(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(np.float32)


shapes = st.lists(st.integers(1, 11), min_size=1, max_size=4).map(tuple)
images = st.tuples(st.integers(1, 2), st.integers(1, 19), st.integers(1, 9), st.integers(1, 13))


# -- elementwise ------------------------------------------------------------------------------------------------------


@quick
@given(st.data(), st.integers(0, 8), st.sampled_from([dtype for dtype in DType if dtype is not DType.STRING]))
def test_elementwise_broadcasting(data: st.DataObject, rank: int, dtype: DType) -> None:
    largest = 9 if rank <= 4 else 3
    shape = tuple(data.draw(st.lists(st.integers(0 if rank < 3 else 1, largest), min_size=rank, max_size=rank)))
    arrays = []
    for seed in range(2):
        kept = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
        arrays.append(numbers([n if keep else 1 for n, keep in zip(shape, kept, strict=True)], dtype, seed))
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    expr = call("max", call("add", Arg(1, dtype), Arg(2, dtype)), Arg(1, dtype))
    output = TensorType(dtype, shape)
    tensors = [(a, 1) for a in arrays]
    expected = np.broadcast_to(evaluate(expr, [arrays[0], *arrays]), shape)
    check(run(workload("injective", {}, [], output, expr, tensors), tensors), expected, rtol=0)


@quick
@given(images, st.sampled_from([(1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 0, 1), (0, 0, 1, 1)]))
def test_elementwise_blocked(shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    other = normals([n if k else 1 for n, k in zip(shape, kept, strict=True)], 1)
    tensors = [(normals(shape), BLOCK), (other, BLOCK if other.shape[1] == shape[1] else 1)]
    expr = call("sub", call("mul", Arg(1, F32), Arg(2, F32)), Const(0.5, F32))
    expected = tensors[0][0] * other - np.float32(0.5)
    check(run(workload("injective", {}, [], TensorType(F32, shape, BLOCK), expr, tensors), tensors), expected)


@pytest.mark.parametrize("dtype", [DType.INT64, DType.INT8, DType.FLOAT64, DType.FLOAT16, DType.BOOL])
def test_elementwise_changes_of_type(dtype: DType) -> None:
    x = numbers((3, 21))
    expr = cast(call("add", Arg(1, F32), Const(1.0, F32)), dtype)
    expected = (x + 1).astype(dtype.numpy)
    check(run(workload("injective", {}, [], TensorType(dtype, x.shape), expr, [(x, 1)]), [(x, 1)]), expected, rtol=0)


# -- index mappings ---------------------------------------------------------------------------------------------------


def whole(shape: Sequence[int], index: Sequence[Any]) -> tuple[Region, ...]:
    return (Region((0,) * len(shape), tuple(shape), 0, tuple(index)),)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 5), st.sampled_from([F32, F32, DType.INT8, DType.FLOAT64]))
def test_transpose(data: st.DataObject, rank: int, dtype: DType) -> None:
    shape = data.draw(st.lists(st.integers(1, 21 if rank <= 3 else 5), min_size=rank, max_size=rank))
    perm = data.draw(st.permutations(range(rank)))
    x = numbers(shape, dtype)
    expected = x.transpose(perm)
    regions = whole(expected.shape, [sym(f"i{perm.index(k)}") for k in range(rank)])
    tail = normals(expected.shape[-1:]).astype(dtype.numpy).reshape((1,) * (rank - 1) + (-1,))
    epilogue = call("add", Arg(0, dtype), Arg(1, dtype))
    work = workload("injective", {"regions": regions}, [(x, 1)], TensorType(dtype, expected.shape), epilogue, [(tail, 1)])
    check(run(work, [(x, 1), (tail, 1)]), expected + tail, rtol=0)


@quick
@given(shapes, st.data())
def test_slices_and_repeats(shape: tuple[int, ...], data: st.DataObject) -> None:
    index, slices, repeats = [], [], []
    for axis, n in enumerate(shape):
        step, repeat = data.draw(st.sampled_from([1, 1, 2, 3, -1, -2])), data.draw(st.sampled_from([1, 1, 2, 3]))
        slices.append(slice(None, None, step))
        repeats.append(repeat)
        index.append(floordiv(sym(f"i{axis}"), repeat) * step + (n - 1 if step < 0 else 0))
    x = normals(shape)
    expected = x[tuple(slices)]
    for axis, repeat in enumerate(repeats):
        expected = expected.repeat(repeat, axis)
    work = workload("injective", {"regions": whole(expected.shape, index)}, [(x, 1)], TensorType(F32, expected.shape))
    check(run(work, [(x, 1)]), expected, rtol=0)


@pytest.mark.parametrize("size", [2, 3])
def test_depth_to_space(size: int) -> None:
    x = normals((1, 2, size, size, 5, 9))
    expected = x.transpose(0, 1, 4, 2, 5, 3)
    i = [sym(f"i{k}") for k in range(6)]
    regions = whole(expected.shape, [i[0], i[1], i[3], i[5], i[2], i[4]])
    check(run(workload("injective", {"regions": regions}, [(x, 1)], TensorType(F32, expected.shape)), [(x, 1)]), expected, rtol=0)


@quick
@given(images, st.sampled_from([1, BLOCK]), st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 17))
def test_padding_beside_concatenation(shape: tuple[int, ...], block: int, pads: tuple[int, int], channels: int) -> None:
    """``concat([pad(x), y], axis=1)`` of channels that need not be whole blocks."""
    before, after = pads
    x, width = normals(shape), shape[3] + sum(pads)
    y = normals((shape[0], channels, shape[2], width), 1)
    expected = np.concatenate([np.pad(x, ((0, 0),) * 3 + (pads,), constant_values=-3), y], 1)
    i = tuple(sym(f"i{k}") for k in range(4))
    regions = (
        Region((0, 0, 0, 0), (*shape[:3], before), None, (), -3.0),
        Region((0, 0, 0, before), shape, 0, i),
        Region((0, 0, 0, before + shape[3]), (*shape[:3], after), None, (), -3.0),
        Region((0, shape[1], 0, 0), y.shape, 1, i),
    )
    tensors = [(x, block), (y, block)]
    check(run(workload("injective", {"regions": regions}, tensors, TensorType(F32, expected.shape, block)), tensors), expected, rtol=0)


def operations(body: Sequence[Stmt]) -> list[str]:
    found = []
    for stmt in body:
        if isinstance(stmt, For):
            found += operations(stmt.body)
        elif isinstance(stmt, Let):
            found.append(stmt.op)
    return found


@pytest.mark.parametrize("shape", [(64, 64), (3, 640), (640, 3)])
def test_transposes_move_whole_vectors(shape: tuple[int, int]) -> None:
    regions = whole(shape[::-1], [sym("i1"), sym("i0")])
    work = workload("injective", {"regions": regions}, [(normals(shape), 1)], TensorType(F32, shape[::-1]))
    ops = operations(family("injective").build(work, family("injective").heuristic(work, TARGET), TARGET, "kernel").body)
    assert "shuffle" in ops
    assert "insert" not in ops


@quick
@given(images, st.sampled_from([(1, BLOCK), (BLOCK, 1), (1, 1)]), st.sampled_from([F32, DType.FLOAT64, DType.UINT8]))
def test_layout(shape: tuple[int, ...], blocks: tuple[int, int], dtype: DType) -> None:
    x = numbers(shape, dtype)
    epilogue = call("add", Arg(0, dtype), Const(1, dtype))
    work = workload("layout", {"block": blocks[1]}, [(x, blocks[0])], TensorType(dtype, shape, blocks[1]), epilogue)
    check(run(work, [(x, blocks[0])]), x + 1, rtol=0)


@quick
@given(shapes, st.data(), st.sampled_from([np.int32, np.int64]))
def test_gather(shape: tuple[int, ...], data: st.DataObject, index_type: type[np.generic]) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    which = data.draw(st.lists(st.integers(1, 4), max_size=2))
    x, indices = normals(shape), np.random.default_rng(1).integers(-shape[axis], shape[axis], which).astype(index_type)
    expected = np.asarray(np.take(x, indices, axis))
    tensors = [(x, 1), (np.asarray(indices), 1)]
    check(run(workload("gather", {"axis": axis}, tensors, TensorType(F32, expected.shape), call("neg", Arg(0, F32))), tensors), -expected, rtol=0)


def test_gather_reads_nothing_outside() -> None:
    x, indices = normals((5, 3)), np.array([-99, 2**40, 4, -5], np.int64)
    tensors = [(x, 1), (indices, 1)]
    check(run(workload("gather", {"axis": 0}, tensors, TensorType(F32, (4, 3))), tensors), x[[0, 4, 4, 0]], rtol=0)


# -- pooling and reductions -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(images, st.data(), st.sampled_from([1, BLOCK]), st.sampled_from(["max", "average"]))
def test_pool(shape: tuple[int, ...], data: st.DataObject, block: int, kind: str) -> None:
    rank = data.draw(st.integers(1, 2))
    size = shape[2 : 2 + rank]
    dilations = tuple(data.draw(st.integers(1, 2)) for _ in size)
    kernel = tuple(data.draw(st.integers(1, max(1, (n - 1) // d))) for n, d in zip(size, dilations, strict=True))
    pads = tuple(data.draw(st.integers(0, max(0, (k - 1) // 2))) for _ in range(2) for k in kernel)
    params = {
        "kind": kind,
        "kernel_shape": kernel,
        "strides": tuple(data.draw(st.integers(1, 3)) for _ in size),
        "pads": pads,
        "dilations": dilations,
        "ceil_mode": data.draw(st.booleans()),
        "count_include_pad": data.draw(st.booleans()),
    }
    x = normals(shape[: 2 + rank])
    (expected,) = lookup("pool").evaluate([x], params)
    check(run(workload("pool", params, [(x, block)], TensorType(F32, expected.shape, block)), [(x, block)]), expected)


@settings(max_examples=12, deadline=None)
@given(st.integers(65, 90), st.data(), st.sampled_from([1, BLOCK]), st.sampled_from(["max", "average"]))
def test_pool_of_long_windows(kernel: int, data: st.DataObject, block: int, kind: str) -> None:
    pads = data.draw(st.tuples(st.integers(0, kernel - 1), st.integers(0, kernel - 1)))
    stride, dilation = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 2))
    params = {"kind": kind, "kernel_shape": (2, kernel), "strides": (1, stride), "dilations": (1, dilation), "pads": (1, pads[0], 0, pads[1])}
    params |= {"ceil_mode": data.draw(st.booleans()), "count_include_pad": data.draw(st.booleans())}
    x = normals((1, 9, 3, (kernel - 1) * dilation + data.draw(st.integers(1, 60))))
    (expected,) = lookup("pool").evaluate([x], params)
    check(run(workload("pool", params, [(x, block)], TensorType(F32, expected.shape, block)), [(x, block)]), expected)


@pytest.mark.parametrize("block", [1, BLOCK])
def test_code_does_not_grow_with_the_window(block: int) -> None:
    lengths = []
    for kernel in (200, 10000):
        params = {"kind": "max", "kernel_shape": (kernel,), "strides": (1,), "pads": (kernel - 1,) * 2, "dilations": (1,), "ceil_mode": False}
        types = TensorType(F32, (1, 8, 2 * kernel), block), TensorType(F32, (1, 8, 3 * kernel - 1), block)
        given_workload = Workload("pool", tuple(sorted(params.items())), (Operand(types[0]),), types[1], types[1], Arg(0, F32))
        pool = family("pool")
        function = pool.build(given_workload, pool.heuristic(given_workload, TARGET), TARGET, "kernel")
        lengths.append(print_function(function).count("\n"))
    assert max(lengths) < 200


@pytest.mark.parametrize("block", [1, BLOCK])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pool_of_volumes(kind: str, block: int) -> None:
    params = {"kind": kind, "kernel_shape": (3, 2, 3), "strides": (2, 1, 2), "pads": (1, 0, 1, 1, 1, 1), "dilations": (1, 1, 1)}
    params |= {"ceil_mode": False, "count_include_pad": False}
    x = normals((1, 9, 5, 6, 11))
    (expected,) = lookup("pool").evaluate([x], params)
    check(run(workload("pool", params, [(x, block)], TensorType(F32, expected.shape, block)), [(x, block)]), expected)


REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from(sorted(REDUCTIONS)), st.sampled_from([F32, DType.FLOAT64, DType.FLOAT16, DType.INT32, DType.INT64, DType.UINT8]))
def test_reduce(data: st.DataObject, kind: str, dtype: DType) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 8, 17, 40]), min_size=1, max_size=3))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1)))))
    keepdims = data.draw(st.booleans())
    x = np.random.default_rng(0).integers(1, 3, shape).astype(dtype.numpy)
    if kind == "prod" and dtype in (DType.FLOAT16, F32):
        x = np.where(np.arange(x.size).reshape(x.shape) % 7 == 0, x, 1).astype(dtype.numpy)
    wide = x.astype(np.float64) if dtype.is_float else x
    expected = np.asarray(REDUCTIONS[kind](wide, axis=axes, keepdims=keepdims)).astype(dtype.numpy)
    work = workload("reduce", {"kind": kind, "axes": axes, "keepdims": keepdims}, [(x, 1)], TensorType(dtype, expected.shape))
    check(run(work, [(x, 1)]), expected, rtol=1e-3 if dtype is DType.FLOAT16 else 1e-6)


@quick
@given(images, st.sampled_from(sorted(REDUCTIONS)), st.sampled_from([(1,), (2,), (3,), (2, 3)]), st.booleans())
def test_reduce_blocked(shape: tuple[int, ...], kind: str, axes: tuple[int, ...], keepdims: bool) -> None:
    keepdims = keepdims or axes == (1,)
    x = normals(shape)
    expected = REDUCTIONS[kind](x.astype(np.float64), axis=axes, keepdims=keepdims)
    scale = normals((1, expected.shape[1], 1, 1)[: expected.ndim], 1)
    expected = expected * scale
    output = TensorType(F32, expected.shape, BLOCK)
    epilogue, tensors = call("mul", Arg(0, F32), Arg(1, F32)), [(x, BLOCK), (scale, BLOCK)]
    work = workload("reduce", {"kind": kind, "axes": axes, "keepdims": keepdims}, tensors[:1], output, epilogue, tensors[1:])
    check(run(work, tensors), expected, atol=1e-5)


@quick
@given(images, st.sampled_from([1, BLOCK]), st.sampled_from([1, BLOCK]), st.booleans())
def test_one_channel_for_all_is_read_in_any_layout(shape: tuple[int, ...], block: int, other: int, pooled: bool) -> None:
    """By elementwise kernels and by epilogues."""
    x, mask = normals(shape), normals((shape[0], 1, *shape[2:]), 1)
    tensors = [(x, block), (mask, block if shape[1] == 1 else other)]
    output = TensorType(F32, shape, block)
    if pooled:
        params = {"kind": "max", "kernel_shape": (1, 1), "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "ceil_mode": False}
        work = workload("pool", params, tensors[:1], output, call("mul", Arg(0, F32), Arg(1, F32)), tensors[1:])
    else:
        work = workload("injective", {}, [], output, call("mul", Arg(1, F32), Arg(2, F32)), tensors)
    check(run(work, tensors), x * mask)


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000), (100_000, 3)])
@pytest.mark.parametrize("value", [0.1, None])
def test_long_sums_are_accurate(shape: tuple[int, int], value: float | None) -> None:
    x = np.full(shape, value, np.float32) if value else np.abs(normals(shape))
    work = workload("reduce", {"kind": "sum", "axes": (0,), "keepdims": False}, [(x, 1)], TensorType(F32, (shape[1],)))
    builder = family("reduce")
    out = np.empty(shape[1], np.float32)
    if shape[0] == 1:
        work = workload("reduce", {"kind": "sum", "axes": (1,), "keepdims": False}, [(x, 1)], TensorType(F32, (1,)))
        out = np.empty(1, np.float32)
    jit(builder.build(work, builder.heuristic(work, TARGET), TARGET, "kernel"), TARGET)([x.reshape(-1), out])
    np.testing.assert_allclose(out, x.astype(np.float64).sum(work.ints("axes")), rtol=1e-6)


@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_extremes_keep_nan_and_infinity(kind: str, axis: int) -> None:
    x = normals((19, 21))
    x[3, 4], x[5, 6], x[7, 8] = np.nan, np.inf, -np.inf
    expected = REDUCTIONS[kind](x, axis=axis)
    work = workload("reduce", {"kind": kind, "axes": (axis,), "keepdims": False}, [(x, 1)], TensorType(F32, expected.shape))
    check(run(work, [(x, 1)]), expected, rtol=0)


@quick
@given(shapes, st.data(), st.sampled_from([F32, DType.INT8, DType.FLOAT64]), st.sampled_from(["max", "min"]), st.booleans(), st.booleans())
def test_arg_reduce(shape: tuple[int, ...], data: st.DataObject, dtype: DType, kind: str, last: bool, keepdims: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = np.random.default_rng(2).integers(0, 3, shape).astype(dtype.numpy)
    if dtype.is_float and data.draw(st.booleans()):
        x.reshape(-1)[:: max(1, x.size // 3)] = np.nan
    params = {"kind": kind, "axis": axis, "keepdims": keepdims, "last": last}
    find = np.argmax if kind == "max" else np.argmin
    expected = x.shape[axis] - 1 - find(np.flip(x, axis), axis) if last else find(x, axis)
    expected = np.expand_dims(expected, axis) if keepdims else np.asarray(expected)
    check(run(workload("arg_reduce", params, [(x, 1)], TensorType(DType.INT64, expected.shape)), [(x, 1)]), expected, rtol=0)


# -- softmax and normalisation ----------------------------------------------------------------------------------------

rows = st.lists(st.sampled_from([1, 2, 5, 16, 33]), min_size=1, max_size=3).map(tuple)
floats = st.sampled_from([F32, F32, DType.FLOAT64, DType.FLOAT16])


@quick
@given(rows, st.data(), floats, st.booleans())
def test_softmax(shape: tuple[int, ...], data: st.DataObject, dtype: DType, log: bool) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = (normals(shape) * 20).astype(dtype.numpy)
    shifted = x.astype(np.float64) - x.max(axis, keepdims=True)
    total = np.exp(shifted).sum(axis, keepdims=True)
    expected = shifted - np.log(total) if log else np.exp(shifted) / total
    epilogue = call("mul", Arg(0, dtype), Const(2.0, dtype))
    work = workload("softmax", {"axis": axis, "log": log}, [(x, 1)], TensorType(dtype, shape), epilogue)
    check(run(work, [(x, 1)]), expected * 2, rtol=2e-3 if dtype is DType.FLOAT16 else 1e-5)


# -- schedules and empty tensors --------------------------------------------------------------------------------------


def cases() -> list[tuple[Workload, list[Tensor], np.ndarray]]:
    x, i = normals((2, 13, 6, 7)), [sym(f"i{k}") for k in range(4)]
    pooling = {"kind": "max", "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "ceil_mode": False}
    pooled = lookup("pool").evaluate([x], pooling)[0]
    softened = np.exp(x) / np.exp(x).sum(3, keepdims=True)
    normal = (x - x.mean(3, keepdims=True)) / np.sqrt(x.var(3, keepdims=True) + 1)
    indices = np.array([3, -1, 0], np.int64)
    found = [
        ("injective", {"regions": whole((2, 6, 7, 13), [i[0], i[3], i[1], i[2]])}, [(x, 1)], x.transpose(0, 2, 3, 1), 1),
        ("layout", {"block": BLOCK}, [(x, 1)], x, BLOCK),
        ("gather", {"axis": 1}, [(x, 1), (indices, 1)], x[:, indices], 1),
        ("pool", pooling, [(x, BLOCK)], pooled, BLOCK),
        ("pool", pooling, [(x, 1)], pooled, 1),
        ("reduce", {"kind": "sum", "axes": (2, 3), "keepdims": True}, [(x, BLOCK)], x.sum((2, 3), keepdims=True), BLOCK),
        ("reduce", {"kind": "sum", "axes": (0, 3), "keepdims": False}, [(x, 1)], x.sum((0, 3)), 1),
        ("arg_reduce", {"kind": "max", "axis": 1, "keepdims": False, "last": False}, [(x, 1)], x.argmax(1), 1),
        ("softmax", {"axis": 3, "log": False}, [(x, 1)], softened, 1),
        ("normalize", {"axes": (3,), "groups": 1, "epsilon": 1.0, "center": True}, [(x, 1)], normal, 1),
    ]
    return [(workload(f, p, t, TensorType(DType.of(e.dtype), e.shape, b)), t, e) for f, p, t, e, b in found]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case[0].family)
def test_every_schedule(case: tuple[Workload, list[Tensor], np.ndarray]) -> None:
    work, tensors, expected = case
    space = family(work.family).space(work, TARGET)
    assert space[0] == family(work.family).heuristic(work, TARGET)
    assert len(set(space)) == len(space) > 1
    for schedule in space:
        check(run(work, tensors, schedule), expected, atol=1e-5)


EMPTY = {
    "injective": {"regions": whole((0, 3, 2, 4), [sym("i0"), sym("i1"), sym("i3"), sym("i2")])},
    "layout": {"block": 1},
    "softmax": {"axis": 1, "log": False},
    "normalize": {"axes": (1,), "groups": 1, "epsilon": 0.1, "center": True},
    "pool": {"kind": "max", "kernel_shape": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)},
}


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_empty_tensors(name: str) -> None:
    x = normals((0, 3, 4, 2))
    shape = (0, 3, 2, 4) if name == "injective" else x.shape
    assert all(result.shape == shape for result in run(workload(name, EMPTY[name], [(x, 1)], TensorType(F32, shape)), [(x, 1)]))


@pytest.mark.parametrize(("kind", "expected"), [("sum", 0), ("prod", 1), ("max", -np.inf), ("min", np.inf)])
def test_reduction_of_nothing(kind: str, expected: float) -> None:
    x = normals((3, 0, 2))
    params = {"kind": kind, "axes": (1,), "keepdims": False}
    for result in run(workload("reduce", params, [(x, 1)], TensorType(F32, (3, 2))), [(x, 1)]):
        np.testing.assert_array_equal(result, np.full((3, 2), expected))


def test_all_families_are_registered() -> None:
    assert compiler.kernels.__path__
    for name in (*EMPTY, "gather", "reduce", "arg_reduce"):
        assert family(name).name == name
