"""Element types below 16 bits: conversions of every value in numpy, in the Loop IR interpreter and in compiled code; models that hold them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tensorsmith as ts
from backends.llvm.engine import jit
from compiler.ir.loop import Access, Function, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.loop_interp import run_function
from compiler.ir.loop_text import parse_function, print_function
from compiler.ir.scalar import apply, cast_array
from compiler.ir.types import DType, compute_dtype, integer_range, is_coded
from compiler.ops.support import ONNX_DTYPES
from compiler.target import native

Array = np.ndarray[Any, np.dtype[Any]]
CODED = [dtype for dtype in DType if is_coded(dtype)]
FLOATS = [dtype for dtype in CODED if dtype.is_float]
LANES = 8


def every_code(dtype: DType) -> Array:
    return np.arange(1 << dtype.bits, dtype=np.uint8).view(dtype.numpy)


def padded(x: Array) -> Array:
    return np.concatenate([x, np.zeros(-x.size % LANES, x.dtype)])


def bytes_of(x: Array) -> Array:
    return np.ascontiguousarray(x).view(np.uint8)


def converting(source: DType, targets: list[DType], size: int) -> Function:
    """A kernel that converts a buffer to each of the types."""
    b = LoopBuilder("convert")
    x = b.buffer("x", source, size, Access.READ)
    results = [b.buffer(f"y{k}", target, size, Access.WRITE) for k, target in enumerate(targets)]
    with b.loop("i", 0, size, LANES) as i:
        value = b.load(x, i.var, LANES)
        for y, target in zip(results, targets, strict=True):
            b.store(y, i.var, b.cast(value, target))
    return b.function()


def converted(x: Array, targets: list[DType]) -> list[Array]:
    """x in each of the types by compiled code, after the interpreter has been seen to agree."""
    function = converting(DType.of(x.dtype), targets, x.size)
    found, wanted = ([np.zeros(x.size, target.numpy) for target in targets] for _ in range(2))
    jit(function, native())([x, *found])
    run_function(parse_function(print_function(function)), [x, *wanted])
    for target, got, want in zip(targets, found, wanted, strict=True):
        told = defined(x, target)
        same(got[told], want[told], f"{x.dtype} to {target.value}")
    return found


def defined(x: Array, target: DType) -> Array:
    """Which conversions have a meaning: numbers out of an integer's range wrap below 32 bits only."""
    if target.is_float or target is DType.BOOL:
        return np.ones(x.shape, bool)
    low, high = integer_range(target if target.bits >= 32 else DType.INT32)
    whole = np.trunc(x.astype(np.float64))
    return (whole >= low) & (whole < high + 1)


def same(got: Array, want: Array, what: str = "") -> None:
    """Equal bits; of NaN in the wider floats, only that it is one."""
    if DType.of(want.dtype).is_float and not is_coded(DType.of(want.dtype)):
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64), err_msg=what)
    else:
        np.testing.assert_array_equal(bytes_of(got), bytes_of(want), err_msg=what)


def critical(dtype: DType) -> Array:
    """float32 numbers around every number of dtype and around the middle of every two: what rounding decides about."""
    numbers = every_code(dtype).astype(np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    edges = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2, numbers * 1.25, [2 * numbers[-1], 2 * numbers[0]]])
    with np.errstate(over="ignore"):
        exact = edges.astype(np.float32)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38], np.float32)
    return np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf)), special])


