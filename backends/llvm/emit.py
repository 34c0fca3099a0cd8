"""A Loop IR function as LLVM IR text.

Index expressions are split by the loop that defines their innermost symbol, and each part is computed once at the top of that
loop's body, so that inner loops add a constant or their own counter alone: LLVM runs no IR passes here that would hoist them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.llvm.indices import apply
from backends.llvm.isa import broadcast_load
from backends.llvm.values import ValueEmitter
from backends.llvm.writer import IrWriter, llvm_type, suffix
from compiler.errors import InternalError
from compiler.ir.intexpr import Apply, Dim, IntExpr, Monomial, Sym, minimum, symbols
from compiler.ir.loop import Bind, For, Function, If, Let, Load, LoopKind, Prefetch, Stmt, Store, VecType
from compiler.ir.types import DType
from compiler.target import Target

Terms = tuple[tuple[Monomial, int], ...]


@dataclass
class _Scope:
    """A stretch of code in which the symbols defined at its head are known: ``head`` lines come before ``body`` lines."""

    head: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    sums: dict[object, str] = field(default_factory=dict)


class FunctionEmitter:
    """Emits one function; ``text`` is the definition, ``writer.declarations`` what it calls."""

    def __init__(self, function: Function, target: Target) -> None:
        self.function = function
        self._target = target
        self.writer = IrWriter()
        self._names: dict[int, str] = {}
        self._values = ValueEmitter(self.writer, self._names)
        self._scopes: list[_Scope] = []
        self._depth: dict[str, int] = {}
        self._symbols: dict[str, str] = {}
        self._buffers = {b.name: b for b in function.buffers}
        self._block = "entry"

    def emit(self, linkage: str = "") -> str:
        """The whole definition."""
        params = [f"ptr noalias %b_{b.name}" for b in self.function.buffers]
        params += [f"i64 %s_{p}" for p in self.function.params]
        for name in self.function.params:
            self._define(name, f"%s_{name}", 0)
        self._push()
        self._statements(self.function.body)
        lines = self._pop()
        head = f"define {linkage}void @{self.function.name}({', '.join([*params, 'i64 %tid', 'i64 %nthreads'])}) nounwind {{"
        return "\n".join([head, "entry:", *lines, "  ret void", "}"])

    # -- scopes -------------------------------------------------------------------------------------------------

    def _push(self) -> None:
        self._scopes.append(_Scope())
        self.writer.lines = self._scopes[-1].body

    def _pop(self) -> list[str]:
        scope = self._scopes.pop()
        if self._scopes:
            self.writer.lines = self._scopes[-1].body
        return scope.head + scope.body

    def _close(self) -> None:
        """End the innermost scope, its code going where it stands."""
        lines = self._pop()
        self.writer.lines.extend(lines)

    def _define(self, symbol: str, operand: str, depth: int) -> None:
        self._symbols[symbol] = operand
        self._depth[symbol] = depth

    def _at(self, depth: int, text: str, key: object) -> str:
        """``text``'s result, computed once at the head of scope ``depth``."""
        scope = self._scopes[depth]
        name = scope.sums.get(key)
        if name is None:
            name = self.writer.name()
            scope.head.append(f"  {name} = {text}")
            scope.sums[key] = name
        return name

    # -- indices ------------------------------------------------------------------------------------------------

    def _term_depth(self, monomial: Monomial) -> int:
        depth = 0
        for atom in monomial:
            names = (atom.name,) if isinstance(atom, Sym) else (*symbols(atom.lhs), *symbols(atom.rhs))
            for name in names:
                depth = max(depth, self._symbol_depth(name))
        return depth

    def _symbol_depth(self, name: str) -> int:
        depth = self._depth.get(name)
        if depth is None:
            raise InternalError(f"index symbol {name} is not defined here", where=f"kernel {self.function.name}")
        return depth

    def _levels(self, terms: Terms) -> dict[int, list[tuple[Monomial, int]]]:
        levels: dict[int, list[tuple[Monomial, int]]] = {}
        for monomial, coefficient in terms:
            levels.setdefault(self._term_depth(monomial), []).append((monomial, coefficient))
        return dict(sorted(levels.items()))

    def _atom(self, atom: Sym | Apply, depth: int) -> str:
        if isinstance(atom, Sym):
            return self._symbols[atom.name]
        lhs, rhs = self._index(atom.lhs), self._index(atom.rhs)
        return apply(lambda text, key: self._at(depth, text, key), atom.op, lhs, rhs)

    def _sum(self, terms: list[tuple[Monomial, int]], depth: int) -> str:
        """The sum of terms whose innermost symbol is defined at ``depth``."""
        total = ""
        for monomial, coefficient in terms:
            product = self._atom(monomial[0], depth)
            for atom in monomial[1:]:
                factor = self._atom(atom, depth)
                product = self._at(depth, f"mul i64 {product}, {factor}", ("mul", product, factor))
            if coefficient != 1:
                product = self._at(depth, f"mul i64 {product}, {coefficient}", ("mul", product, coefficient))
            total = product if not total else self._at(depth, f"add i64 {total}, {product}", ("add", total, product))
        return total

    def _index(self, expr: Dim) -> str:
        """expr as an i64 operand."""
        if isinstance(expr, int):
            return str(expr)
        total, depth = "", 0
        for depth, terms in self._levels(expr.terms).items():
            part = self._sum(terms, depth)
            total = part if not total else self._at(depth, f"add i64 {total}, {part}", ("add", total, part))
        return self._at(depth, f"add i64 {total}, {expr.const}", ("add", total, expr.const)) if expr.const else total

    def _pointer(self, buffer: str, index: Dim) -> str:
        base = f"%b_{buffer}"
        dtype = self._buffers[buffer].dtype
        element = "i8" if dtype is DType.BOOL else llvm_type(VecType(dtype, 1))
        const = index if isinstance(index, int) else index.const
        if isinstance(index, IntExpr):
            for depth, terms in self._levels(index.terms).items():
                key = ("gep", base, tuple(terms))
                known = self._scopes[depth].sums.get(key)
                base = known or self._at(depth, f"getelementptr {element}, ptr {base}, i64 {self._sum(terms, depth)}", key)
        return self.writer.ins(f"getelementptr {element}, ptr {base}, i64 {const}") if const else base

    # -- statements ---------------------------------------------------------------------------------------------

    def _statements(self, body: tuple[Stmt, ...]) -> None:
        opened = 0
        for stmt in body:
            match stmt:
                case Let():
                    if stmt.op == "index":
                        if not isinstance(stmt.value, int | IntExpr):
                            raise InternalError(f"index {stmt.result} has no expression", where=f"kernel {self.function.name}")
                        self._names[stmt.result.id] = self._index(stmt.value)
                    else:
                        self._values.emit(stmt)
                case Load():
                    self._load(stmt)
                case Store():
                    self._store(stmt)
                case For():
                    self._for(stmt)
                case If():
                    self._if(stmt)
                case Prefetch():
                    self._prefetch(stmt)
                case Bind():
                    self._push()
                    opened += 1
                    self._define(stmt.name, self._names[stmt.value.id], len(self._scopes) - 1)
        for _ in range(opened):
            self._close()

    def _memory_type(self, type_: VecType) -> VecType:
        return VecType(DType.UINT8, type_.lanes) if type_.dtype is DType.BOOL else type_

    def _load(self, stmt: Load) -> None:
        w, type_ = self.writer, stmt.result.type
        memory = self._memory_type(type_)
        ty, align = llvm_type(memory), memory.dtype.itemsize
        lanes = type_.lanes if stmt.count is None else stmt.count
        if type_.lanes == 1:
            value = w.ins(f"load {ty}, ptr {self._pointer(stmt.buffer, stmt.index)}, align {align}")
        elif stmt.stride == 0:
            scalar, pointer = llvm_type(VecType(memory.dtype, 1)), self._pointer(stmt.buffer, stmt.index)
            assembly = broadcast_load(memory, self._target)
            if assembly is None:
                value = self._values.splat(w.ins(f"load {scalar}, ptr {pointer}, align {align}"), memory)
            else:
                value = w.ins(f"call {ty} asm {assembly}(ptr elementtype({scalar}) {pointer})")
        elif stmt.stride == 1 and lanes == type_.lanes:
            value = w.ins(f"load {ty}, ptr {self._pointer(stmt.buffer, stmt.index)}, align {align}")
        elif stmt.stride == 1 and memory.dtype.itemsize >= 4:
            pointer = self._pointer(stmt.buffer, stmt.index)
            mask = self._mask(lanes, type_.lanes)
            bools = llvm_type(VecType(DType.BOOL, type_.lanes))
            name = f"llvm.masked.load.{suffix(memory)}.p0"
            value = w.call(name, ty, [("ptr", f"align {align} {pointer}"), (bools, mask), (ty, "zeroinitializer")])
            w.declare(name, ty, ["ptr", bools, ty])
        else:
            value, scalar = "zeroinitializer", llvm_type(VecType(memory.dtype, 1))
            for lane in range(lanes if isinstance(lanes, int) else type_.lanes):
                at = lane if isinstance(lanes, int) else minimum(lane, lanes - 1)
                one = w.ins(f"load {scalar}, ptr {self._pointer(stmt.buffer, stmt.index + at * stmt.stride)}, align {align}")
                value = w.ins(f"insertelement {ty} {value}, {scalar} {one}, i32 {lane}")
        if type_.dtype is DType.BOOL:
            value = w.binary("icmp ne", memory, value, w.constant(0, memory))
        self._names[stmt.result.id] = value

    def _store(self, stmt: Store) -> None:
        w, type_ = self.writer, stmt.value.type
        memory = self._memory_type(type_)
        ty, align = llvm_type(memory), memory.dtype.itemsize
        value = self._names[stmt.value.id]
        if type_.dtype is DType.BOOL:
            value = w.ins(f"zext {llvm_type(type_)} {value} to {ty}")
        lanes = type_.lanes if stmt.count is None else stmt.count
        if type_.lanes == 1 or (stmt.stride == 1 and lanes == type_.lanes):
            w.do(f"store {ty} {value}, ptr {self._pointer(stmt.buffer, stmt.index)}, align {align}")
        elif stmt.stride == 1 and memory.dtype.itemsize >= 4:
            bools = llvm_type(VecType(DType.BOOL, type_.lanes))
            name = f"llvm.masked.store.{suffix(memory)}.p0"
            pointer = self._pointer(stmt.buffer, stmt.index)
            w.declare(name, "void", [ty, "ptr", bools])
            w.do(f"call void @{name}({ty} {value}, ptr align {align} {pointer}, {bools} {self._mask(lanes, type_.lanes)})")
        else:
            scalar = llvm_type(VecType(memory.dtype, 1))
            for lane in range(lanes if isinstance(lanes, int) else type_.lanes):
                one = w.ins(f"extractelement {ty} {value}, i32 {lane}")
                pointer = self._pointer(stmt.buffer, stmt.index + stmt.stride * lane)
                skip = self._skip_unless_used(lane, lanes) if lane and not isinstance(lanes, int) else ""
                w.do(f"store {scalar} {one}, ptr {pointer}, align {align}")
                if skip:
                    w.do(f"br label %{skip}")
                    self._open_block(skip)

    def _skip_unless_used(self, lane: int, count: Dim) -> str:
        """Open a block that runs when lane is below count; the label to go on at."""
        used, skip = self._label("used"), self._label("skip")
        self.writer.do(f"br i1 {self.writer.ins(f'icmp slt i64 {lane}, {self._index(count)}')}, label %{used}, label %{skip}")
        self._open_block(used)
        return skip

    def _mask(self, count: Dim, lanes: int) -> str:
        """A vector of bools, the first ``count`` of them true."""
        if isinstance(count, int):
            return f"<{', '.join('i1 true' if i < count else 'i1 false' for i in range(lanes))}>"
        numbers = VecType(DType.INT32, lanes)
        limit = self._values.splat(self.writer.ins(f"trunc i64 {self._index(count)} to i32"), numbers)
        order = f"<{', '.join(f'i32 {i}' for i in range(lanes))}>"
        return self.writer.ins(f"icmp slt {llvm_type(numbers)} {order}, {limit}")

    def _prefetch(self, stmt: Prefetch) -> None:
        self.writer.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
        self.writer.do(f"call void @llvm.prefetch.p0(ptr {self._pointer(stmt.buffer, stmt.index)}, i32 0, i32 3, i32 1)")

    # -- control ------------------------------------------------------------------------------------------------

    def _label(self, stem: str) -> str:
        return f"{stem}{self.writer.name()[1:]}"

    def _open_block(self, label: str) -> None:
        self.writer.lines.append(f"{label}:")
        self._block = label

    def _for(self, loop: For) -> None:
        if loop.kind is LoopKind.PARALLEL:
            start, stop, runs = *self._share(loop), None
        else:
            start, stop = self._index(loop.start), self._index(loop.stop)
            trips = loop.stop - loop.start
            runs = trips if isinstance(trips, int) else None
        if runs is not None and runs <= 0:
            self._finish(loop, [self._names[before.id] for _, before in loop.carried])
        elif runs is not None and runs <= loop.step:
            self._once(loop, start)
        else:
            self._loop(loop, start, stop, guarded=runs is None)

    def _share(self, loop: For) -> tuple[str, str]:
        """This worker's contiguous part of a parallel loop: (start, stop) operands."""
        w = self.writer
        start, span = self._index(loop.start), self._index(loop.stop - loop.start + (loop.step - 1))
        trips = w.ins(f"sdiv i64 {span}, {loop.step}")
        bounds = []
        for worker in ("%tid", w.ins("add i64 %tid, 1")):
            part = w.ins(f"sdiv i64 {w.ins(f'mul i64 {trips}, {worker}')}, %nthreads")
            bounds.append(w.ins(f"add i64 {start}, {w.ins(f'mul i64 {part}, {loop.step}')}"))
        stop = self._index(loop.stop)
        last = w.ins(f"icmp slt i64 {bounds[1]}, {stop}")
        return bounds[0], w.ins(f"select i1 {last}, i64 {bounds[1]}, i64 {stop}")

    def _once(self, loop: For, start: str) -> None:
        """A loop of one iteration is its body."""
        for inner, before in loop.carried:
            self._names[inner.id] = self._names[before.id]
        self._push()
        self._define(loop.var, start, len(self._scopes) - 1)
        self._statements(loop.body)
        self._close()
        self._finish(loop, [self._names[y.id] for y in loop.yields])

    def _loop(self, loop: For, start: str, stop: str, *, guarded: bool) -> None:
        w = self.writer
        body, after = self._label("body"), self._label("after")
        before_block = self._block
        initial = [self._names[before.id] for _, before in loop.carried]
        if guarded:
            w.do(f"br i1 {w.ins(f'icmp slt i64 {start}, {stop}')}, label %{body}, label %{after}")
        else:
            w.do(f"br label %{body}")
        self._open_block(body)
        phis = len(w.lines)
        var, following = w.name(), w.name()
        inner_names = []
        for inner, _ in loop.carried:
            name = w.name()
            inner_names.append(name)
            self._names[inner.id] = name
        self._push()
        self._define(loop.var, var, len(self._scopes) - 1)
        self._statements(loop.body)
        self._close()
        yields = [self._names[y.id] for y in loop.yields]
        latch = self._block
        w.do(f"{following} = add i64 {var}, {loop.step}")
        w.do(f"br i1 {w.ins(f'icmp slt i64 {following}, {stop}')}, label %{body}, label %{after}")
        head = [f"  {var} = phi i64 [ {start}, %{before_block} ], [ {following}, %{latch} ]"]
        for (inner, _), name, first, later in zip(loop.carried, inner_names, initial, yields, strict=True):
            head.append(f"  {name} = phi {llvm_type(inner.type)} [ {first}, %{before_block} ], [ {later}, %{latch} ]")
        w.lines[phis:phis] = head
        self._open_block(after)
        if guarded and loop.results:
            yields = [
                w.ins(f"phi {llvm_type(result.type)} [ {first}, %{before_block} ], [ {later}, %{latch} ]")
                for result, first, later in zip(loop.results, initial, yields, strict=True)
            ]
        self._finish(loop, yields)

    def _finish(self, loop: For, values: list[str]) -> None:
        for result, value in zip(loop.results, values, strict=True):
            self._names[result.id] = value

    def _if(self, stmt: If) -> None:
        w = self.writer
        then, orelse, after = self._label("then"), self._label("else"), self._label("endif")
        less = w.ins(f"icmp slt i64 {self._index(stmt.lhs)}, {self._index(stmt.rhs)}")
        w.do(f"br i1 {less}, label %{then}, label %{orelse if stmt.orelse else after}")
        for label, body in ((then, stmt.then), (orelse, stmt.orelse)):
            if not body:
                if label == then:
                    self._open_block(then)
                    w.do(f"br label %{after}")
                continue
            self._open_block(label)
            self._push()
            self._statements(body)
            self._close()
            w.do(f"br label %{after}")
        self._open_block(after)
