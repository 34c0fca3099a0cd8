"""Programs as text and back; the arrays of the weights go beside the text, by digest.

    program @net arena <4096> bound 4000 weights 256 scratch <0> dynamic 1 {
      symbol seq
      define size.0 = <64*seq>
      input %x: f32[1, seq]
      output %y: f32[1, seq] dynamic 0
      weight 0: f32[3, 3] = @f0c1a5f25e8e3c7d
      texts dynamic 0 from 64 bytes 32
      call @gemm0(input 0, weights + 0, dynamic 0)(<seq>) "fc" matmul "Schedule(mr=1)" flops <18> bytes <60>
      call @halves(dynamic 0, status)(<seq>) "out" injective "Schedule(vectors=4)" flops <9> bytes <36> divides ["half"]
      read u1, u2 = arena + <size.0> as i64
      check <0> <= <u1> <= none "sizes must not be negative"
      allocate dynamic 0 <4*u1> keep
      if arena + 64 {
      } else {
      }
      repeat i count n trips <u2> first none following dynamic 1 {
        swap dynamic 1, 2
      } carry u1 = <u1 + 1>, u2 = <3>
      shares 4 {
        call @halves(arena + <64*share.>, scratch + 0)() "half" injective "Schedule(vectors=4)" flops <9> bytes <60>
      }
    }

The functions follow, as ``loop_text`` writes them. ``<>`` holds an integer expression.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from compiler.errors import UserError
from compiler.ir.graph import Array, Constant, Value
from compiler.ir.intexpr import Dim, parse
from compiler.ir.loop_text import parse_functions, print_function
from compiler.ir.parser import parse_type, unquoted
from compiler.ir.printer import BARE_NAME, print_value, quoted
from compiler.ir.program import Address, Allocate, Branch, Check, Define, KernelCall, Program, Read, Repeat, Shares, Space, Step, Swap, Texts
from compiler.ir.types import DType, TensorType

_STRING = r'"(?:[^"\\]|\\.)*"'
_NAME = rf"({BARE_NAME}|{_STRING})"
_DIM = r"<([^>]*)>"
_MAYBE = r"(none|<[^>]*>)"
_PLACE = r"(none|(?:arena|weights|scratch|input|output|dynamic|texts_end|status)[^{]*?)"
_HEAD = re.compile(rf"program @{_NAME} arena {_DIM} bound (none|\d+) weights (\d+) scratch {_DIM} dynamic (\d+) \{{")
_VALUE = re.compile(rf"(input|output) %{_NAME}: (.*?)(?: dynamic (\d+))?")
_WEIGHT = re.compile(r"weight (\d+): (.*) = @(\w+)")
_TEXTS = re.compile(r"texts dynamic (\d+) from (\d+) bytes (\d+)")
_CALL = re.compile(rf"call @(\w+)\((.*?)\)\((.*?)\) ({_STRING}) (\S+) ({_STRING}) flops {_DIM} bytes {_DIM}(?: divides (\[.*\]))?")
_READ = re.compile(r"read (.*) = (.*) as (\w+)")
_DEFINE = re.compile(rf"define (\S+) = {_DIM}")
_CHECK = re.compile(rf"check {_MAYBE} <= {_DIM} <= {_MAYBE} ({_STRING})")
_ALLOCATE = re.compile(rf"allocate dynamic (\d+) {_DIM}( keep)?")
_SWAP = re.compile(r"swap dynamic (\d+), (\d+)")
_REPEAT = re.compile(rf"repeat (\S+) count (\S+) trips {_MAYBE} first {_PLACE} following {_PLACE} \{{")
_SHARES = re.compile(r"shares (\d+) \{")
_CARRY = re.compile(rf"(\S+) = {_DIM}")
_ADDRESS = re.compile(r"(arena|weights|scratch|input|output|dynamic|texts_end|status)(?: (\d+))?(?: \+ (?:(\d+)|<([^>]*)>))?(?: each <([^>]*)>)?")


def print_program(program: Program) -> str:
    """The program's text, functions included."""
    return "\n".join([*_lines(program), *map(print_function, program.functions)])


def weights_of(program: Program) -> dict[str, Array]:
    """The arrays ``print_program`` refers to, by digest: what ``parse_program`` needs beside the text."""
    return {Constant(array).digest: array for _, array in program.weights}


def parse_program(text: str, weights: Mapping[str, Array]) -> Program:
    """The program that printed as text. Raises UserError, naming the line, where text is not one or a weight is missing."""
    return _Parser(text, weights).program()


# -- printing ---------------------------------------------------------------------------------------------------------