@pytest.mark.parametrize("dtype", CODED)
def test_every_code_is_the_value_that_ml_dtypes_says(dtype: DType) -> None:
    codes = padded(every_code(dtype))
    targets = [target for target in DType if target not in (dtype, DType.STRING)]
    wide = codes.astype(np.float32)
    for target, got in zip(targets, converted(codes, targets), strict=True):
        told = defined(wide, target)
        inside = told if target.is_float or target is DType.BOOL else told & (np.abs(wide) <= integer_range(target)[1])
        with np.errstate(over="ignore"):
            same(got[told], cast_array(wide[told], target), f"{dtype.value} to {target.value}")
            same(got[inside], wide[inside].astype(target.numpy), f"{dtype.value} to {target.value}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float16_and_what_rounding_decides_about(dtype: DType) -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    anything = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    near = np.exp2(rng.uniform(-20, 20, 1 << 16)).astype(np.float32) * rng.choice(np.array([-1, 1], np.float32), 1 << 16)
    with np.errstate(all="ignore"):
        for x in (halves, padded(np.concatenate([critical(dtype), anything, near]))):
            (got,) = converted(x, [dtype])
            same(got, x.astype(np.float32).astype(dtype.numpy), f"{x.dtype} to {dtype.value}")


@pytest.mark.parametrize("dtype", [dtype for dtype in CODED if not dtype.is_float])
def test_numbers_wrap_in_integers_below_a_byte(dtype: DType) -> None:
    low, high = integer_range(dtype)
    numbers = np.arange(-128, 128)
    wanted = (numbers - low) % (high - low + 1) + low
    for source in (np.int8, np.int64, np.float32, np.float16, np.float64, ml_dtypes.bfloat16):
        (got,) = converted(numbers.astype(source), [dtype])
        np.testing.assert_array_equal(got.astype(np.int64), wanted)


def test_float64_is_rounded_to_float16_once() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (halves[1:] + halves[:-1]) / 2
    special = np.array([65519.999, 65520.0, 1e300, np.inf, np.nan, 5e-324, 2.0**-25, np.nextafter(2.0**-25, 1)])
    x = padded(np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9), special]))
    with np.errstate(over="ignore"):
        for numbers in (x, -x):
            (got,) = converted(numbers, [DType.FLOAT16])
            np.testing.assert_array_equal(got, numbers.astype(np.float16))


def test_bits_above_the_width_are_ignored() -> None:
    codes = np.arange(256, dtype=np.uint8)
    for dtype in CODED:
        low = codes & ((1 << dtype.bits) - 1)
        got = np.zeros(256, compute_dtype(dtype).numpy)
        jit(converting(dtype, [compute_dtype(dtype)], 256), native())([codes, got])
        same(got, low.view(dtype.numpy).astype(compute_dtype(dtype).numpy))


@pytest.mark.parametrize("dtype", CODED)
@pytest.mark.parametrize("fn", ["add", "mul", "max", "lt", "eq", "neg", "select"])
def test_functions_compute_in_the_wider_type(fn: str, dtype: DType) -> None:
    left, right = (x.reshape(-1) for x in np.meshgrid(padded(every_code(dtype))[::3], every_code(dtype)))
    left, right = (padded(x[: 1 << 12].copy()) for x in (left, right))
    result = DType.BOOL if fn in ("lt", "eq") else dtype
    b = LoopBuilder("function")
    buffers = [b.buffer(name, dtype, left.size, Access.READ) for name in ("x", "y")]
    z = b.buffer("z", result, left.size, Access.WRITE)
    with b.loop("i", 0, left.size, LANES) as i:
        x, y = (b.load(buffer, i.var, LANES) for buffer in buffers)
        args = [x] if fn == "neg" else [x, y] if fn != "select" else [b.op("lt", x, b.const(1, VecType(dtype, LANES))), x, y]
        b.store(z, i.var, b.op(fn, *args))
    function = b.function()
    got, again = (np.zeros(left.size, result.numpy) for _ in range(2))
    jit(function, native())([left, right, got])
    run_function(function, [left, right, again])
    arrays = {"neg": [left], "select": [apply("lt", [left, np.ones_like(left)], DType.BOOL), left, right]}.get(fn, [left, right])
    want = apply(fn, arrays, result)
    nan = np.isnan(want.astype(np.float32))
    same(got[~nan], want[~nan])
    same(again[~nan], want[~nan])
    assert np.isnan(got[nan].astype(np.float32)).all()


