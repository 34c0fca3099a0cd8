"""Loop IR and programs as text, one statement a line, and back.

    func @scale(in x: f32[N], out y: f32[N]) params(N) {
      %1: f32 = const 2.0
      %2: f32x8 = splat %1
      parallel i1 = 0 to 8*floordiv(N, 8) step 8 {
        %3: f32x8 = load x[i1]
        %4: f32x8 = mul %2, %3
        store y[i1], %4
      }
    }

A literal stands after an operation's operands, an integer expression in ``<>``. Loads, stores: ``stride`` and ``count`` where they are
not 1 and all. A loop's values: ``carry (%5: f32 = %1)`` before its body, ``yield %6`` at its end, ``} -> %7: f32`` after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from compiler.errors import UserError
from compiler.ir.intexpr import Dim, IntExpr, parse
from compiler.ir.loop import Access, Bind, Buffer, For, Function, If, Let, LetValue, Load, LoopKind, Prefetch, Reg, Stmt, Store, VecType
from compiler.ir.printer import number
from compiler.ir.types import DType

# -- printing -----------------------------------------------------------------------------------------------------


def print_function(function: Function) -> str:
    """The function's text, with a newline at its end."""
    buffers = ", ".join(f"{b.access.value} {b.name}: {b.dtype.value}[{b.size}]" for b in function.buffers)
    params = f" params({', '.join(function.params)})" if function.params else ""
    lines = [f"func @{function.name}({buffers}){params} {{", *_block_lines(function.body, "  "), "}", ""]
    return "\n".join(lines)


def print_stmt(stmt: Stmt) -> str:
    """A statement's own line: of a loop or a condition, its head."""
    match stmt:
        case Let():
            operands = [f"%{reg.id}" for reg in stmt.args]
            if stmt.value is not None:
                operands.append(_print_literal(stmt.value))
            return f"{_define(stmt.result)} = {stmt.op} {', '.join(operands)}".rstrip()
        case Load():
            return f"{_define(stmt.result)} = load {stmt.buffer}[{stmt.index}]{_print_lanes(stmt.stride, stmt.count)}"
        case Store():
            return f"store {stmt.buffer}[{stmt.index}], %{stmt.value.id}{_print_lanes(stmt.stride, stmt.count)}"
        case Prefetch():
            return f"prefetch {stmt.buffer}[{stmt.index}]"
        case Bind():
            return f"bind {stmt.name} = %{stmt.value.id}"
        case If():
            return f"if {stmt.lhs} < {stmt.rhs} {{"
        case For():
            carried = ", ".join(f"{_define(inner)} = %{before.id}" for inner, before in stmt.carried)
            carry = f" carry ({carried})" if carried else ""
            return f"{stmt.kind.value} {stmt.var} = {stmt.start} to {stmt.stop} step {stmt.step}{carry} {{"


def _block_lines(body: tuple[Stmt, ...], indent: str) -> Iterator[str]:
    for stmt in body:
        yield indent + print_stmt(stmt)
        if isinstance(stmt, For):
            yield from _block_lines(stmt.body, indent + "  ")
            if stmt.yields:
                yield f"{indent}  yield {', '.join(f'%{reg.id}' for reg in stmt.yields)}"
            results = f" -> {', '.join(map(_define, stmt.results))}" if stmt.results else ""
            yield f"{indent}}}{results}"
        elif isinstance(stmt, If):
            yield from _block_lines(stmt.then, indent + "  ")
            if stmt.orelse:
                yield f"{indent}}} else {{"
                yield from _block_lines(stmt.orelse, indent + "  ")
            yield f"{indent}}}"


def _define(reg: Reg) -> str:
    return f"%{reg.id}: {reg.type}"


def _print_lanes(stride: Dim, count: Dim | None) -> str:
    text = "" if stride == 1 else f" stride {stride}"
    return text if count is None else f"{text} count {count}"