def _lines(program: Program) -> Iterator[str]:
    bound = "none" if program.arena_bound_bytes is None else program.arena_bound_bytes
    sizes = f"arena <{program.arena_bytes}> bound {bound} weights {program.weights_bytes} scratch <{program.scratch_bytes}>"
    yield f"program @{quoted(program.name)} {sizes} dynamic {program.dynamic} {{"
    yield from (f"  symbol {name}" for name in program.symbols)
    yield from (f"  define {definition.symbol} = <{definition.value}>" for definition in program.definitions)
    yield from (f"  input {print_value(value)}" for value in program.inputs)
    for value, buffer in zip(program.outputs, program.results or (None,) * len(program.outputs), strict=True):
        yield f"  output {print_value(value)}" + ("" if buffer is None else f" dynamic {buffer}")
    for offset, array in program.weights:
        yield f"  weight {offset}: {TensorType(DType.of(array.dtype), array.shape)} = @{Constant(array).digest}"
    if program.texts is not None:
        yield f"  texts dynamic {program.texts.buffer} from {program.texts.offset} bytes {program.texts.nbytes}"
    yield from _steps(program, program.body, "  ")
    yield "}\n"


def _steps(program: Program, steps: tuple[Step, ...], indent: str) -> Iterator[str]:
    for step in steps:
        match step:
            case KernelCall():
                args, params = ", ".join(map(_address, step.args)), ", ".join(f"<{param}>" for param in step.params)
                labels = f"{json.dumps(step.name)} {step.family} {json.dumps(step.schedule)} flops <{step.flops}> bytes <{step.nbytes}>"
                divides = f" divides {json.dumps(step.divisions)}" if step.divisions else ""
                yield f"{indent}call @{program.functions[step.function].name}({args})({params}) {labels}{divides}"
            case Read():
                yield f"{indent}read {', '.join(step.symbols)} = {_address(step.address)} as {step.dtype.value}"
            case Define():
                yield f"{indent}define {step.symbol} = <{step.value}>"
            case Check():
                yield f"{indent}check {_maybe(step.low)} <= <{step.value}> <= {_maybe(step.high)} {json.dumps(step.message)}"
            case Allocate():
                yield f"{indent}allocate dynamic {step.index} <{step.nbytes}>" + (" keep" if step.keep else "")
            case Swap():
                yield f"{indent}swap dynamic {step.first}, {step.second}"
            case Branch():
                yield f"{indent}if {_address(step.condition)} {{"
                yield from _steps(program, step.then, indent + "  ")
                yield f"{indent}}} else {{"
                yield from _steps(program, step.orelse, indent + "  ")
                yield f"{indent}}}"
            case Repeat():
                first, following = (("none" if place is None else _address(place)) for place in (step.first, step.following))
                yield f"{indent}repeat {step.iteration} count {step.count} trips {_maybe(step.trips)} first {first} following {following} {{"
                yield from _steps(program, step.body, indent + "  ")
                carried = ", ".join(f"{definition.symbol} = <{definition.value}>" for definition in step.carried)
                yield f"{indent}}} carry {carried}".rstrip()
            case Shares():
                yield f"{indent}shares {step.count} {{"
                yield from _steps(program, step.body, indent + "  ")
                yield f"{indent}}}"


def _maybe(dim: Dim | None) -> str:
    return "none" if dim is None else f"<{dim}>"


def _address(address: Address) -> str:
    numbered = address.space in (Space.INPUT, Space.OUTPUT, Space.DYNAMIC)
    text = f"{address.space.value} {address.index}" if numbered else address.space.value
    if not isinstance(address.offset, int):
        text += f" + <{address.offset}>"
    elif address.offset or not (numbered or address.space in (Space.STATUS, Space.TEXTS_END)):
        text += f" + {address.offset}"
    return text if address.each == 0 else f"{text} each <{address.each}>"