NUMBERS = {dtype: number for number, dtype in ONNX_DTYPES.items()}
LATEST = onnx.defs.onnx_opset_version()
KNOWN = [dtype for dtype in CODED if NUMBERS[dtype] in TensorProto.DataType.values()]


def packed(x: Array, dtype: DType) -> bytes:
    """The bytes of an initializer: elements one after another from the low bits on."""
    bits = np.unpackbits(bytes_of(x).reshape(-1, 1), axis=1, bitorder="little")[:, : dtype.bits]
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def tensor(name: str, x: Array, dtype: DType) -> TensorProto:
    return helper.make_tensor(name, NUMBERS[dtype], x.shape, packed(x, dtype), raw=True)


def model_of(nodes: list[onnx.NodeProto], x: Array, outputs: list[str], initializers: list[TensorProto] = ()) -> onnx.ModelProto:
    info = helper.make_tensor_value_info("x", NUMBERS[DType.of(x.dtype)], x.shape)
    graph = helper.make_graph(nodes, "narrow", [info], [onnx.ValueInfoProto(name=name) for name in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", LATEST)])


def run(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    return ts.compile(model, threads=1, cache=False).run({"x": x})


@pytest.mark.parametrize("dtype", [dtype for dtype in KNOWN if dtype.bits != 6])  # the standard casts and quantises those of 6 bits only
def test_data_movement_keeps_the_bits(dtype: DType) -> None:
    x = np.resize(every_code(dtype), (3, 1, 5, 17))
    fill = every_code(dtype)[-2:-1]
    shapes = {"shape": [17, 15], "pads": [0, 0, 1, 0, 0, 0, 0, 2], "axes": [1], "size": [2, 3]}
    constants = [tensor("fill", fill.reshape(()), dtype), *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in shapes.items())]
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Transpose", ["x"], ["transposed"], perm=[3, 1, 0, 2]),
        helper.make_node("Reshape", ["transposed", "shape"], ["reshaped"]),
        helper.make_node("Squeeze", ["x", "axes"], ["squeezed"]),
        helper.make_node("Flatten", ["squeezed"], ["flat"], axis=2),
        helper.make_node("Pad", ["x", "pads", "fill"], ["padded"]),
        helper.make_node("ConstantOfShape", ["size"], ["filled"], value=tensor("value", fill, dtype)),
        helper.make_node("Constant", [], ["constant"], value=tensor("value", x, dtype)),
        helper.make_node("Shape", ["x"], ["extents"]),
    ]
    outputs = ["same", "reshaped", "squeezed", "flat", "padded", "filled", "constant", "extents"]
    got = run(model_of(nodes, x, outputs, constants), x)
    same(got["same"], x)
    same(got["reshaped"], x.transpose(3, 1, 0, 2).reshape(17, 15))
    same(got["squeezed"], x[:, 0])
    same(got["flat"], x.reshape(15, 17))
    same(got["padded"], np.pad(x.view(np.uint8), [(0, 0), (0, 0), (1, 0), (0, 2)], constant_values=bytes_of(fill)[0]).view(dtype.numpy))
    same(got["filled"], np.broadcast_to(fill, (2, 3)))
    same(got["constant"], x)
    assert got["extents"].tolist() == [3, 1, 5, 17]


@pytest.mark.parametrize("dtype", KNOWN)
@pytest.mark.parametrize("external", [False, True])
def test_packed_initializers(dtype: DType, external: bool, tmp_path: Any) -> None:
    for count in (1, 3, 4, 5, 255):
        codes = np.resize(every_code(dtype), count)
        weights = tensor("w", codes, dtype)
        nodes = [helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT), helper.make_node("Add", ["wide", "x"], ["y"])]
        zero = np.zeros(count, np.float32)
        path = tmp_path / "model.onnx"
        if external:
            onnx.external_data_helper.set_external_data(weights, "weights.bin")
            (tmp_path / "weights.bin").write_bytes(weights.raw_data)
            weights.ClearField("raw_data")
            weights.data_location = TensorProto.EXTERNAL
        path.write_bytes(model_of(nodes, zero, ["y"], [weights]).SerializeToString())
        got = ts.compile(path, threads=1, cache=False).run({"x": zero})["y"]
        want = codes.astype(np.float32)
        np.testing.assert_array_equal(got, np.where(np.abs(want) < 2.0**-126, 0, want))