def _print_literal(value: LetValue) -> str:
    if isinstance(value, IntExpr):
        return f"<{value}>"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "" if value is None else number(value)


# -- parsing ------------------------------------------------------------------------------------------------------

_DTYPES = {dtype.value: dtype for dtype in DType}
_HEAD = re.compile(r"func @(\w+)\((.*?)\)(?: params\(([\w., ]*)\))? \{")
_BUFFER = re.compile(rf"({'|'.join(access.value for access in Access)}) (\w+): (\w+)\[([^\]]*)\]")
_DEFINITION = re.compile(r"%(\d+): (\w+) = (\w+)(?: (.*))?")
_LANES = r"(?: stride (.+?))?(?: count (.+?))?"
_LOAD = re.compile(r"(\w+)\[([^\]]*)\]" + _LANES)
_STORE = re.compile(r"store (\w+)\[([^\]]*)\], %(\d+)" + _LANES)
_PREFETCH = re.compile(r"prefetch (\w+)\[([^\]]*)\]")
_BIND = re.compile(r"bind ([\w.]+) = %(\d+)")
_FOR = re.compile(r"(for|parallel) ([\w.]+) = (.+) to (.+) step (-?\d+)(?: carry \((.*)\))? \{")
_IF = re.compile(r"if (.+) < (.+) \{")
_CARRIED = re.compile(r"%(\d+): (\w+) = %(\d+)")
_CLOSE = re.compile(r"\}(?: -> (.*))?")
_RESULT = re.compile(r"%(\d+): (\w+)")
_TYPE = re.compile(rf"({'|'.join(_DTYPES)})(?:x(\d+))?")


def parse_function(text: str) -> Function:
    """The function that printed as text. Raises UserError, naming the line, where text is not one."""
    functions = parse_functions(text)
    if len(functions) != 1:
        raise UserError(f"{len(functions)} functions where one is wanted", where="Loop IR text", hint="give the text of one func")
    return functions[0]


def parse_functions(text: str, first_line: int = 1) -> list[Function]:
    """The functions that printed as text, one after another. ``first_line`` is the number of its first line, for messages."""
    reader = _Reader(text, first_line)
    functions = []
    while reader.more():
        functions.append(reader.function())
    return functions


@lru_cache(maxsize=1 << 16)
def _dim(text: str) -> Dim:
    return parse(text)


@lru_cache(maxsize=256)
def _type(text: str) -> VecType:
    match = _TYPE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a type of values")
    return VecType(_DTYPES[match[1]], int(match[2] or 1))


def _parse_literal(text: str) -> LetValue:
    if text.startswith("<"):
        return _dim(text[1:-1])
    if text.startswith("["):
        return tuple(int(item) for item in text[1:-1].split(",") if item.strip())
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.lstrip("-").isdigit() else float(text)