# -- parsing ----------------------------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, text: str, weights: Mapping[str, Array]) -> None:
        lines = text.splitlines()
        self._end = next((at for at, line in enumerate(lines) if line == "}"), len(lines))
        self._lines = [line.strip() for line in lines[: self._end]]
        self._functions = tuple(parse_functions("\n".join(lines[self._end + 1 :]), self._end + 2))
        self._numbers = {function.name: at for at, function in enumerate(self._functions)}
        self._weights = weights
        self._at = 0

    def program(self) -> Program:
        head = _HEAD.fullmatch(self._lines[0]) if self._lines else None
        if head is None:
            raise self._error("not a program")
        self._at = 1
        symbols, definitions, blob = [], [], []
        values: dict[str, list[Value]] = {"input": [], "output": []}
        results: list[int | None] = []
        texts: Texts | None = None
        while self._at < self._end and (match := re.match(r"symbol|define|input|output|weight|texts", self._lines[self._at])):
            line = self._lines[self._at]
            if match[0] == "symbol":
                symbols.append(line.removeprefix("symbol "))
            elif found := _DEFINE.fullmatch(line):
                definitions.append(Define(found[1], self._dim(found[2])))
            elif found := _VALUE.fullmatch(line):
                values[found[1]].append(Value(unquoted(found[2]), parse_type(found[3])))
                results += [None if found[4] is None else int(found[4])] if found[1] == "output" else []
            elif found := _WEIGHT.fullmatch(line):
                if found[3] not in self._weights:
                    raise self._error(f"the array @{found[3]} was not given")
                blob.append((int(found[1]), self._weights[found[3]]))
            elif found := _TEXTS.fullmatch(line):
                texts = Texts(*map(int, found.groups()))
            else:
                raise self._error(f"{line!r} is not a part of a program")
            self._at += 1
        body = self._steps()
        if self._at < self._end:
            raise self._error(f"{self._lines[self._at]!r} ends nothing")
        return Program(
            unquoted(head[1]),
            tuple(values["input"]),
            tuple(values["output"]),
            self._functions,
            body,
            tuple(blob),
            weights_bytes=int(head[4]),
            arena_bytes=self._dim(head[2]),
            arena_bound_bytes=None if head[3] == "none" else int(head[3]),
            scratch_bytes=self._dim(head[5]),
            symbols=tuple(symbols),
            definitions=tuple(definitions),
            dynamic=int(head[6]),
            results=tuple(results),
            texts=texts,
        )

    def _steps(self) -> tuple[Step, ...]:
        """Steps up to the line that ends their block."""
        steps: list[Step] = []
        while self._at < self._end and not self._lines[self._at].startswith("}"):
            line = self._lines[self._at]
            if line:
                steps.append(self._step(line))
            self._at += 1
        return tuple(steps)

    def _step(self, line: str) -> Step:
        if match := _CALL.fullmatch(line):
            if match[1] not in self._numbers:
                raise self._error(f"no function is called @{match[1]}")
            args = tuple(self._address(arg) for arg in re.split(r", (?![^<]*>)", match[2]) if arg)
            params = tuple(self._dim(param) for param in re.findall(_DIM, match[3]))
            labels = json.loads(match[4]), match[5], json.loads(match[6])
            divisions = tuple(map(str, json.loads(match[9] or "[]")))
            return KernelCall(self._numbers[match[1]], args, *labels, self._dim(match[7]), self._dim(match[8]), params, divisions)
        if match := _READ.fullmatch(line):
            return Read(tuple(name for name in match[1].split(", ") if name), self._address(match[2]), DType(match[3]))
        if match := _DEFINE.fullmatch(line):
            return Define(match[1], self._dim(match[2]))
        if match := _CHECK.fullmatch(line):
            return Check(self._maybe(match[1]), self._dim(match[2]), self._maybe(match[3]), json.loads(match[4]))
        if match := _ALLOCATE.fullmatch(line):
            return Allocate(int(match[1]), self._dim(match[2]), match[3] is not None)
        if match := _SWAP.fullmatch(line):
            return Swap(int(match[1]), int(match[2]))
        if line.startswith("if ") and line.endswith(" {"):
            condition = self._address(line[3:-2])
            then, _ = self._block()
            orelse, _ = self._block()
            return Branch(condition, then, orelse)
        if match := _REPEAT.fullmatch(line):
            first, following = ((None if text == "none" else self._address(text)) for text in (match[4], match[5]))
            body, end = self._block()
            carried = tuple(Define(name, self._dim(value)) for name, value in _CARRY.findall(end.removeprefix("} carry")))
            return Repeat(match[1], match[2], self._maybe(match[3]), first, following, carried, body)
        if match := _SHARES.fullmatch(line):
            body, _ = self._block()
            return Shares(int(match[1]), tuple(step for step in body if isinstance(step, KernelCall)))
        raise self._error(f"{line!r} is not a part of a program")

    def _block(self) -> tuple[tuple[Step, ...], str]:
        """The steps after the current line, and the line that ends them, which is the current one then."""
        self._at += 1
        steps = self._steps()
        if self._at >= self._end:
            raise self._error("a block has no end")
        return steps, self._lines[self._at]

    def _address(self, text: str) -> Address:
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise self._error(f"{text!r} is not an address")
        offset = self._dim(match[4]) if match[4] else int(match[3] or 0)
        return Address(Space(match[1]), offset, int(match[2] or 0), self._dim(match[5] or "0"))

    def _maybe(self, text: str) -> Dim | None:
        return None if text == "none" else self._dim(text[1:-1])

    def _dim(self, text: str) -> Dim:
        try:
            return parse(text)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _error(self, what: str) -> UserError:
        hint = "compare with the form described in compiler/ir/program_text.py"
        return UserError(what, where=f"program text, line {self._at + 1}", hint=hint)