def test_a_chain_rounds_where_it_is_cast_and_where_it_is_stored() -> None:
    x = np.linspace(-600, 600, 4096, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT8E4M3FN),
        helper.make_node("Cast", ["low"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["wide", "x"], ["error"]),
        helper.make_node("Cast", ["error"], ["y"], to=TensorProto.FLOAT8E5M2, saturate=0),
    ]
    low = x.clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    same(run(model_of(nodes, x, ["y"]), x)["y"], (low.astype(np.float32) - x).astype(ml_dtypes.float8_e5m2))


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [1, 0])
def test_powers_of_two(mode: str, saturate: int) -> None:
    rng = np.random.default_rng(0)
    x = np.abs(rng.integers(0, 1 << 31, 4096).astype(np.uint32).view(np.float32))
    x[:12] = [0, 2.0**-149, 2.0**-128, 2.0**-127, 1.25 * 2.0**-127, 1.5 * 2.0**-127, 2.0**-126, 1.5, 2.0**127, 1.5 * 2.0**127, np.inf, np.nan]
    to = {"to": TensorProto.FLOAT8E8M0, "round_mode": mode, "saturate": saturate}
    got = bytes_of(run(model_of([helper.make_node("Cast", ["x"], ["y"], **to)], x, ["y"]), x)["y"])
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        floor = np.floor(np.log2(wide))
        low = np.exp2(floor)
        rounded = {"down": low, "up": np.where(wide == low, low, 2 * low), "nearest": np.where(wide < 1.5 * low, low, 2 * low)}[mode]
        inside = (wide >= 2.0**-127) & (rounded <= 2.0**127)
        code = np.log2(np.where(inside, rounded, 1)) + 127
    beyond = np.where(wide < 1, 0, 254) if saturate else 255
    want = np.where(np.isnan(wide), 255, np.where(inside, code, beyond))
    np.testing.assert_array_equal(got, want.astype(np.uint8))


@pytest.mark.parametrize("dtype", [DType.INT4, DType.UINT4, DType.FLOAT8E4M3FN, DType.FLOAT8E5M2])
def test_products_with_narrow_weights_agree_with_onnxruntime(dtype: DType) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the oracle")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 32)).astype(np.float32)
    weights = cast_array(rng.uniform(0, 15, (32, 24)).astype(np.float32), dtype)
    blocked = not dtype.is_float
    scale = rng.uniform(0.01, 0.1, (4, 24) if blocked else ()).astype(np.float32)
    attrs = {"axis": 0, "block_size": 8} if blocked else {}
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["real"], **attrs), helper.make_node("MatMul", ["x", "real"], ["y"])]
    model = model_of(nodes, x, ["y"], [tensor("w", weights, dtype), numpy_helper.from_array(scale, "s")])
    model.opset_import[0].version, model.ir_version = 21, 10
    (want,) = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(run(model, x)["y"], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_views_by_bits_between_kernels() -> None:
    x = np.linspace(-3, 3, 64, dtype=np.float32)
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("BitCast", ["negative"], ["bits"], to=TensorProto.INT32),
        helper.make_node("Add", ["bits", "one"], ["next"]),
        helper.make_node("BitCast", ["next"], ["y"], to=TensorProto.FLOAT),
    ]
    got = run(model_of(nodes, x, ["bits", "y"], [numpy_helper.from_array(np.array(1, np.int32), "one")]), x)
    same(got["bits"], (-x).view(np.int32))
    same(got["y"], ((-x).view(np.int32) + 1).view(np.float32))
