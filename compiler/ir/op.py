"""What an operator is: one class says everything about it, and registering it makes it known everywhere.

Canonical ops have lower-case names and one form each. ONNX operators reach them through the ``forms`` their op files declare:
a form reads one ONNX node (some range of its versions) and emits canonical ops through a ``FormContext``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compiler.errors import InternalError, UnsupportedForm
from compiler.ir.box import Box, Part, broadcast_part
from compiler.ir.broadcast import broadcast_assumptions, broadcast_shapes
from compiler.ir.graph import Attr, Node, Region, Value
from compiler.ir.intexpr import Dim
from compiler.ir.narrow import widen
from compiler.ir.run_time import depends_on_run
from compiler.ir.scalar import Arg as ScalarArg
from compiler.ir.scalar import Array, Scalar, evaluate
from compiler.ir.types import DType, TensorType

if TYPE_CHECKING:
    from compiler.ir.builder import GraphBuilder
    from compiler.ir.strided import Strided


class Layouts(Enum):
    """Which layouts of its data operands and result a node can run in."""

    PLAIN = "plain"  # row-major everywhere
    SAME = "same"  # any layout, the same for the result and, if it is elementwise, every operand that does not only broadcast, else operand 0
    ANY = "any"  # any layout of each data operand and of the result
    BLOCKED_OUT = "blocked-out"  # any layout of input 0, blocked result; the other inputs are row-major


@dataclass(frozen=True)
class Sample:
    """A small ONNX node for the test matrix: inputs are arrays (None for an absent one); ``constant`` lists those given as initializers."""

    op_type: str
    inputs: tuple[Array | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 20
    constant: tuple[int, ...] = ()
    outputs: int = 1
    domain: str = ""


@dataclass(frozen=True)
class FormContext:
    """What a form sees of the ONNX node it imports. Attribute values are int, float, str, tuples of these, or numpy arrays."""

    op_type: str
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    opset: int
    builder: GraphBuilder
    outputs: int
    name: str
    declared: tuple[tuple[int, ...] | None, ...] = ()

    def input(self, index: int) -> Value:
        """Input ``index``, which must be there."""
        value = self.optional(index)
        if value is None:
            raise UnsupportedForm(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Array | None:
        """The data of input ``index`` when it is known now; None when it is absent or computed at run time."""
        value = self.optional(index)
        return None if value is None else self.builder.array(value)

    def dims(self, index: int) -> tuple[Dim, ...] | None:
        """The integers in input ``index`` (rank 0 or 1), symbolic ones included; None when it is absent or computed at run time."""
        value = self.optional(index)
        return None if value is None else self.builder.dims(value)

    def require_dims(self, index: int, role: str) -> tuple[Dim, ...]:
        """The integers in input ``index``; those computed at run time are bound to symbols, which may be negative."""
        dims = self.dims(index)
        if dims is not None:
            return dims
        value = self.input(index)
        if value.type.dtype.is_float or value.type.rank > 1:
            raise UnsupportedForm(f"{role} (input {index}) are numbers in {value.type}, not an integer or a list of them")
        if not value.type.is_static:
            raise UnsupportedForm(f"how many numbers {role} (input {index}) are, {value.type}, is computed from data at run time")
        return self.builder.bind(value)

    def check(self, low: Dim | None, value: Dim, high: Dim | None, message: str) -> None:
        """``low <= value <= high``, now or, where numbers are not known, in every run; ``{value}``, ``{low}``, ``{high}`` in message."""
        self.builder.check(low, value, high, message, self.place)

    @property
    def place(self) -> str:
        """The node, for messages."""
        return f"{self.op_type} node {self.name!r}"

    def settled(self, dims: Sequence[Dim], output: int = 0) -> tuple[Dim, ...]:
        """The shape of a result, with what the model declares in the place of what only a run knows, which is checked to agree."""
        declared = self.declared[output] if output < len(self.declared) else None
        if declared is None or len(declared) != len(dims):
            return tuple(map(self.builder.define, dims))
        found: list[Dim] = []
        for dim, number in zip(dims, declared, strict=True):
            known_later = depends_on_run(dim)
            if known_later:
                self.check(number, dim, number, "a dim of its result is {value}, and the model declares it as {low}")
            found.append(number if known_later else dim)
        return tuple(found)

    def declared_shape(self, output: int, role: str, rank: int | None = None) -> tuple[int, ...]:
        """The static shape the model declares for a result, which stands in for a shape argument that is computed at run time.

        The declaration binds the model: an argument that asks for another shape contradicts it.
        """
        shape = self.declared[output] if output < len(self.declared) else None
        if shape is None or rank not in (None, len(shape)):
            what = "does not declare the shape of the result" if shape is None else f"declares a result of rank {len(shape)}, not {rank}"
            raise UnsupportedForm(f"{role} is computed from data at run time, and the model {what}")
        return shape

    def emit(self, op: str, *inputs: Value | None, **attrs: Attr) -> Value:
        """One canonical node with one output."""
        return self.builder.emit(op, *inputs, name=self.name, **attrs)

    def const(self, array: Array) -> Value:
        """A constant value."""
        return self.builder.constant(array)


Simplification = Callable[[Node, "GraphBuilder"], Value | None]
"""A value equal to a node's only output, made of cheaper nodes or simply one of its inputs; None: nothing to do. Its name is shown."""

