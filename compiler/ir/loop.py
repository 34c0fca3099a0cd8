"""Loop IR: what a kernel builder emits. Typed loops over scalars and fixed-width vectors, close to the machine on purpose.

A ``Function`` reads and writes flat named buffers. Control is structured: ``For`` carries values from one iteration to the next (as
phi nodes do), ``If`` tests an index condition. Every value is an SSA ``Reg`` of a ``VecType``; indices are integer expressions over
loop variables and run-time arguments, in elements of the buffer. A ``For`` of kind PARALLEL is shared among the workers that run the
function: each takes one contiguous part of the iterations; it stands at the top level only, and iterations must not depend on each other.

Value operations (``Let``) carry the names of ``scalar.FUNCTIONS`` plus the vector-only ones of ``VECTOR_OPS``. The text form is in
``loop_text``, the rules in ``loop_verify``, the meaning in ``loop_interp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Union

from compiler.ir.intexpr import Dim
from compiler.ir.types import DType


@dataclass(frozen=True, slots=True)
class VecType:
    """``lanes`` elements of dtype in one register; ``lanes == 1`` is a scalar. Comparisons give BOOL lanes."""

    dtype: DType
    lanes: int

    def __str__(self) -> str:
        return self.dtype.value if self.lanes == 1 else f"{self.dtype.value}x{self.lanes}"


@dataclass(frozen=True, slots=True)
class Reg:
    """An SSA value; ``id`` is unique in its function."""

    id: int
    type: VecType

    def __str__(self) -> str:
        return f"%{self.id}"


class Access(Enum):
    """How a function uses a buffer."""

    READ = "in"
    WRITE = "out"
    SCRATCH = "scratch"  # private to each worker, contents undefined at entry
    STATUS = "status"  # where what cannot be done is reported
    TEXTS = "texts"  # the bytes of the run's texts, of which new ones are written by the kernels that make them
    TEXTS_END = "texts_end"  # one i64, the bytes of texts in use, which rises by what is to be written


@dataclass(frozen=True, slots=True)
class Buffer:
    """A flat array parameter of ``size`` elements."""

    name: str
    dtype: DType
    size: Dim
    access: Access


class LoopKind(Enum):
    """Who runs a loop's iterations: each worker all of them, or each its part."""

    SERIAL = "for"
    PARALLEL = "parallel"


VECTOR_OPS = {
    "const": "a literal in every lane: value",
    "splat": "a scalar in every lane",
    "extract": "one lane as a scalar: value is the lane",
    "insert": "vector with one lane replaced by a scalar: value is the lane",
    "shuffle": "lanes of two vectors picked by the literal indices in value (0..2*lanes-1)",
    "reduce_add": "sum of the lanes, pairwise (halves added until one is left)",
    "reduce_mul": "product of the lanes, pairwise",
    "reduce_max": "largest lane (NaN in any lane gives NaN)",
    "reduce_min": "smallest lane (NaN in any lane gives NaN)",
    "index": "an index expression as an i64 scalar: value is the expression",
    "iota": "0, 1, 2, … in an integer vector",
    "bitcast": "the same bits as another type of the same size",
}

LetValue = Union[None, int, float, bool, Dim, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Let:
    """``result = op(args)``; ``value`` is the literal some operations carry."""

    result: Reg
    op: str
    args: tuple[Reg, ...]
    value: LetValue = None


@dataclass(frozen=True, slots=True)
class Load:
    """``result = buffer[index + lane * stride]`` for each lane. ``stride == 0`` loads one element into every lane.

    ``count`` is how many leading lanes are read, at least one; the others are zero where it is a number, and unspecified where it is
    only known at run time. Narrowing types is a ``cast`` of its own.
    """

    result: Reg
    buffer: str
    index: Dim
    stride: Dim = 1
    count: Dim | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """``buffer[index + lane * stride] = value`` for the first ``count`` lanes (all where it is None)."""

    buffer: str
    index: Dim
    value: Reg
    stride: Dim = 1
    count: Dim | None = None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """A hint that ``buffer[index]`` is read soon; reads nothing, may lie outside."""

    buffer: str
    index: Dim


@dataclass(frozen=True, slots=True)
class Bind:
    """Names an i64 scalar so that later indices can use it (data-dependent addressing)."""

    name: str
    value: Reg


@dataclass(frozen=True, slots=True)
class For:
    """``for var in range(start, stop, step)``; ``carried`` are (name inside the body, value before the first iteration).

    The body ends with ``yields``, the carried values of the next iteration; ``results`` hold them after the last.
    """

    var: str
    start: Dim
    stop: Dim
    step: int
    body: tuple[Stmt, ...]
    kind: LoopKind = LoopKind.SERIAL
    carried: tuple[tuple[Reg, Reg], ...] = ()
    yields: tuple[Reg, ...] = ()
    results: tuple[Reg, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """Runs ``then`` when ``lhs < rhs``, else ``orelse``; makes no values."""

    lhs: Dim
    rhs: Dim
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


Stmt = Union[Let, Load, Store, Prefetch, Bind, For, If]


@dataclass(frozen=True, slots=True)
class Function:
    """A kernel. ``params`` are run-time integers (symbolic dims) that indices and bounds may use, besides loop variables."""

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    params: tuple[str, ...] = ()
