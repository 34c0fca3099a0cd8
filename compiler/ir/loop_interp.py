"""What Loop IR means, in numpy: a function is translated to Python source and run, every access checked against its buffer.

A register is a one-dimensional array of its lanes, a scalar one of one lane. Each operation is rounded to its own dtype; ``fma`` of floats
is computed in float64 and rounded once. Workers run one after another, so a parallel loop that needs another worker's results is wrong
here as it is on threads. Scratch begins as NaN (integers: all bits set), so that reading what was not written shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from compiler.errors import InternalError
from compiler.ir.intexpr import Apply, Dim, IntExpr, Sym, evaluate
from compiler.ir.loop import Access, Bind, Buffer, For, Function, If, Let, Load, LoopKind, Prefetch, Stmt, Store, VecType
from compiler.ir.loop_text import print_stmt
from compiler.ir.scalar import FUNCTIONS, Array, cast_array
from compiler.ir.types import DType, compute_dtype, is_coded


def run_function(function: Function, arrays: Sequence[Array | None], params: Mapping[str, int] | None = None, workers: int = 1) -> None:
    """Runs function on flat arrays in the order of its buffers, which it writes to; see ``LoopInterpreter``."""
    LoopInterpreter(function)(arrays, params, workers)


class LoopInterpreter:
    """A function ready to run; ``source`` is its Python."""

    def __init__(self, function: Function) -> None:
        self.function = function
        translator = _Translator(function)
        self.source = translator.source()
        namespace = {**_HELPERS, **translator.constants, "fail": self._fail}
        exec(compile(self.source, f"<kernel {function.name}>", "exec"), namespace)  # the source is made here, of checked names and numbers
        self._statements = translator.statements
        self._run: Callable[..., None] = namespace["run"]

    def __call__(self, arrays: Sequence[Array | None], params: Mapping[str, int] | None = None, workers: int = 1) -> None:
        """Every worker's part, in order. ``arrays``: contiguous, one for each buffer, with its dtype and at least its size; scratch is made
        here and its array not looked at. Raises InternalError, naming the statement, for an access outside a buffer."""
        values = dict(params or {})
        missing = [name for name in self.function.params if name not in values]
        if missing or len(arrays) != len(self.function.buffers):
            raise InternalError(f"params {missing} are missing, or {len(arrays)} arrays are not one for each buffer", where=self._where())
        bound = [self._bind(buffer, array, values) for buffer, array in zip(self.function.buffers, arrays, strict=True)]
        dims = [values[name] for name in self.function.params]
        with np.errstate(all="ignore"):
            for worker in range(workers):
                private = [_poison(b, values) if b.access is Access.SCRATCH else a for b, a in zip(self.function.buffers, bound, strict=True)]
                self._run(private, dims, worker, workers)

    def _bind(self, buffer: Buffer, array: Array | None, values: Mapping[str, int]) -> Array:
        if buffer.access is Access.SCRATCH:
            return _NOTHING
        size = evaluate(buffer.size, values)
        if array is None or array.dtype != buffer.dtype.numpy or not array.flags.c_contiguous or array.size < size:
            met = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise InternalError(f"buffer {buffer.name} is {buffer.dtype.value}[{size}] in memory, not {met}", where=self._where())
        return array.reshape(-1)[:size]

    def _where(self) -> str:
        return f"kernel {self.function.name}"

    def _fail(self, statement: int, index: int, stride: int, lanes: int, size: int) -> NoReturn:
        last = index + stride * (lanes - 1)
        text = print_stmt(self._statements[statement])
        raise InternalError(f"elements {index} to {last} of a buffer of {size}", where=f"{self._where()}, statement {text}")


_NOTHING: Array = np.empty(0)


def _poison(buffer: Buffer, values: Mapping[str, int]) -> Array:
    size = evaluate(buffer.size, values)
    return np.full(size * buffer.dtype.itemsize, 0xFF, np.uint8).view(buffer.dtype.numpy)


class _Translator:
    """One function as Python source; ``constants`` are the arrays it names, ``statements`` those whose accesses can fail."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._lines: list[str] = []
        self._indent = "    "
        self._interned: dict[object, str] = {}
        self.constants: dict[str, Array] = {}
        self.statements: list[Stmt] = []

    def source(self) -> str:
        """The definition of ``run(buffers, params, worker, workers)``."""
        for number, buffer in enumerate(self._function.buffers):
            self._emit(f"b_{buffer.name} = buffers[{number}]")
            self._emit(f"n_{buffer.name} = b_{buffer.name}.size")
        for number, name in enumerate(self._function.params):
            self._emit(f"{_symbol(name)} = params[{number}]")
        self._block(self._function.body)
        return "\n".join(["def run(buffers, params, worker, workers):", *self._lines, "    return", ""])

    def _emit(self, line: str) -> None:
        self._lines.append(self._indent + line)

    def _constant(self, key: object, array: Array) -> str:
        """A name for an array that does not change; ``key`` tells it from others."""
        name = self._interned.setdefault(key, f"k{len(self._interned)}")
        self.constants[name] = array
        return name

    def _inner(self, head: str, body: tuple[Stmt, ...], last: str = "pass") -> None:
        self._emit(head)
        self._indent += "    "
        self._block(body)
        self._emit(last)
        self._indent = self._indent[:-4]

    def _block(self, body: tuple[Stmt, ...]) -> None:
        for stmt in body:
            match stmt:
                case Let():
                    self._emit(f"r{stmt.result.id} = {self._let(stmt)}")
                case Load():
                    self._load(stmt)
                case Store():
                    self._store(stmt)
                case Bind():
                    self._emit(f"{_symbol(stmt.name)} = int(r{stmt.value.id}[0])")
                case If():
                    self._inner(f"if {_index(stmt.lhs)} < {_index(stmt.rhs)}:", stmt.then)
                    self._inner("else:", stmt.orelse)
                case For():
                    self._for(stmt)
                case Prefetch():
                    pass

    def _for(self, loop: For) -> None:
        start, stop = _index(loop.start), _index(loop.stop)
        for inner, before in loop.carried:
            self._emit(f"r{inner.id} = r{before.id}")
        if loop.kind is LoopKind.PARALLEL:
            bounds = f"*share({start}, {stop}, {loop.step}, worker, workers)"
        else:
            bounds = f"{start}, {stop}"
        inside = ", ".join(f"r{inner.id}" for inner, _ in loop.carried)
        advance = f"{inside} = {', '.join(f'r{reg.id}' for reg in loop.yields)}" if inside else "pass"
        self._inner(f"for {_symbol(loop.var)} in range({bounds}, {loop.step}):", loop.body, advance)
        for result, (inner, _) in zip(loop.results, loop.carried, strict=True):
            self._emit(f"r{result.id} = r{inner.id}")

    # -- memory -------------------------------------------------------------------------------------------------

    def _lanes(self, type_: VecType, count: Dim | None) -> int | str:
        """Lanes in use: a number, or a variable where they are known at run time only."""
        if count is None or isinstance(count, int):
            return type_.lanes if count is None else count
        self._emit(f"c = {_index(count)}")
        return "c"

    def _place(self, stmt: Load | Store, lanes: int | str) -> str:
        """Checks the access; the subscript of its elements."""
        number = len(self.statements)
        self.statements.append(stmt)
        self._emit(f"i = {_index(stmt.index)}")
        size = f"n_{stmt.buffer}"
        if stmt.stride in (0, 1) or lanes == 1:
            extent = lanes if stmt.stride == 1 else 1
            self._emit(f"if i < 0 or {extent} < 1 or i + {extent} > {size}: fail({number}, i, 1, {extent}, {size})")
            return f"i:i + {extent}"
        self._emit(f"s = {_index(stmt.stride)}")
        self._emit(f"e = i + s * ({lanes} - 1)")
        self._emit(f"if min(i, e) < 0 or max(i, e) >= {size}: fail({number}, i, s, {lanes}, {size})")
        return f"i + s * {self._iota(lanes, DType.INT64) if isinstance(lanes, int) else f'arange({lanes})'}"

    def _iota(self, lanes: int, dtype: DType) -> str:
        return self._constant(("iota", lanes, dtype), np.arange(lanes).astype(dtype.numpy))

    def _load(self, stmt: Load) -> None:
        type_ = stmt.result.type
        lanes = self._lanes(type_, stmt.count)
        copy = f"repeat({lanes})" if stmt.stride == 0 else "copy()"
        values = f"b_{stmt.buffer}[{self._place(stmt, lanes)}].{copy}"
        if lanes != type_.lanes:
            zeros = self._literal(0, VecType(type_.dtype, type_.lanes))
            values = f"concatenate(({values}, {zeros}))[:{type_.lanes}]"
        self._emit(f"r{stmt.result.id} = {values}")

    def _store(self, stmt: Store) -> None:
        lanes = self._lanes(stmt.value.type, stmt.count)
        self._emit(f"b_{stmt.buffer}[{self._place(stmt, lanes)}] = r{stmt.value.id}[:{lanes}]")

    # -- values -------------------------------------------------------------------------------------------------

    def _literal(self, value: float | int | bool, type_: VecType) -> str:
        return self._constant((repr(value), type_), np.full(type_.lanes, np.array(value).astype(type_.dtype.numpy)))

    def _let(self, let: Let) -> str:
        args = [f"r{reg.id}" for reg in let.args]
        type_, value = let.result.type, let.value
        if let.op in FUNCTIONS:
            return _call(let.op, args, [reg.type for reg in let.args], type_)
        match let.op, value:
            case "const", bool() | int() | float():
                return self._literal(value, type_)
            case "index", int() | IntExpr():
                return f"array([{_index(value)}])"
            case "shuffle", tuple():
                return f"concatenate(({args[0]}, {args[1]}))[{self._constant(value, np.array(value))}]"
            case "extract", int():
                return f"{args[0]}[{value}:{value + 1}]"
            case "insert", int():
                return f"concatenate(({args[0]}[:{value}], {args[1]}, {args[0]}[{value + 1}:]))"
            case "splat", None:
                return f"{args[0]}.repeat({type_.lanes})"
            case "iota", None:
                return self._iota(type_.lanes, type_.dtype)
            case "bitcast", None:
                return f"{args[0]}.view({type_.dtype.value})"
            case (("reduce_add" | "reduce_mul" | "reduce_max" | "reduce_min"), None):
                return f"reduce(fn_{let.op.removeprefix('reduce_')}, {args[0]})"
        raise InternalError("no such operation", where=f"kernel {self._function.name}, statement {print_stmt(let)}")