class _Reader:
    """Reads line by line; ``_regs`` are the registers defined so far, by number."""

    def __init__(self, text: str, first_line: int) -> None:
        numbered = ((number, line.strip()) for number, line in enumerate(text.splitlines(), first_line))
        self._lines = [(number, line) for number, line in numbered if line and not line.startswith("//")]
        self._at = 0
        self._regs: dict[int, Reg] = {}

    def more(self) -> bool:
        return self._at < len(self._lines)

    def function(self) -> Function:
        """The function that begins at the next line."""
        try:
            return self._function()
        except (ValueError, KeyError, IndexError) as error:
            number, line = self._lines[min(self._at, len(self._lines)) - 1]
            cause = f"register %{error} is not defined here" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{line!r}: {cause}", where=f"Loop IR text, line {number}", hint="compare with the form described in compiler/ir/loop_text.py"
            ) from error

    def _line(self) -> str:
        if not self.more():
            raise ValueError("the text ends before the block does")
        self._at += 1
        return self._lines[self._at - 1][1]

    def _function(self) -> Function:
        head = _match(_HEAD, self._line(), "a func")
        self._regs = {}
        buffers = tuple(Buffer(m[2], _type(m[3]).dtype, _dim(m[4]), Access(m[1])) for m in _BUFFER.finditer(head[2]))
        body, _, _ = self._block()
        return Function(head[1], buffers, body, tuple(name.strip() for name in head[3].split(",")) if head[3] else ())

    def _block(self) -> tuple[tuple[Stmt, ...], tuple[Reg, ...], str]:
        """Statements up to a line that begins with ``}``; the values it yields, and that line."""
        body: list[Stmt] = []
        yields: tuple[Reg, ...] = ()
        while True:
            line = self._line()
            if line[0] == "%":
                body.append(self._definition(line))
            elif line[0] == "}":
                return tuple(body), yields, line
            elif line.startswith("yield "):
                yields = self._operands(line[6:].split(","))
            else:
                body.append(self._statement(line))

    def _define(self, number: str, type_: str) -> Reg:
        reg = Reg(int(number), _type(type_))
        self._regs[reg.id] = reg
        return reg

    def _operands(self, items: Sequence[str]) -> tuple[Reg, ...]:
        return tuple(self._regs[int(item.strip()[1:])] for item in items)

    def _definition(self, line: str) -> Stmt:
        match = _match(_DEFINITION, line, "a definition")
        number, type_, op, rest = match.groups()
        if op == "load":
            place = _match(_LOAD, rest or "", "an element of a buffer")
            stride, count = _lanes(place[3], place[4])
            return Load(self._define(number, type_), place[1], _dim(place[2]), stride, count)
        if not rest:
            return Let(self._define(number, type_), op, ())
        regs = re.match(r"(?:%\d+(?:, )?)*", rest)
        operands, literal = rest[: regs.end()] if regs else "", rest[regs.end() if regs else 0 :]
        args = self._operands([item for item in operands.split(", ") if item])
        return Let(self._define(number, type_), op, args, _parse_literal(literal) if literal else None)

    def _statement(self, line: str) -> Stmt:
        if line.startswith("store "):
            m = _match(_STORE, line, "a store")
            stride, count = _lanes(m[4], m[5])
            return Store(m[1], _dim(m[2]), self._regs[int(m[3])], stride, count)
        if line.startswith("prefetch "):
            m = _match(_PREFETCH, line, "a prefetch")
            return Prefetch(m[1], _dim(m[2]))
        if line.startswith("bind "):
            m = _match(_BIND, line, "a bind")
            return Bind(m[1], self._regs[int(m[2])])
        if line.startswith("if "):
            m = _match(_IF, line, "an if")
            then, _, close = self._block()
            orelse: tuple[Stmt, ...] = ()
            if close == "} else {":
                orelse, _, close = self._block()
            return If(_dim(m[1]), _dim(m[2]), then, orelse)
        return self._loop(_match(_FOR, line, "a statement"))

    def _loop(self, head: re.Match[str]) -> For:
        carried = tuple((self._regs[int(m[3])], m) for m in _CARRIED.finditer(head[6] or ""))
        pairs = tuple((self._define(m[1], m[2]), before) for before, m in carried)
        body, yields, close = self._block()
        results = tuple(self._define(m[1], m[2]) for m in _RESULT.finditer(_match(_CLOSE, close, "the loop's end")[1] or ""))
        return For(head[2], _dim(head[3]), _dim(head[4]), int(head[5]), body, LoopKind(head[1]), pairs, yields, results)


def _match(pattern: re.Pattern[str], line: str, what: str) -> re.Match[str]:
    match = pattern.fullmatch(line)
    if match is None:
        raise ValueError(f"not {what}")
    return match


def _lanes(stride: str | None, count: str | None) -> tuple[Dim, Dim | None]:
    return 1 if stride is None else _dim(stride), None if count is None else _dim(count)
