"""Programs as text and back; the arrays of the weights go beside the text, by digest.

    program @net arena 4096 bound 4000 weights 256 {
      input %x: f32[1, 3]
      output %y: f32[1, 3]
      weight 0: f32[3, 3] = @f0c1a5f25e8e3c7d
      call @gemm0(input 0, weights + 0, output 0) "fc" matmul "Schedule(mr=1)" flops 18 bytes 60
    }

The functions follow, as ``loop_text`` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from compiler.errors import UserError
from compiler.ir.graph import Array, Constant, Value
from compiler.ir.loop_text import parse_functions, print_function
from compiler.ir.parser import parse_type, unquoted
from compiler.ir.printer import BARE_NAME, print_value, quoted
from compiler.ir.program import Address, KernelCall, Program, Space
from compiler.ir.types import DType, TensorType

_STRING = r'"(?:[^"\\]|\\.)*"'
_NAME = rf"({BARE_NAME}|{_STRING})"
_HEAD = re.compile(rf"program @{_NAME} arena (\d+) bound (\d+) weights (\d+)(?: scratch (\d+))? \{{")
_VALUE = re.compile(rf"(input|output) %{_NAME}: (.*)")
_WEIGHT = re.compile(r"weight (\d+): (.*) = @(\w+)")
_CALL = re.compile(rf"call @(\w+)\((.*?)\) ({_STRING}) (\S+) ({_STRING}) flops (\d+) bytes (\d+)")


def print_program(program: Program) -> str:
    """The program's text, functions included."""
    return "\n".join([*_head_lines(program), *map(print_function, program.functions)])


def weights_of(program: Program) -> dict[str, Array]:
    """The arrays ``print_program`` refers to, by digest: what ``parse_program`` needs beside the text."""
    return {Constant(array).digest: array for _, array in program.weights}


def parse_program(text: str, weights: Mapping[str, Array]) -> Program:
    """The program that printed as text. Raises UserError, naming the line, where text is not one or a weight is missing."""
    lines = text.splitlines()
    end = next((at for at, line in enumerate(lines) if line.strip() == "}"), len(lines))
    functions = tuple(parse_functions("\n".join(lines[end + 1 :]), end + 2))
    numbers = {function.name: at for at, function in enumerate(functions)}
    head = _HEAD.fullmatch(lines[0].strip()) if lines else None
    if head is None:
        raise _error(1, "not a program")
    values: dict[str, list[Value]] = {"input": [], "output": []}
    blob: list[tuple[int, Array]] = []
    calls: list[KernelCall] = []
    for number, line in enumerate(lines[1:end], 2):
        if match := _VALUE.fullmatch(line.strip()):
            values[match[1]].append(Value(unquoted(match[2]), parse_type(match[3])))
        elif match := _WEIGHT.fullmatch(line.strip()):
            if match[3] not in weights:
                raise _error(number, f"the array @{match[3]} was not given")
            blob.append((int(match[1]), weights[match[3]]))
        elif match := _CALL.fullmatch(line.strip()):
            if match[1] not in numbers:
                raise _error(number, f"no function is called @{match[1]}")
            args = tuple(_parse_address(arg, number) for arg in match[2].split(", ") if arg)
            labels = json.loads(match[3]), match[4], json.loads(match[5])
            calls.append(KernelCall(numbers[match[1]], args, *labels, int(match[6]), int(match[7])))
        elif line.strip():
            raise _error(number, f"{line.strip()!r} is not a part of a program")
    return Program(
        unquoted(head[1]),
        tuple(values["input"]),
        tuple(values["output"]),
        functions,
        tuple(calls),
        tuple(blob),
        weights_bytes=int(head[4]),
        arena_bytes=int(head[2]),
        arena_bound_bytes=int(head[3]),
        scratch_bytes=int(head[5] or 0),
    )


def _head_lines(program: Program) -> Iterator[str]:
    sizes = f"arena {program.arena_bytes} bound {program.arena_bound_bytes} weights {program.weights_bytes}"
    if program.scratch_bytes:
        sizes += f" scratch {program.scratch_bytes}"
    yield f"program @{quoted(program.name)} {sizes} {{"
    for value in program.inputs:
        yield f"  input {print_value(value)}"
    for value in program.outputs:
        yield f"  output {print_value(value)}"
    for offset, array in program.weights:
        yield f"  weight {offset}: {TensorType(DType.of(array.dtype), array.shape)} = @{Constant(array).digest}"
    for call in program.calls:
        args = ", ".join(map(_print_address, call.args))
        labels = f"{json.dumps(call.name)} {call.family} {json.dumps(call.schedule)}"
        yield f"  call @{program.functions[call.function].name}({args}) {labels} flops {call.flops} bytes {call.nbytes}"
    yield "}\n"


def _print_address(address: Address) -> str:
    if address.space in (Space.ARENA, Space.WEIGHTS, Space.SCRATCH):
        return f"{address.space.value} + {address.offset}"
    return f"{address.space.value} {address.index}" + (f" + {address.offset}" if address.offset else "")


def _parse_address(text: str, line: int) -> Address:
    match = re.fullmatch(r"(arena|weights|scratch|input|output)(?: (\d+))?(?: \+ (\d+))?", text)
    if match is None:
        raise _error(line, f"{text!r} is not an address")
    return Address(Space(match[1]), offset=int(match[3] or 0), index=int(match[2] or 0))


def _error(line: int, what: str) -> UserError:
    return UserError(what, where=f"program text, line {line}", hint="compare with the form described in compiler/ir/program_text.py")
