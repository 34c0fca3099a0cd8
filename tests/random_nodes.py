"""The kinds of nodes that random graphs are made of: each family picks operands among the values that are there and adds a node or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

if TYPE_CHECKING:
    from random_graphs import GraphMaker

EXACT = (
    *("Abs", "Neg", "Relu", "Sign", "Floor", "Ceil", "Round", "Not", "BitwiseNot", "Identity", "Min", "Max", "Clip", "Where", "Cast"),
    *("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
    *("Expand", "Tile", "Shape", "Size", "DepthToSpace", "SpaceToDepth", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"),
    *("Concat", "Split", "Slice", "Pad", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "Trilu", "OneHot"),
)
"""Operators that do not round."""

REFERENCE_IS_WRONG = {
    "ConvTranspose": "fails on groups",
    "Erf": "computes in float32",
    "HardSwish": "takes its factors in double precision",
    "HardSigmoid": "takes its defaults in double precision",
    "MaxPool": "gives ranks other than 4 the wrong shape",
    "AveragePool": "gives ranks other than 4 the wrong shape",
    "Slice": "does not clamp the start of a backward step",
    "Gelu": "rounds its factors to float32",
    "GlobalMaxPool": "gives ranks other than 4 the wrong shape",
    "Softsign": "fails on a scalar",
    "Resize": "maps align_corners by the scale, not by the lengths",
}
"""ONNX Runtime is the oracle of these."""

SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17)
FLOATS = (np.float32, np.float32, np.float32, np.float32, np.float64, np.float16)
INTEGERS = (np.int64, np.int32, np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64)

UNARY = (
    *("Abs", "Neg", "Relu", "Sign", "Floor", "Ceil", "Round", "Sigmoid", "Tanh", "Exp", "Erf", "Gelu", "Sin", "Cos", "Softplus", "Softsign"),
    *("LeakyRelu", "Elu", "Selu", "Celu", "Mish", "HardSwish", "HardSigmoid", "ThresholdedRelu", "Reciprocal", "Sqrt", "Log", "Identity"),
    *("Atan", "Asinh", "Sinh", "Cosh", "Tan"),
)
NORMALIZATIONS = (
    *("Softmax", "Softmax", "LogSoftmax", "LpNormalization"),
    *("LayerNormalization", "InstanceNormalization", "MeanVarianceNormalization"),
)


def is_float(array: Any) -> bool:
    return array.dtype.kind == "f"


def is_image(array: Any) -> bool:
    return array.dtype == np.float32 and 3 <= array.ndim <= 5 and array.size > 0


def graph_input(g: GraphMaker) -> None:
    rng = g.rng
    rank = rng.choice((0, 1, 2, 2, 3, 3, 4, 4, 5))
    sizes = SIZES if rng.random() < 0.3 else SIZES[1:]
    shape = [rng.choice(sizes) for _ in range(rank)]
    kind = rng.random()
    dtype = rng.choice(FLOATS) if kind < 0.75 else rng.choice(INTEGERS) if kind < 0.93 else np.bool_
    g.known(g.array(shape, dtype, -4, 4), constant=False)


def unary(g: GraphMaker) -> None:
    op = g.rng.choice(UNARY)
    x = g.pick((lambda a: a.dtype == np.float32) if op == "Celu" else is_float)
    attrs = {"alpha": 0.3} if op in ("LeakyRelu", "Elu") and g.rng.random() < 0.5 else {}
    g.node(op, [x], **attrs)


def integer_unary(g: GraphMaker) -> None:
    op, kinds = g.rng.choice((("Abs", "iu"), ("Neg", "i"), ("BitwiseNot", "iu"), ("Sign", "iu"), ("Not", "b")))
    g.node(op, [g.pick(lambda a: a.dtype.kind in kinds)])


def partner(g: GraphMaker, x: str) -> str:
    """A value of the same type that broadcasts with x."""
    array, rng = g.exact(x), g.rng

    def fits(other: Any) -> bool:
        try:
            return other.dtype == array.dtype and np.broadcast_shapes(other.shape, array.shape) is not None
        except ValueError:
            return False

    if rng.random() < 0.5:
        return g.pick(fits)
    shape = [n if rng.random() < 0.6 else 1 for n in array.shape][rng.randint(0, array.ndim) :]
    if rng.random() < 0.15:
        shape = [rng.choice((1, 2, 3)), *[n if rng.random() < 0.8 else 1 for n in array.shape]][:5]
    return g.known(g.array(shape, array.dtype))


def binary(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype.kind in "fiu")
    y, rng = partner(g, x), g.rng
    op = rng.choice(("Add", "Sub", "Mul", "Mul", "Div", "Min", "Max", "Pow", "Mod", *(("PRelu", "Sum", "Mean") if is_float(g.exact(x)) else ())))
    if op == "Pow":
        if g.exact(x).dtype.kind != "f" and g.exact(x).dtype not in (np.int32, np.int64):
            return
        x = g.node("Abs", [x])[0]
    if op == "PRelu":
        y = g.known(g.array(g.exact(x).shape[-1:], g.exact(x).dtype))
    if op in ("Div", "Mod") and not is_float(g.exact(y)):
        y = g.known(np.maximum(np.abs(g.exact(y)), 1).astype(g.exact(y).dtype))
    operands = [x, y] if rng.random() < 0.5 or op in ("PRelu", "Div", "Mod", "Pow") else [y, x]
    g.node(op, operands, **({"fmod": 1} if op == "Mod" and is_float(g.exact(x)) else {}))


def compare(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype.kind in "fiu")
    g.node(g.rng.choice(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")), [x, partner(g, x)])


def logic(g: GraphMaker) -> None:
    if g.rng.random() < 0.5:
        x = g.pick(lambda a: a.dtype.kind == "b")
        g.node(g.rng.choice(("And", "Or", "Xor")), [x, partner(g, x)])
        return
    x = g.pick(lambda a: a.dtype.kind in "iu")
    g.node(g.rng.choice(("BitwiseAnd", "BitwiseOr", "BitwiseXor")), [x, partner(g, x)])


def where(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype.kind in "fiub")
    array = g.exact(x)
    condition = g.array([n if g.rng.random() < 0.7 else 1 for n in array.shape], np.bool_)
    g.node("Where", [g.known(condition), x, partner(g, x)])


def clip(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype.kind in "fiu")
    dtype, low = g.exact(x).dtype, g.rng.choice((0, 0, 1))
    g.node("Clip", [x, g.known(np.array(low, dtype), constant=True), g.known(np.array(6, dtype), constant=True)])


def cast(g: GraphMaker) -> None:
    x = g.pick(lambda _: True)
    to = np.dtype(g.rng.choice((*FLOATS, *INTEGERS, np.bool_)))
    array = g.exact(x)
    if to.kind in "iu" and array.size and (float(array.min()) < np.iinfo(to).min or float(array.max()) > np.iinfo(to).max):
        return
    g.node("Cast", [x], to=helper.np_dtype_to_tensor_dtype(to))


def matmul(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: is_float(a) and a.ndim >= 1)
    array = g.exact(x)
    k, n = array.shape[-1], rng.choice(SIZES)
    if array.ndim == 2 and rng.random() < 0.4:
        transposed = rng.random() < 0.5
        w = g.known(g.array((n, k) if transposed else (k, n), array.dtype, -1, 1))
        bias = [g.known(g.array(rng.choice(((n,), (1, n), (), (1,))), array.dtype))] if rng.random() < 0.6 else []
        g.node("Gemm", [x, w, *bias], transB=int(transposed), alpha=rng.choice((1.0, 0.5)), beta=rng.choice((1.0, 2.0)))
        return
    if rng.random() < 0.3 and array.ndim >= 2:
        perm = [*range(array.ndim - 2), array.ndim - 1, array.ndim - 2]
        g.node("MatMul", [x, g.node("Transpose", [x], perm=perm)[0]])
        return
    batch = [m if rng.random() < 0.5 else 1 for m in array.shape[:-2]] if rng.random() < 0.4 else []
    shape = (k,) if rng.random() < 0.1 else (*batch, k, n)
    g.node("MatMul", [x, g.known(g.array(shape, array.dtype, -1, 1))])


def conv(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(is_image)
    shape = g.exact(x).shape
    spatial, channels = len(shape) - 2, shape[1]
    group = rng.choice([d for d in (1, 1, 1, 2, 4, channels) if channels % d == 0])
    out = group * rng.choice((1, 1, 2, 3, 8))
    kernel = [rng.choice((1, 2, 3, 3, 5)) for _ in range(spatial)]
    attrs: dict[str, Any] = {"group": group, "strides": [rng.choice((1, 1, 2)) for _ in kernel], "dilations": [rng.choice((1, 1, 2)) for _ in kernel]}
    pads = [rng.choice((0, 1, 1, 2)) for _ in range(2 * spatial)]
    attrs |= {"pads": pads} if rng.random() < 0.8 else {"auto_pad": rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    if any(d * (k - 1) >= n for d, k, n in zip(attrs["dilations"], kernel, shape[2:], strict=True)):
        return
    constant = rng.random() < 0.8
    if rng.random() < 0.2:
        w = g.known(g.array((channels, out // group, *kernel), np.float32, -1, 1), constant=True)
        attrs = {"group": group, "strides": attrs["strides"], "pads": [min(p, 1) for p in pads]}
        made = g.node("ConvTranspose", [x, w], **attrs)[0]
    else:
        w = g.known(g.array((out, channels // group, *kernel), np.float32, -1, 1), constant=constant)
        bias = [g.known(g.array((out,), np.float32), constant=constant)] if rng.random() < 0.5 else []
        made = g.node("Conv", [x, w, *bias], **attrs)[0]
    if rng.random() < 0.5:
        g.node(rng.choice(("Relu", "Sigmoid", "HardSwish", "Tanh")), [made])
    elif rng.random() < 0.5:
        vectors = [g.known(g.array((out,), np.float32, low, 2), constant=True) for low in (-2, -2, -2, 0.5)]
        g.node("BatchNormalization", [made, *vectors])


def pool(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(is_image)
    spatial = g.exact(x).ndim - 2
    if rng.random() < 0.25:
        g.node(rng.choice(("GlobalAveragePool", "GlobalMaxPool")), [x])
        return
    kernel = [rng.choice((1, 2, 3)) for _ in range(spatial)]
    pads = [rng.randint(0, k - 1) for k in kernel * 2]
    if any(k > n + pads[a] + pads[a + spatial] for a, (k, n) in enumerate(zip(kernel, g.exact(x).shape[2:], strict=True))):
        return
    attrs = {"kernel_shape": kernel, "strides": [rng.choice((1, 2)) for _ in kernel], "pads": pads}
    op = rng.choice(("MaxPool", "AveragePool"))
    g.node(op, [x], **attrs, **({"count_include_pad": rng.randint(0, 1)} if op == "AveragePool" else {}))


def reduce(g: GraphMaker) -> None:
    rng = g.rng
    op = rng.choice(("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"))
    x = g.pick(lambda a: is_float(a) or (a.dtype in (np.int32, np.int64) and op in ("Sum", "Max", "Min", "Prod")))
    rank = g.exact(x).ndim
    axes = rng.sample(range(rank), rng.randint(0, rank))
    signed = [a - rank if rng.random() < 0.3 else a for a in axes]
    operands = [x, g.ints(*signed)] if signed else [x]
    g.node(f"Reduce{op}", operands, keepdims=rng.randint(0, 1))


def arg_reduce(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype.kind in "fi" and a.ndim >= 1 and a.size > 0)
    axis = g.rng.randrange(-g.exact(x).ndim, g.exact(x).ndim)
    if g.rng.random() < 0.5:
        g.node(g.rng.choice(("ArgMax", "ArgMin")), [x], axis=axis, keepdims=g.rng.randint(0, 1), select_last_index=g.rng.randint(0, 1))
    else:
        k = g.ints(g.rng.randint(1, g.exact(x).shape[axis]))
        g.node("TopK", [x, k], 2, axis=axis, largest=g.rng.randint(0, 1))


def normalize(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: is_float(a) and a.ndim >= 1 and a.size > 0)
    array = g.exact(x)
    axis = rng.randrange(-array.ndim, array.ndim)
    op = rng.choice(NORMALIZATIONS)
    if op in ("Softmax", "LogSoftmax", "LpNormalization"):
        g.node(op, [x], axis=axis)
    elif op == "LayerNormalization":
        shape = array.shape[axis:]
        g.node(op, [x, *(g.known(g.array(shape, array.dtype, 0.5, 2)) for _ in range(rng.randint(1, 2)))], axis=axis, epsilon=1e-2)
    elif op == "InstanceNormalization" and array.ndim >= 3:
        g.node(op, [x, *(g.known(g.array(array.shape[1:2], array.dtype, 0.5, 2)) for _ in range(2))], epsilon=1e-2)
    elif array.ndim == 4:
        g.node(op, [x])


def reshape(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda _: True)
    array = g.exact(x)
    kind = rng.randrange(6)
    if kind == 0:
        rest, shape = array.size, []
        for _ in range(rng.randint(0, 3)):
            factor = rng.choice([d for d in (1, 2, 3, 4, 5, 8, 9, 16) if rest and rest % d == 0] or [1])
            shape.append(factor)
            rest //= factor
        shape.insert(rng.randint(0, len(shape)), -1 if rng.random() < 0.5 and array.size else rest)
        g.node("Reshape", [x, g.ints(*shape)])
    elif kind == 1:
        g.node("Flatten", [x], axis=rng.randint(0, array.ndim))
    elif kind == 2 and 1 in array.shape:
        g.node("Squeeze", [x, g.ints(array.shape.index(1))] if rng.random() < 0.5 or g.symbolic else [x])
    elif kind == 3 and array.ndim < 5:
        g.node("Unsqueeze", [x, g.ints(rng.randint(-array.ndim - 1, array.ndim))])
    elif kind == 4:
        g.node("Expand", [x, g.ints(*(rng.choice((2, 3)) if n == 1 else n for n in array.shape))])
    else:
        g.node("Tile", [x, g.ints(*(rng.choice((0, 1, 1, 1, 2, 3)) for _ in array.shape))])


def transpose(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.ndim >= 2)
    g.node("Transpose", [x], perm=g.rng.sample(range(g.exact(x).ndim), g.exact(x).ndim))


def space(g: GraphMaker) -> None:
    x = g.pick(lambda a: is_float(a) and a.ndim == 4)
    if g.rng.random() < 0.5:
        if g.exact(x).shape[1] % 4:
            return
        g.node("DepthToSpace", [x], blocksize=2, mode=g.rng.choice(("DCR", "CRD")))
    else:
        g.node("SpaceToDepth", [x], blocksize=2)


def shapes(g: GraphMaker) -> None:
    """A reshape by what Shape says."""
    x = g.pick(lambda a: a.ndim >= 2)
    shape = g.node("Shape", [x])[0]
    first = g.node("Gather", [shape, g.ints(0)], axis=0)[0]
    g.node("Reshape", [x, g.node("Concat", [first, g.ints(-1)], axis=0)[0]])


def gather(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.ndim >= 1 and a.size > 0)
    shape = g.exact(x).shape
    axis = rng.randrange(-len(shape), len(shape))
    n = shape[axis]
    dtype = rng.choice((np.int64, np.int32))
    op = rng.choice(("Gather", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"))
    if op == "Gather":
        g.node(op, [x, g.known(g.array([rng.choice((0, 1, 2, 5)) for _ in range(rng.randint(0, 2))], dtype, -n, n - 1))], axis=axis)
    elif op == "GatherElements":
        g.node(op, [x, g.known(g.array(shape, dtype, -n, n - 1))], axis=axis)
    elif op == "ScatterElements":
        indices = np.argsort(np.random.default_rng(rng.getrandbits(16)).random(shape), axis=axis).astype(np.int64)
        g.node(op, [x, g.known(indices), g.known(g.array(shape, g.exact(x).dtype))], axis=axis)
    else:
        depth = rng.randint(1, len(shape))
        count = rng.choice((1, 2, 4))
        columns = [np.random.default_rng(rng.getrandbits(16)).permutation(max(n, count))[:count] % n for n in shape[:depth]]
        rows = np.stack(columns, -1).astype(np.int64)
        if op == "GatherND":
            g.node(op, [x, g.known(rows)])
        elif len({tuple(row) for row in rows.tolist()}) == count:
            g.node(op, [x, g.known(rows), g.known(g.array((count, *shape[depth:]), g.exact(x).dtype))])


def join(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.ndim >= 1)
    array = g.exact(x)
    axis = rng.randrange(-array.ndim, array.ndim)
    rest = [n for a, n in enumerate(array.shape) if a != axis % array.ndim]
    parts = [x]
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.6:
            parts.append(g.pick(lambda a: a.dtype == array.dtype and a.ndim == array.ndim and np.delete(a.shape, axis).tolist() == rest))
        else:
            parts.append(g.known(g.array([*rest[: axis % array.ndim], rng.choice(SIZES), *rest[axis % array.ndim :]], array.dtype)))
    g.node("Concat", parts, axis=axis)


def cut(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.ndim >= 1)
    shape = g.exact(x).shape
    axes = rng.sample(range(len(shape)), rng.randint(1, len(shape)))
    if rng.random() < 0.3:
        n = shape[axes[0]]
        first = rng.randint(0, n)
        g.node("Split", [x, g.ints(first, n - first)], 2, axis=axes[0])
        return
    bounds = [[rng.randint(-shape[a] - 2, shape[a] + 2) for a in axes] for _ in range(2)]
    steps = [rng.choice((1, 1, 1, 2, -1, -2, 3)) for _ in axes]
    g.node("Slice", [x, g.ints(*bounds[0]), g.ints(*bounds[1]), g.ints(*axes), g.ints(*steps)])


def pad(g: GraphMaker) -> None:
    x = g.pick(lambda a: is_float(a) and a.size > 0)
    mode = g.rng.choice(("constant", "constant", "edge", "reflect", "wrap"))
    most = [min(3, n - 1) if mode == "reflect" else min(3, n) for n in g.exact(x).shape]
    g.node("Pad", [x, g.ints(*(g.rng.randint(0, m) for m in most * 2))], mode=mode)


def cumulative(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.dtype in (np.float32, np.int32, np.int64) and a.ndim >= 1)
    axis = g.known(np.array(rng.randrange(g.exact(x).ndim), np.int64), constant=True)
    g.node("CumSum", [x, axis], exclusive=rng.randint(0, 1), reverse=rng.randint(0, 1))


def triangle(g: GraphMaker) -> None:
    g.node("Trilu", [g.pick(lambda a: a.ndim >= 2)], upper=g.rng.randint(0, 1))


def one_hot(g: GraphMaker) -> None:
    x = g.pick(lambda a: a.dtype in (np.int64, np.int32) and a.ndim <= 3)
    g.node("OneHot", [x, g.known(np.array(5, np.int64), constant=True), g.known(np.array([0, 1], np.float32), constant=True)])


def quantize(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.dtype == np.float32)
    dtype = rng.choice((np.uint8, np.int8))
    scale = g.known(np.array(rng.choice((0.03, 0.1, 0.5)), np.float32), constant=True)
    zero = g.known(np.array(rng.randint(0, 100), dtype), constant=True)
    made = g.node("QuantizeLinear", [x, scale, zero])[0]
    if rng.random() < 0.7:
        g.node("DequantizeLinear", [made, scale, zero])


def resize(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.dtype == np.float32 and a.ndim == 4 and a.size > 0)
    scales = np.array([1, 1, rng.choice((0.5, 1, 1.6, 2, 3)), rng.choice((0.5, 1, 2, 2.5))], np.float32)
    transform = rng.choice(("half_pixel", "asymmetric", "align_corners"))
    g.node("Resize", [x, "", g.known(scales, constant=True)], mode=rng.choice(("nearest", "linear")), coordinate_transformation_mode=transform)


def recurrent(g: GraphMaker) -> None:
    rng = g.rng
    x = g.pick(lambda a: a.dtype == np.float32 and a.ndim == 3 and a.size > 0 and a.shape[0] <= 9)
    op, hidden = rng.choice(("LSTM", "GRU", "RNN")), rng.choice((1, 3, 8))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    w = g.known(g.array((1, gates * hidden, g.exact(x).shape[2]), np.float32, -0.5, 0.5), constant=True)
    r = g.known(g.array((1, gates * hidden, hidden), np.float32, -0.5, 0.5), constant=True)
    g.node(op, [x, w, r], 2, hidden_size=hidden)


FAMILIES = (
    *(unary, unary, unary, binary, binary, binary, compare, logic, where, clip, cast, cast, integer_unary),
    *(matmul, matmul, conv, conv, conv, pool, reduce, reduce, arg_reduce, normalize, normalize, reshape, reshape, reshape),
    *(transpose, transpose, space, shapes, gather, gather, join, join, cut, cut, pad, cumulative, triangle, one_hot, quantize, resize, recurrent),
    graph_input,
)
"""More often those that models are made of."""