def _symbol(name: str) -> str:
    return "v_" + name.replace(".", "_dot_")


@lru_cache(maxsize=1 << 14)
def _index(expr: Dim) -> str:
    """An index expression as Python's."""
    if isinstance(expr, int):
        return str(expr)
    terms = ["*".join([*([] if c == 1 else [str(c)]), *map(_atom, monomial)]) for monomial, c in expr.terms]
    return " + ".join([*terms, str(expr.const)] if expr.const else terms)


def _atom(atom: Sym | Apply) -> str:
    if isinstance(atom, Sym):
        return _symbol(atom.name)
    lhs, rhs = _index(atom.lhs), _index(atom.rhs)
    if atom.op in ("min", "max"):
        return f"{atom.op}({lhs}, {rhs})"
    return f"(({lhs}) {'//' if atom.op == 'floordiv' else '%'} ({rhs}))"


def _call(fn: str, args: list[str], types: list[VecType], result: VecType) -> str:
    """A function of ``scalar.FUNCTIONS`` on named operands, rounded to the result's dtype."""
    dtype = result.dtype
    if fn == "cast":
        return f"cast({args[0]}, {dtype.value})"
    if is_coded(types[0].dtype):
        wide = [VecType(compute_dtype(type_.dtype), type_.lanes) for type_ in (*types, result)]
        decoded = [f"cast({arg}, {type_.dtype.value})" for arg, type_ in zip(args, wide[:-1], strict=True)]
        return f"cast({_call(fn, decoded, wide[:-1], wide[-1])}, {dtype.value})"
    if fn == "fma" and dtype.is_float and dtype is not DType.FLOAT64:
        return f"({args[0]}.astype(f64) * {args[1]} + {args[2]}).astype({dtype.value})"
    if fn in _INFIX and dtype in (DType.FLOAT32, DType.FLOAT64) and types[0].dtype is dtype:
        return f" {_INFIX[fn]} ".join(args)
    return f"fn_{fn}({', '.join(args)}).astype({dtype.value}, copy=False)"


_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def _share(start: int, stop: int, step: int, worker: int, workers: int) -> tuple[int, int]:
    """A worker's contiguous part of a range."""
    trips = max(0, -(-(stop - start) // step))
    first, last = (trips * w // workers for w in (worker, worker + 1))
    return start + first * step, min(stop, start + last * step)


def _reduce(fn: Callable[[Array, Array], Array], x: Array) -> Array:
    """Lanes folded pairwise: the halves, until one lane is left; each step in x's dtype."""
    while x.size > 1:
        half = x.size // 2
        x = fn(x[:half], x[half:]).astype(x.dtype, copy=False)
    return x


_HELPERS: dict[str, Any] = {
    **{dtype.value: dtype.numpy for dtype in DType if dtype is not DType.BOOL},
    "bool": np.dtype(np.bool_),
    **{f"fn_{name}": function.numpy for name, function in FUNCTIONS.items()},
    "arange": np.arange,
    "array": np.array,
    "concatenate": np.concatenate,
    "reduce": _reduce,
    "share": _share,
    "cast": lambda x, dtype: cast_array(x, DType.of(dtype)),
}
