"""The rules of Loop IR, checked.

- Functions and buffers are called by identifiers, as are params, loop variables and bound names, which may also have dots;
  buffers' names are unique.
- A register is defined once, before it is read, and is seen in the block that defines it and in the blocks inside.
- Indices use params, variables of the loops around and names bound before, in the same way; none of these hides another.
- A buffer's size uses params alone.
- The operands, literal and result of an operation fit it (``_verify_let``); all lanes of an elementwise one are as many.
- Loads and stores are of the buffer's dtype; ``count`` is 1 to the lanes; a stride of 0 loads one element, and has no count.
- A buffer of access ``in`` is not stored to.
- A loop's step is positive; its carried values, yields and results agree in number and type.
- A parallel loop stands at the top level, and carries nothing.
- A bound value is an i64 scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, IntExpr, symbols
from compiler.ir.loop import Access, Bind, Buffer, For, Function, If, Let, Load, LoopKind, Prefetch, Reg, Stmt, Store, VecType
from compiler.ir.loop_text import print_stmt
from compiler.ir.scalar import FUNCTIONS
from compiler.ir.types import DType

INDEX_TYPE = VecType(DType.INT64, 1)
"""The type of values that indices are made of."""


def verify_function(function: Function) -> None:
    """Raises InternalError, naming the statement, where function breaks a rule."""
    _Verifier(function).run()


class _Verifier:
    def __init__(self, function: Function) -> None:
        self._function = function
        self._buffers: dict[str, Buffer] = {}
        self._regs: dict[int, Reg] = {}
        self._ever: set[int] = set()
        self._symbols: set[str] = set(function.params)
        self._where = f"kernel {function.name}"

    def run(self) -> None:
        function = self._function
        for name in (function.name, *(b.name for b in function.buffers)):
            self._identifier(name)
        for name in function.params:
            self._identifier(name.replace(".", "_"))
        for buffer in function.buffers:
            self._require(buffer.name not in self._buffers, f"two buffers are called {buffer.name}")
            self._buffers[buffer.name] = buffer
            self._index(buffer.size)
        self._block(function.body, top=True)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InternalError(what, where=self._where)

    def _identifier(self, name: str) -> None:
        self._require(name.isidentifier() and name.isascii(), f"{name!r} is not an identifier")

    def _index(self, expr: Dim) -> None:
        for name in symbols(expr):
            self._require(name in self._symbols, f"{name} is not known in index {expr}")

    def _read(self, regs: Iterable[Reg]) -> None:
        for reg in regs:
            self._require(self._regs.get(reg.id) == reg, f"{reg} of type {reg.type} is not defined here")

    def _define(self, reg: Reg) -> None:
        self._require(reg.id not in self._ever, f"{reg} is defined twice")
        self._require(reg.type.lanes >= 1, f"{reg} has {reg.type.lanes} lanes")
        self._ever.add(reg.id)
        self._regs[reg.id] = reg

    def _symbol(self, name: str) -> None:
        self._identifier(name.replace(".", "_"))
        self._require(name not in self._symbols, f"{name} is known already")
        self._symbols.add(name)

    def _block(self, body: tuple[Stmt, ...], *, top: bool = False) -> None:
        for stmt in body:
            self._where = f"kernel {self._function.name}, statement {print_stmt(stmt)}"
            self._statement(stmt, top)

    def _inner(self, body: tuple[Stmt, ...], variable: str = "", carried: Iterable[Reg] = (), yields: Iterable[Reg] = ()) -> None:
        """A block with its own scope of registers and names."""
        regs, names = self._regs, self._symbols
        self._regs, self._symbols = dict(regs), set(names)
        if variable:
            self._symbol(variable)
        for reg in carried:
            self._define(reg)
        where = self._where
        self._block(body)
        self._where = where
        self._read(yields)
        self._regs, self._symbols = regs, names

    def _statement(self, stmt: Stmt, top: bool) -> None:
        match stmt:
            case Let():
                self._read(stmt.args)
                _verify_let(stmt, self._require)
                if isinstance(stmt.value, IntExpr):
                    self._index(stmt.value)
                self._define(stmt.result)
            case Load():
                self._access(stmt.buffer, stmt.index, stmt.stride, stmt.count, stmt.result)
                self._require(stmt.stride != 0 or stmt.count is None, "a stride of 0 has no count")
                self._define(stmt.result)
            case Store():
                self._read([stmt.value])
                self._access(stmt.buffer, stmt.index, stmt.stride, stmt.count, stmt.value)
                self._require(self._buffers[stmt.buffer].access is not Access.READ, f"{stmt.buffer} is only read")
                self._require(stmt.stride != 0 or stmt.value.type.lanes == 1, "a stride of 0 stores lanes over each other")
            case Prefetch():
                self._require(stmt.buffer in self._buffers, f"no buffer is called {stmt.buffer}")
                self._index(stmt.index)
            case Bind():
                self._read([stmt.value])
                self._require(stmt.value.type == INDEX_TYPE, "only an i64 scalar can be bound")
                self._symbol(stmt.name)
            case If():
                self._index(stmt.lhs)
                self._index(stmt.rhs)
                self._inner(stmt.then)
                self._inner(stmt.orelse)
            case For():
                self._for(stmt, top)

    def _access(self, buffer: str, index: Dim, stride: Dim, count: Dim | None, value: Reg) -> None:
        self._require(buffer in self._buffers, f"no buffer is called {buffer}")
        self._require(self._buffers[buffer].dtype is value.type.dtype, f"{buffer} holds {self._buffers[buffer].dtype.value}")
        self._require(not isinstance(count, int) or 1 <= count <= value.type.lanes, f"a count of {count} for {value.type.lanes} lanes")
        self._index(0 if count is None else count)
        self._index(index)
        self._index(stride)

    def _for(self, loop: For, top: bool) -> None:
        self._index(loop.start)
        self._index(loop.stop)
        self._require(loop.step >= 1, "the step is not positive")
        if loop.kind is LoopKind.PARALLEL:
            self._require(top, "a parallel loop stands at the top level only")
            self._require(not loop.carried, "a parallel loop carries nothing")
        before = [reg.type for _, reg in loop.carried]
        inside = [reg.type for reg, _ in loop.carried]
        after = ([reg.type for reg in loop.yields], [reg.type for reg in loop.results])
        self._require(inside == before and after == (before, before), "carried values, yields and results differ in number or type")
        self._read(reg for _, reg in loop.carried)
        self._inner(loop.body, loop.var, [reg for reg, _ in loop.carried], loop.yields)
        for reg in loop.results:
            self._define(reg)


def _verify_let(let: Let, require: Callable[[bool, str], None]) -> None:
    types, result, value = [reg.type for reg in let.args], let.result.type, let.value
    if let.op in FUNCTIONS:
        _verify_call(let.op, types, result, require)
        require(value is None, f"{let.op} takes no literal")
        return
    one = types[0] if types else result
    arity = {"const": 0, "index": 0, "iota": 0, "insert": 2, "shuffle": 2}.get(let.op, 1)
    require(len(types) == arity, f"{let.op} takes {arity} operands")
    scalar = VecType(one.dtype, 1)
    match let.op:
        case "const":
            require(isinstance(value, int | float), "a constant is a number")
        case "index":
            require(isinstance(value, int | IntExpr) and result == INDEX_TYPE, "an index is an i64 scalar")
        case "iota":
            require(not result.dtype.is_float and result.dtype is not DType.BOOL, "iota makes integers")
        case "splat":
            require(one == VecType(result.dtype, 1), "splat repeats a scalar of the result's dtype")
        case "extract":
            require(isinstance(value, int) and 0 <= value < one.lanes and result == scalar, "extract gives one lane")
        case "insert":
            fits = types == [result, scalar] and isinstance(value, int) and 0 <= value < result.lanes
            require(fits, "insert puts a scalar into one lane of a vector of the result's type")
        case "shuffle":
            picks = value if isinstance(value, tuple) else ()
            require(types[0] == types[1] and one.dtype is result.dtype, "shuffle's operands are of one type, and the result of their dtype")
            require(len(picks) == result.lanes and all(0 <= p < 2 * one.lanes for p in picks), f"no lanes {picks} in two vectors of {one.lanes}")
        case "reduce_add" | "reduce_mul" | "reduce_max" | "reduce_min":
            require(result == scalar and one.lanes & (one.lanes - 1) == 0, "a reduction makes a scalar of a power of two of lanes")
        case "bitcast":
            sizes = [t.dtype.itemsize * t.lanes for t in (one, result)]
            require(sizes[0] == sizes[1] and DType.BOOL not in (one.dtype, result.dtype), "bitcast keeps the size, and has no bool")
        case _:
            require(False, f"no operation is called {let.op}")


def _verify_call(fn: str, types: list[VecType], result: VecType, require: Callable[[bool, str], None]) -> None:
    function = FUNCTIONS[fn]
    require(len(types) == function.arity, f"{fn} takes {function.arity} operands")
    require(all(t.lanes == result.lanes for t in types), f"{fn} of {', '.join(map(str, types))} as {result}")
    match function.result:
        case "cast":
            return
        case "second":
            require(types[0].dtype is DType.BOOL, f"{fn} chooses by bool")
            same = [*types[1:], result]
        case "bool":
            require(result.dtype is DType.BOOL, f"{fn} gives bool")
            same = types
        case _:
            same = [*types, result]
    require(len(set(same)) == 1, f"{fn} of {', '.join(map(str, types))} as {result}")