FormBuild = Callable[[FormContext], Value | Sequence[Value]]


@dataclass(frozen=True)
class OnnxForm:
    """One range of versions of one ONNX operator and how its nodes become canonical ones."""

    op_type: str
    build: FormBuild
    since: int = 1
    until: int | None = None
    domain: str = ""

    def accepts(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset <= self.until)


class Op(ABC):
    """A canonical operator. Subclasses are stateless; ``register`` makes the one instance known by ``name``."""

    name: ClassVar[str]
    forms: ClassVar[tuple[OnnxForm, ...]] = ()
    samples: ClassVar[tuple[Sample, ...]] = ()
    families: ClassVar[tuple[str, ...]] = ()
    """Kernel families that can build it, best first; the first that supports a workload is taken."""
    dims_foldable: ClassVar[bool] = False
    """Whether ``evaluate`` also works on object arrays of symbolic dims (shape arithmetic)."""
    takes_epilogue: ClassVar[bool] = True
    """Whether its kernels store through their epilogue: elementwise nodes may follow in its group, and the result may lie in strides. Not where
    an element is written more than once."""
    computes: ClassVar[bool] = False
    """Whether its kernels do arithmetic: they read half-precision operands as float32, and that is what their epilogue sees."""
    broadcasts: ClassVar[int | None] = None
    """How many of the last axes of its operands do not broadcast by numpy's rules, where the others do; None: none does."""
    takes_strings: ClassVar[bool] = False
    """Whether operands may be strings: it only moves elements, or its kernels know texts."""
    is_view: ClassVar[bool] = False
    """Whether the result is always input 0's memory under another shape (row-major)."""
    simplifications: ClassVar[tuple[Simplification, ...]] = ()
    """What may take the place of a node, the first that gives something."""

    @abstractmethod
    def infer(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
        """The logical result types. Raises UnsupportedForm where the operands do not fit."""

    @abstractmethod
    def evaluate(self, inputs: Sequence[Array | None], attrs: Mapping[str, Attr]) -> tuple[Array, ...]:
        """Reference semantics in numpy, on logical arrays."""

    def scalar(self, args: Sequence[Scalar], attrs: Mapping[str, Attr]) -> Scalar | None:
        """For an elementwise op: its result for one element. None: not elementwise."""
        return None

    def regions(self, inputs: Sequence[TensorType], attrs: Mapping[str, Attr]) -> tuple[Region, ...] | None:
        """For an index-mapping op: which input element each output element is, boxes covering the output. None: it is not one."""
        return None

    def part(self, inputs: Sequence[TensorType], attrs: Mapping[str, Attr], box: Box) -> Part | None:
        """How a box of the only result is computed from boxes of the operands that are there, where all sizes are known. None: it cannot be."""
        return None

    def layouts(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr], block: int) -> Layouts:
        """The layouts a node can run in when channels are blocked by ``block``."""
        return Layouts.PLAIN

    def view_offset(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr], result: TensorType) -> Dim | None:
        """The element of input 0's memory at which the result lies, in the layouts of these types, where it is a part of it; None: it is not."""
        return 0 if self.is_view else None

    def held_starts(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr], result: TensorType) -> tuple[tuple[Dim, ...], ...] | None:
        """For an op that does nothing where its operands are made in its result's memory: the physical coordinates in it at which each begins.
        None: it is not one."""
        return None

    def takes_prologue(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr], constant: Sequence[bool]) -> bool:
        """Whether its kernels can compute the elements of operand 0 as they read them, from other tensors that broadcast to it.

        ``constant`` says which operands are constants.
        """
        return False

    def reads_strided(self, operand: int, view: Strided, inputs: Sequence[TensorType | None]) -> bool:
        """Whether its kernels can read operand number ``operand`` where it lies, as such a view of another tensor's memory."""
        return False

    def known_content(self, inputs: Sequence[TensorType | None], contents: Sequence[Array | None], attrs: Mapping[str, Attr]) -> Array | None:
        """The integers in the result, as an object array of dims, from the operands' types and those contents that are known."""
        if not self.dims_foldable or any(c is None and t is not None for c, t in zip(contents, inputs, strict=True)):
            return None
        if any(c is not None and c.dtype.kind not in "iubO" for c in contents):
            return None
        try:
            (content,) = self.evaluate([None if c is None else c.astype(object) for c in contents], attrs)
        except (TypeError, KeyError, ValueError, ZeroDivisionError):
            return None
        return np.asarray(content, dtype=object)

    def divisors(self, contents: Sequence[Array | None]) -> Sequence[Dim]:
        """The integers that ``known_content`` divides by; a run checks that none is zero."""
        return ()

    def assumes(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> Sequence[tuple[Dim, Dim]]:
        """Dims that ``infer`` takes to be equal where one of them is symbolic; a run checks it."""
        return ()


class Elementwise(Op):
    """An op given by its scalar expression: operands broadcast by numpy's rules."""

    families = ("injective",)
    broadcasts = 0

    def scalar(self, args: Sequence[Scalar], attrs: Mapping[str, Attr]) -> Scalar:
        """The element's expression; every elementwise op has one."""
        raise InternalError(f"elementwise op {self.name} declares no scalar expression", where="compiler.ops")

    def infer(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> tuple[TensorType, ...]:
        present = present_types(inputs)
        args = [ScalarArg(i, t.dtype) for i, t in enumerate(present)]
        return (TensorType(self.scalar(args, attrs).dtype, broadcast_shapes([t.shape for t in present])),)

    def evaluate(self, inputs: Sequence[Array | None], attrs: Mapping[str, Attr]) -> tuple[Array, ...]:
        arrays = [x for x in inputs if x is not None]
        args = [ScalarArg(i, DType.of(x.dtype)) for i, x in enumerate(arrays)]
        expr, shape = widen(self.scalar(args, attrs)), np.broadcast_shapes(*(x.shape for x in arrays))
        return (np.empty(shape, expr.dtype.numpy) if 0 in shape else np.broadcast_to(evaluate(expr, arrays), shape),)

    def part(self, inputs: Sequence[TensorType], attrs: Mapping[str, Attr], box: Box) -> Part | None:
        return Part(tuple(broadcast_part(t.static_shape, box) for t in inputs), attrs)

    def assumes(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr]) -> Sequence[tuple[Dim, Dim]]:
        return broadcast_assumptions([t.shape for t in present_types(inputs)])

    def layouts(self, inputs: Sequence[TensorType | None], attrs: Mapping[str, Attr], block: int) -> Layouts:
        return Layouts.SAME


def present_types(inputs: Sequence[TensorType | None]) -> list[TensorType]:
    """The types of the inputs that are there."""
    return [t for t in inputs if t is not None]


_REGISTRY: dict[str, Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Make an op known by its name; used as a class decorator."""
    if cls.name in _REGISTRY:
        raise InternalError(f"op {cls.name} is registered twice", where="compiler.ops")
    _REGISTRY[cls.name] = cls()
    return cls


def extend(cls: type[Op], forms: tuple[OnnxForm, ...], samples: tuple[Sample, ...]) -> None:
    """More ONNX operators that become an op, from a file of their own, with their samples."""
    cls.forms = (*cls.forms, *forms)
    cls.samples = (*cls.samples, *samples)


def lookup(name: str) -> Op:
    """The op called name. Raises InternalError where there is none."""
    op = _REGISTRY.get(name)
    if op is None:
        raise InternalError(f"no op is called {name!r}", where="compiler.ops", hint="import compiler.ops first, so that op files register")
    return op


def all_ops() -> tuple[Op, ...]:
    """Every registered op, by name."""
    return tuple(_REGISTRY[name] for name in sorted(_REGISTRY))
