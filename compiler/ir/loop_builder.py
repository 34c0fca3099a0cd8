"""LoopBuilder: writes a Loop IR function statement by statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from compiler.errors import STATUS_WORDS
from compiler.ir.intexpr import Dim, IntExpr, sym
from compiler.ir.loop import (
    Access,
    Bind,
    Buffer,
    For,
    Function,
    If,
    Let,
    LetValue,
    Load,
    LoopKind,
    Prefetch,
    Reg,
    Stmt,
    Store,
    VecType,
)
from compiler.ir.scalar import FUNCTIONS, Arg, Const, Scalar, parts
from compiler.ir.types import DType


class Loop:
    """A loop being written: ``var`` is its variable, ``carried`` its values inside; ``results`` are there once it is closed."""

    def __init__(self, var: IntExpr, carried: tuple[Reg, ...]) -> None:
        self.var = var
        self.carried = carried
        self.yields: tuple[Reg, ...] = ()
        self.results: tuple[Reg, ...] = ()

    def yield_(self, values: Sequence[Reg]) -> None:
        """Set the carried values of the next iteration."""
        self.yields = tuple(values)


class LoopBuilder:
    """Emits into the innermost open block. Registers and loop variables get unique names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._buffers: list[Buffer] = []
        self._blocks: list[list[Stmt]] = [[]]
        self._next_reg = 0
        self._next_var = 0
        self._taken: set[str] = set()

    # -- buffers ------------------------------------------------------------------------------------------------

    def buffer(self, name: str, dtype: DType, size: Dim, access: Access) -> Buffer:
        """A further buffer parameter, in order."""
        buffer = Buffer(name, dtype, size, access)
        self._buffers.append(buffer)
        return buffer

    def reserve(self, names: Iterable[str]) -> None:
        """Names of symbols that are known from outside: no loop variable gets one of them."""
        self._taken.update(names)

    def status(self) -> Buffer:
        """The buffer in which what cannot be done is reported, declared where it is asked for the first time."""
        found = next((buffer for buffer in self._buffers if buffer.access is Access.STATUS), None)
        return found or self.buffer("status", DType.INT64, STATUS_WORDS, Access.STATUS)

    # -- values -------------------------------------------------------------------------------------------------

    def reg(self, type_: VecType) -> Reg:
        """A fresh register name."""
        self._next_reg += 1
        return Reg(self._next_reg, type_)

    def let(self, op: str, args: Sequence[Reg], type_: VecType, value: LetValue = None) -> Reg:
        """``op`` of args with an explicit result type."""
        result = self.reg(type_)
        self._blocks[-1].append(Let(result, op, tuple(args), value))
        return result

    def op(self, fn: str, *args: Reg) -> Reg:
        """A scalar function applied lane by lane, its result type derived."""
        kind = FUNCTIONS[fn].result
        dtype = DType.BOOL if kind == "bool" else args[1 if kind == "second" else 0].type.dtype
        return self.let(fn, args, VecType(dtype, args[0].type.lanes))

    def const(self, value: float | int | bool, type_: VecType) -> Reg:
        """A literal in every lane."""
        return self.let("const", (), type_, value)

    def cast(self, x: Reg, dtype: DType) -> Reg:
        """x converted lane by lane; x itself where it already has dtype."""
        return x if x.type.dtype is dtype else self.let("cast", (x,), VecType(dtype, x.type.lanes))

    def splat(self, x: Reg, lanes: int) -> Reg:
        """A scalar in every lane."""
        return x if lanes == 1 else self.let("splat", (x,), VecType(x.type.dtype, lanes))

    def fma(self, a: Reg, b: Reg, c: Reg) -> Reg:
        """``a * b + c``, rounded once."""
        result = self.reg(c.type)
        self._blocks[-1].append(Let(result, "fma", (a, b, c)))
        return result

    def shuffle(self, a: Reg, b: Reg, lanes: tuple[int, ...]) -> Reg:
        """Lanes of a (0..n-1) and b (n..2n-1)."""
        return self.let("shuffle", (a, b), VecType(a.type.dtype, len(lanes)), lanes)

    def reduce(self, op: str, x: Reg) -> Reg:
        """All lanes of x folded by ``reduce_add``, ``reduce_mul``, ``reduce_max`` or ``reduce_min``; a scalar is itself."""
        return x if x.type.lanes == 1 else self.let(op, (x,), VecType(x.type.dtype, 1))

    def first_lanes(self, count: Dim, lanes: int) -> Reg:
        """True in the lanes below ``count``."""
        numbers = VecType(DType.INT32, lanes)
        limit = self.const(count, numbers) if isinstance(count, int) else self.splat(self.cast(self.index_value(count), DType.INT32), lanes)
        return self.op("lt", self.let("iota", (), numbers), limit)

    def any_lane(self, flags: Sequence[Reg]) -> IntExpr:
        """1 where some lane of some vectors of bools is true, else 0."""
        found = flags[0]
        for flag in flags[1:]:
            found = self.op("or", found, flag)
        return self.bind(self.cast(self.reduce("reduce_max", self.cast(found, DType.INT32)), DType.INT64))

    def index_value(self, expr: Dim) -> Reg:
        """An index expression as an i64 scalar."""
        return self.let("index", (), VecType(DType.INT64, 1), expr)

    def bind(self, value: Reg, stem: str = "x") -> IntExpr:
        """An i64 scalar as a symbol for later indices."""
        name = self._fresh(stem)
        self._blocks[-1].append(Bind(name, value))
        return sym(name)

    def scalar(self, expr: Scalar, args: Sequence[Reg]) -> Reg:
        """A scalar expression inlined over registers, one per operand; shared sub-expressions are computed once."""
        (result,) = self.scalars((expr,), args)
        return result

    def scalars(self, exprs: Sequence[Scalar], args: Sequence[Reg]) -> list[Reg]:
        """Several scalar expressions over the same operands."""
        lanes = max((r.type.lanes for r in args), default=1)
        done: dict[Scalar, Reg] = {}
        for part in parts(*exprs):
            if isinstance(part, Arg):
                given = args[part.index]
                done[part] = given if given.type.lanes == lanes else self.splat(given, lanes)
            elif isinstance(part, Const):
                done[part] = self.const(part.value, VecType(part.dtype, lanes))
            else:
                done[part] = self.let(part.fn, [done[arg] for arg in part.args], VecType(part.dtype, lanes))
        return [done[expr] for expr in exprs]

    # -- memory -------------------------------------------------------------------------------------------------

    def load(self, buffer: Buffer, index: Dim, lanes: int = 1, *, stride: Dim = 1, count: Dim | None = None) -> Reg:
        """``lanes`` elements from index on, ``stride`` apart (0: one element in every lane)."""
        result = self.reg(VecType(buffer.dtype, lanes))
        self._blocks[-1].append(Load(result, buffer.name, index, stride, None if count == lanes else count))
        return result

    def store(self, buffer: Buffer, index: Dim, value: Reg, *, stride: Dim = 1, count: Dim | None = None) -> None:
        """The first ``count`` lanes of value to index on."""
        self._blocks[-1].append(Store(buffer.name, index, value, stride, None if count == value.type.lanes else count))

    def prefetch(self, buffer: Buffer, index: Dim) -> None:
        self._blocks[-1].append(Prefetch(buffer.name, index))

    # -- control ------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, stem: str, start: Dim, stop: Dim, step: int = 1, *, carried: Sequence[Reg] = (), parallel: bool = False) -> Iterator[Loop]:
        """A loop around what is emitted inside; with ``carried``, end the body with ``yield_``."""
        var = self._fresh(stem)
        inner = tuple(self.reg(r.type) for r in carried)
        loop = Loop(sym(var), inner)
        self._blocks.append([])
        yield loop
        body = tuple(self._blocks.pop())
        results = tuple(self.reg(r.type) for r in carried)
        loop.results = results
        kind = LoopKind.PARALLEL if parallel else LoopKind.SERIAL
        pairs = tuple(zip(inner, carried, strict=True))
        self._blocks[-1].append(For(var, start, stop, step, body, kind, pairs, loop.yields, results))

    @contextmanager
    def if_less(self, lhs: Dim, rhs: Dim) -> Iterator[None]:
        """What is emitted inside runs when ``lhs < rhs``."""
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self._blocks[-1].append(If(lhs, rhs, body))

    def function(self, params: tuple[str, ...] = ()) -> Function:
        """The finished function."""
        (body,) = self._blocks
        return Function(self.name, tuple(self._buffers), tuple(body), params)

    def _fresh(self, stem: str) -> str:
        self._next_var += 1
        while f"{stem}{self._next_var}" in self._taken:
            self._next_var += 1
        return f"{stem}{self._next_var}"
