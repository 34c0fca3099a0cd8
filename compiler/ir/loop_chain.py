"""Functions one after another as one: every worker runs all but the last for itself, and its part of the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compiler.errors import InternalError
from compiler.ir.intexpr import Dim, IntExpr, substitute, sym
from compiler.ir.loop import Access, Bind, Buffer, For, Function, If, Let, Load, LoopKind, Prefetch, Reg, Stmt, Store


@dataclass(frozen=True)
class Link:
    """A function in a chain. ``made`` says which of its buffers, by number, are what an earlier one wrote: its place in the chain, and the
    element at which the buffer begins there."""

    function: Function
    made: Mapping[int, tuple[int, Dim]] = field(default_factory=dict)


def chained(name: str, links: Sequence[Link]) -> Function:
    """The function that does what links do, in order.

    Its buffers are those that links read from outside, link by link, those that the last writes, and what further ones they have; what
    the others write, one buffer each, is scratch. Only the last may have params, or report.
    """
    results = [_result(link.function) for link in links[:-1]]
    read: list[Buffer] = []
    written: list[Buffer] = []
    further: list[Buffer] = []
    body: list[Stmt] = []
    regs = 0
    for number, link in enumerate(links):
        last, tail = number == len(links) - 1, f"_{number}"
        places: dict[str, tuple[str, Dim]] = {}
        for position, buffer in enumerate(link.function.buffers):
            if position in link.made:
                maker, start = link.made[position]
                places[buffer.name] = f"{results[maker].name}_{maker}", start
                continue
            places[buffer.name] = f"{buffer.name}{tail}", 0
            own = replace(buffer, name=f"{buffer.name}{tail}")
            if buffer.access is Access.READ:
                read.append(own)
            elif buffer.access is Access.WRITE:
                written.append(own) if last else further.append(replace(own, access=Access.SCRATCH))
            elif last or buffer.access is Access.SCRATCH:
                further.append(own)
            else:
                raise InternalError(f"buffer {buffer.name} of {link.function.name} is shared, inside a kernel", where=f"kernel {name}")
        copier = _Copier(regs, {} if last else {var: f"{var}{tail}" for var in _bound(link.function.body)}, places, serial=not last)
        body += copier.block(link.function.body)
        regs = copier.highest
    return Function(name, (*read, *written, *further), tuple(body), links[-1].function.params)


def _result(function: Function) -> Buffer:
    (found,) = (buffer for buffer in function.buffers if buffer.access is Access.WRITE)
    return found


def _bound(block: Sequence[Stmt]) -> Iterator[str]:
    """The symbols that statements define."""
    for stmt in block:
        match stmt:
            case Bind(name=name):
                yield name
            case For(var=var, body=body):
                yield var
                yield from _bound(body)
            case If(then=then, orelse=orelse):
                yield from _bound((*then, *orelse))


class _Copier:
    """Copies statements: registers numbered from ``first`` on, symbols and buffers renamed; ``serial``: parallel loops are every worker's."""

    def __init__(self, first: int, symbols: Mapping[str, str], places: Mapping[str, tuple[str, Dim]], *, serial: bool) -> None:
        self.highest = first
        self._first = first
        self._symbols = symbols
        self._values: dict[str, Dim] = {name: sym(other) for name, other in symbols.items()}
        self._places = places
        self._serial = serial

    def block(self, stmts: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """The copies, in order."""
        return tuple(map(self._stmt, stmts))

    def _stmt(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Let():
                value = self._dim(stmt.value) if isinstance(stmt.value, IntExpr) else stmt.value
                return Let(self._reg(stmt.result), stmt.op, self._regs(stmt.args), value)
            case Load():
                buffer, index = self._place(stmt.buffer, stmt.index)
                return Load(self._reg(stmt.result), buffer, index, self._dim(stmt.stride), self._count(stmt.count))
            case Store():
                buffer, index = self._place(stmt.buffer, stmt.index)
                return Store(buffer, index, self._reg(stmt.value), self._dim(stmt.stride), self._count(stmt.count))
            case Prefetch():
                return Prefetch(*self._place(stmt.buffer, stmt.index))
            case Bind():
                return Bind(self._symbol(stmt.name), self._reg(stmt.value))
            case For():
                carried = tuple((self._reg(inside), self._reg(before)) for inside, before in stmt.carried)
                return For(
                    self._symbol(stmt.var),
                    self._dim(stmt.start),
                    self._dim(stmt.stop),
                    stmt.step,
                    self.block(stmt.body),
                    LoopKind.SERIAL if self._serial else stmt.kind,
                    carried,
                    self._regs(stmt.yields),
                    self._regs(stmt.results),
                )
            case If():
                return If(self._dim(stmt.lhs), self._dim(stmt.rhs), self.block(stmt.then), self.block(stmt.orelse))

    def _reg(self, reg: Reg) -> Reg:
        self.highest = max(self.highest, self._first + reg.id)
        return Reg(self._first + reg.id, reg.type)

    def _regs(self, regs: Sequence[Reg]) -> tuple[Reg, ...]:
        return tuple(map(self._reg, regs))

    def _symbol(self, name: str) -> str:
        return self._symbols.get(name, name)

    def _dim(self, expr: Dim) -> Dim:
        return substitute(expr, self._values) if self._values else expr

    def _count(self, count: Dim | None) -> Dim | None:
        return None if count is None else self._dim(count)

    def _place(self, buffer: str, index: Dim) -> tuple[str, Dim]:
        name, start = self._places[buffer]
        return name, self._dim(index) + start
