"""Hypothesis strategies for dims, attributes, graphs and kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from compiler.ir.graph import Attr, Constant, Graph, Node, Region, Value
from compiler.ir.intexpr import Dim, floordiv, maximum, minimum, mod, sym
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Arg, Const, Scalar, call, cast
from compiler.ir.types import DType, TensorType

SYMBOLS = ("N", "M", "seq_len")
NAMES = st.one_of(st.from_regex(r"[a-z][a-z0-9_./:-]{0,6}", fullmatch=True), st.text(min_size=1, max_size=6))


def dims(symbols: tuple[str, ...] = SYMBOLS) -> st.SearchStrategy[Dim]:
    """Integer expressions over symbols."""
    leaves = st.one_of(st.integers(-9, 64), st.sampled_from(symbols).map(sym))
    divisors = st.integers(1, 9)

    def grow(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
            st.tuples(inner, divisors).map(lambda p: floordiv(*p)),
            st.tuples(inner, divisors).map(lambda p: mod(*p)),
            st.tuples(inner, inner).map(lambda p: minimum(*p)),
            st.tuples(inner, inner).map(lambda p: maximum(*p)),
        )

    return st.recursive(leaves, grow, max_leaves=6)


def tensor_types() -> st.SearchStrategy[TensorType]:
    """Types with symbolic dims; of rank 2 and more also blocked."""

    def blocked(type_: TensorType) -> st.SearchStrategy[TensorType]:
        return st.sampled_from((1, 1, 4, 8)).map(type_.with_block) if type_.rank >= 2 else st.just(type_)

    shapes = st.lists(dims(), max_size=4).map(tuple)
    return st.builds(TensorType, st.sampled_from(DType), shapes).flatmap(blocked)


def scalars() -> st.SearchStrategy[Scalar]:
    """Scalar expressions over two operands."""
    leaves = st.one_of(
        st.builds(Arg, st.integers(0, 1), st.just(DType.FLOAT32)),
        st.builds(Const, st.one_of(st.floats(width=32), st.integers(-5, 5)), st.just(DType.FLOAT32)),
    )

    def grow(inner: st.SearchStrategy[Scalar]) -> st.SearchStrategy[Scalar]:
        return st.one_of(
            st.builds(lambda fn, a, b: call(fn, a, b), st.sampled_from(("add", "mul", "max")), inner, inner),
            st.builds(lambda a: cast(cast(a, DType.INT8), DType.FLOAT32), inner),
        )

    return st.recursive(leaves, grow, max_leaves=5)


def attrs() -> st.SearchStrategy[Attr]:
    """Attributes of every kind."""
    coordinates = st.lists(dims(("i0", "i1", "N")), max_size=2).map(tuple)
    fills = st.one_of(st.booleans(), st.integers(-3, 3), st.floats())
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(DType),
        dims(),
        scalars(),
        st.builds(Region, coordinates, coordinates, st.one_of(st.none(), st.integers(0, 3)), coordinates, fills),
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@st.composite
def arrays(draw: Any) -> np.ndarray[Any, Any]:
    """Small arrays of any element type and any bits, up to 24 elements."""
    shape = draw(st.lists(st.integers(0, 4), max_size=2))
    dtype = draw(st.sampled_from(DType))
    size = int(np.prod(shape, dtype=int))
    if dtype is DType.STRING:
        texts: np.ndarray[Any, Any] = np.empty(size, object)
        texts[:] = draw(st.lists(st.text(max_size=3), min_size=size, max_size=size))
        return texts.reshape(shape)
    data = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    flat = np.frombuffer(data, np.uint8) & (1 if dtype is DType.BOOL else (1 << min(dtype.bits, 8)) - 1)
    return flat.view(dtype.numpy).reshape(shape)


@st.composite
def graphs(draw: Any, depth: int = 2, around: tuple[Value, ...] = (), used: set[str] | None = None) -> Graph:
    """Graphs that are well formed as text (their ops are made up): regions, absent inputs, constants, every kind of attribute."""
    taken: set[str] = set() if used is None else used

    def value(type_: TensorType | None = None) -> Value:
        name = draw(NAMES.filter(lambda n: n not in taken))
        taken.add(name)
        return Value(name, draw(tensor_types()) if type_ is None else type_)

    def attr_dict() -> dict[str, Attr]:
        return draw(st.dictionaries(st.one_of(st.sampled_from(("axis", "none", "input")), NAMES), attrs(), max_size=2))

    inputs = tuple(value() for _ in range(draw(st.integers(0, 2))))
    constants = {}
    for array in draw(st.lists(arrays(), max_size=2)):
        constants[value(TensorType(DType.of(array.dtype), array.shape))] = Constant(array)
    known, nodes = [*around, *inputs, *constants], []
    for _ in range(draw(st.integers(0, 3))):
        operands = st.sampled_from([None, *known])
        regions = [draw(graphs(depth - 1, tuple(known), taken))] if depth and draw(st.booleans()) else []
        reads = draw(st.lists(operands, max_size=3))
        outputs = tuple(value() for _ in range(draw(st.integers(1, 2))))
        label = draw(st.one_of(st.just(""), NAMES))
        nodes.append(Node(draw(st.sampled_from(("add", "group", "region"))), tuple(reads), outputs, attr_dict(), tuple(regions), label))
        known += outputs
    results = draw(st.lists(st.sampled_from(known), max_size=2)) if known else []
    return Graph(draw(NAMES), inputs, tuple(results), tuple(nodes), constants, attr_dict())


ROOM = 160
"""Elements in each buffer of ``kernels``."""

_EXACT = ("add", "sub", "mul", "max", "min", "div")
_EXACT_UNARY = ("neg", "abs", "floor", "ceil", "rint", "trunc", "sqrt", "sign")
_INTEGER = ("add", "sub", "mul", "max", "min", "and", "or", "xor", "div", "mod")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


@st.composite
def kernels(draw: Any) -> Function:
    """Functions that read ``x`` (f32) and ``n`` (i32) and write ``y`` and ``m``, all of ROOM elements, through every kind of statement.

    Their operations are those with one exact result, so that any two executions agree to the bit. Iterations of the outer loop,
    which may be parallel, write to separate parts.
    """
    b = LoopBuilder("random")
    x = b.buffer("x", DType.FLOAT32, ROOM, Access.READ)
    n = b.buffer("n", DType.INT32, ROOM, Access.READ)
    y = b.buffer("y", DType.FLOAT32, ROOM, Access.WRITE)
    m = b.buffer("m", DType.INT32, ROOM, Access.WRITE)
    lanes = draw(st.sampled_from((1, 2, 4, 8)))
    real, whole = VecType(DType.FLOAT32, lanes), VecType(DType.INT32, lanes)

    def load(buffer: Buffer, at: Dim) -> Reg:
        stride = draw(st.sampled_from((0, 1, 1, 3)))
        count = draw(st.one_of(st.none(), st.integers(1, lanes))) if stride else None
        return b.load(buffer, at + draw(st.integers(0, 40)), lanes, stride=stride, count=count)

    def step(pool: dict[VecType, list[Reg]], at: Dim, base: Dim, depth: int) -> None:
        def pick(type_: VecType) -> Reg:
            return draw(st.sampled_from(pool[type_]))

        kind = draw(st.sampled_from(("load", "real", "unary", "fma", "whole", "select", "cast", "lanes", "reduce", "index", "bind", "loop", "if")))
        if kind == "load":
            pool[real].append(load(x, at))
            pool[whole].append(load(n, at))
        elif kind == "real":
            pool[real].append(b.op(draw(st.sampled_from(_EXACT)), pick(real), pick(real)))
        elif kind == "unary":
            pool[real].append(b.op(draw(st.sampled_from(_EXACT_UNARY)), pick(real)))
        elif kind == "fma":
            pool[real].append(b.fma(pick(real), pick(real), pick(real)))
        elif kind == "whole":
            pool[whole].append(b.op(draw(st.sampled_from(_INTEGER)), pick(whole), pick(whole)))
        elif kind == "select":
            condition = b.op(draw(st.sampled_from(_COMPARE)), pick(real), pick(real))
            pool[real].append(b.op("select", condition, pick(real), pick(real)))
        elif kind == "cast":
            pool[real].append(b.cast(pick(whole), DType.FLOAT32))
            pool[real].append(b.let("bitcast", (pick(whole),), real))
        elif kind == "lanes" and lanes > 1:
            picks = tuple(draw(st.lists(st.integers(0, 2 * lanes - 1), min_size=lanes, max_size=lanes)))
            pool[real].append(b.shuffle(pick(real), pick(real), picks))
            one = b.let("extract", (pick(real),), VecType(DType.FLOAT32, 1), draw(st.integers(0, lanes - 1)))
            pool[real].append(b.let("insert", (pick(real), one), real, draw(st.integers(0, lanes - 1))))
            pool[whole].append(b.let("iota", (), whole))
        elif kind == "reduce":
            op = draw(st.sampled_from(("reduce_add", "reduce_max", "reduce_min", "reduce_mul")))
            pool[real].append(b.splat(b.reduce(op, pick(real)), lanes))
        elif kind == "index":
            pool[whole].append(b.splat(b.cast(b.index_value(at), DType.INT32), lanes))
        elif kind == "bind":
            name = b.bind(b.index_value(at + 3))
            pool[real].append(b.load(x, minimum(floordiv(name, 2) + mod(name, 3), 40), lanes))
        elif kind == "loop" and depth:
            trips, stride = draw(st.integers(0, 3)), draw(st.integers(1, 2))
            first = [pick(real), pick(whole)]
            with b.loop("i", 0, trips * stride, stride, carried=first) as loop:
                inner = {real: [*pool[real], loop.carried[0]], whole: [*pool[whole], loop.carried[1]]}
                step(inner, at + loop.var, base, depth - 1)
                loop.yield_([inner[real][-1], inner[whole][-1]])
            pool[real].append(loop.results[0])
            pool[whole].append(loop.results[1])
        elif kind == "if":
            with b.if_less(at, draw(st.integers(0, 60))):
                b.store(y, base + draw(st.integers(0, 8)), pick(real), count=draw(st.integers(1, lanes)))

    with b.loop("p", 0, 4, parallel=draw(st.booleans())) as outer:
        base = outer.var * 40
        literal = draw(st.floats(-8, 8, width=32))
        pool = {real: [b.const(literal, real), load(x, outer.var)], whole: [load(n, outer.var)]}
        for _ in range(draw(st.integers(1, 8))):
            step(pool, outer.var, base, 2)
        b.store(y, base, pool[real][-1])
        b.store(m, base, pool[whole][-1], stride=draw(st.integers(1, 3)), count=draw(st.integers(1, lanes)))
    return b.function()
