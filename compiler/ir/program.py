"""A Program: the planned graph as kernel calls over memory, which is all a backend needs to make a runnable image.

Its body is a sequence of steps that every worker runs: kernel calls with barriers between, numbers read from memory, branches, loops.
Sizes are expressions over symbols. ``symbols`` are known when a run begins, from the shapes of the inputs; ``definitions`` follow from
them alone and are worked out once for every new set of sizes, together with how much memory that takes (``prepare``); what steps define
is known from there on.

ABI of the generated code. ``slots`` is an array of pointers: the arena, the weights blob, the state, libc's ``aligned_alloc`` and ``free``,
then each graph input, each graph output, and for each dynamic buffer its address and its capacity in bytes. A kernel takes one pointer per
buffer, its integer params, then the worker's number and the number of workers, both i64. The state is an array of i64, laid out by
``StateLayout``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Union

from compiler.errors import STATUS_WORDS
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim
from compiler.ir.loop import Function
from compiler.ir.scalar import Array
from compiler.ir.types import DType


class Space(Enum):
    """Where a kernel argument lives."""

    ARENA = "arena"
    WEIGHTS = "weights"
    INPUT = "input"
    OUTPUT = "output"
    SCRATCH = "scratch"
    DYNAMIC = "dynamic"  # a buffer that is allocated when its size is known, and kept from run to run
    TEXTS_END = "texts_end"  # the i64 of the state that says how many bytes of texts are in use
    STATUS = "status"  # the state: where a kernel reports what it could not do


@dataclass(frozen=True, slots=True)
class Address:
    """A byte offset in the arena, the weights or the worker's own scratch, or in input, output or dynamic buffer number ``index``.

    Worker number w finds its own at w times ``each`` bytes further on.
    """

    space: Space
    offset: Dim = 0
    index: int = 0
    each: Dim = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One kernel of the inference. ``function`` is its number in ``Program.functions``; ``params`` are its integer arguments.

    The rest is for people and profiles; ``flops`` and ``nbytes`` (read and written) of one call, or of those for all shares. ``divisions`` are the
    nodes whose integer divisors it checks, in the order of their numbers.
    """

    function: int
    args: tuple[Address, ...]
    name: str
    family: str
    schedule: str
    flops: Dim
    nbytes: Dim
    params: tuple[Dim, ...] = ()
    divisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """Symbols take the integers that lie one after another from ``address`` on."""

    symbols: tuple[str, ...]
    address: Address
    dtype: DType


@dataclass(frozen=True, slots=True)
class Define:
    """A symbol takes the value of an expression."""

    symbol: str
    value: Dim


@dataclass(frozen=True, slots=True)
class Check:
    """The run ends with ``message`` unless ``low <= value <= high``; None: no bound. ``message`` may refer to the three by name in braces."""

    low: Dim | None
    value: Dim
    high: Dim | None
    message: str


@dataclass(frozen=True, slots=True)
class Allocate:
    """Dynamic buffer ``index`` holds at least ``nbytes`` from here on, of unspecified content; with ``keep``, what it held stays."""

    index: int
    nbytes: Dim
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Swap:
    """Two dynamic buffers change names."""

    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Branch:
    """Runs ``then`` where the bool at ``condition`` is true, else ``orelse``."""

    condition: Address
    then: tuple[Step, ...]
    orelse: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Runs ``body`` while ``iteration``, which counts from 0, is below ``trips`` (None: no limit) and the condition holds.

    The bool at ``first`` is the condition before the first iteration and that at ``following`` after each (None: true). ``count`` is a
    symbol for the number of iterations that were run. ``carried`` are symbols that take the value of an expression after each, all at once.
    """

    iteration: str
    count: str
    trips: Dim | None
    first: Address | None
    following: Address | None
    carried: tuple[Define, ...]
    body: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """Runs ``body`` once for every number from 0 up to ``count``, which its addresses know as ``SHARE``: every worker for its part of the numbers and
    by itself, as if it were the only one. What is written for one number is not read for another, but in the worker's scratch, where each
    begins anew. None of the kernels reports.
    """

    count: int
    body: tuple[KernelCall, ...]


Step = Union[KernelCall, Read, Define, Check, Allocate, Swap, Branch, Repeat, Shares]


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Positions in the state array, in i64 words.

    First what a run reports, as ``compiler.errors`` says: what went wrong (0: nothing; ``-1 - n``: check number n; ``what + (n << CALL_BITS)``:
    kernel call number n reports ``what``) and three numbers. Then the values of ``symbols`` and of ``definitions``, the bytes of arena, of
    one worker's scratch and of the texts in use, and the dims of the outputs, one output after another.
    """

    symbols: int
    definitions: int
    arena: int
    scratch: int
    texts: int
    outputs: tuple[int, ...]
    words: int


WORKERS = "workers."
"""A symbol that steps may use: the number of workers of the run."""

SHARE = "share."
"""A symbol that the calls of a ``Shares`` step may use: the number that they run for."""

TEXTS = "texts."
"""A symbol that steps may use, and a param of kernels that read texts: the bytes of texts in use. It rises as texts are made."""


@dataclass(frozen=True)
class Texts:
    """The texts of a program (``runtime/texts.py``): dynamic buffer number ``buffer``.

    It begins with the ``nbytes`` from ``offset`` of the weights on, which are those of the constants.
    The texts of the inputs follow, then those that the run makes.
    """

    buffer: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Program:
    """Steps, the kernels they call, and the weights: (byte offset, array) in execution order, 64-byte aligned.

    ``scratch_bytes`` is what each worker needs for itself, whatever kernel it runs; the workers' parts lie behind the arena, in order.
    ``arena_bound_bytes`` is the most bytes that live at the same time; None where that depends on sizes known at run time.
    ``results`` are the dynamic buffers that hold the outputs whose shape is only known when a run ends; None: the caller gives the memory.
    ``texts`` is None where there are no strings.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    functions: tuple[Function, ...]
    body: tuple[Step, ...]
    weights: tuple[tuple[int, Array], ...]
    weights_bytes: int
    arena_bytes: Dim
    arena_bound_bytes: int | None
    scratch_bytes: Dim = 0
    symbols: tuple[str, ...] = ()
    definitions: tuple[Define, ...] = ()
    dynamic: int = 0
    results: tuple[int | None, ...] = ()
    texts: Texts | None = None

    @cached_property
    def calls(self) -> tuple[KernelCall, ...]:
        """Every kernel call, in the order of the text; a call's number is its place here."""
        return tuple(step for step in walk(self.body) if isinstance(step, KernelCall))

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Every check, in the order of the text; a check's number is its place here."""
        return tuple(step for step in walk(self.body) if isinstance(step, Check))

    @cached_property
    def state(self) -> StateLayout:
        """Where in the state array everything lies."""
        definitions = STATUS_WORDS + len(self.symbols)
        arena = definitions + len(self.definitions)
        at = arena + 3
        outputs = []
        for value in self.outputs:
            outputs.append(at)
            at += value.type.rank
        return StateLayout(STATUS_WORDS, definitions, arena, arena + 1, arena + 2, tuple(outputs), at)


def walk(steps: tuple[Step, ...]) -> Iterator[Step]:
    """steps and those inside them, in the order of the text."""
    for step in steps:
        yield step
        match step:
            case Branch():
                yield from walk(step.then)
                yield from walk(step.orelse)
            case Repeat() | Shares():
                yield from walk(step.body)
