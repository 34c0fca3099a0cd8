"""What a kernel family is: it builds Loop IR for a workload under a schedule, and knows no op.

A ``Workload`` is everything a kernel depends on, canonical and hashable: it is the key of schedule choice, tuning records,
kernel de-duplication and the cache. A family's ``Schedule`` is a frozen dataclass whose fields are its search space.

A built function's buffers are, in order: one for each ``Workload.inputs``, one for each ``Workload.operands``, the output.
Inputs and operands that are constants arrive as ``pack`` laid them out; everything else as its type's ``physical_shape``, row-major.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from compiler.errors import InternalError
from compiler.ir.graph import Attr
from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Function, Reg
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Arg, Array, Scalar
from compiler.ir.types import TensorType, pack_physical
from compiler.target import Target


@dataclass(frozen=True)
class Operand:
    """An input of a kernel; ``constant`` ones are packed at compile time."""

    type: TensorType
    constant: bool = False


@dataclass(frozen=True)
class Workload:
    """A fused kernel to be built.

    ``params`` are the anchor op's attributes. ``epilogue`` gives the stored element from ``Arg(0)``, the anchor's result, and
    ``Arg(1 + i)``, the element of ``operands[i]``, whose shapes broadcast to the output's (numpy's rules, equal rank).
    ``anchor`` is the type of the anchor's own result: the output's shape and layout, perhaps another dtype.
    """

    family: str
    params: tuple[tuple[str, Attr], ...]
    inputs: tuple[Operand, ...]
    anchor: TensorType
    output: TensorType
    epilogue: Scalar
    operands: tuple[Operand, ...] = ()
    threads: int = 1

    @cached_property
    def attrs(self) -> Mapping[str, Attr]:
        """``params`` as a mapping."""
        return dict(self.params)

    def ints(self, name: str) -> tuple[int, ...]:
        """A parameter that is a tuple of integers."""
        value = self.attrs[name]
        if not isinstance(value, tuple) or not all(isinstance(v, int) for v in value):
            raise InternalError(f"parameter {name} of {self.family} is {value!r}, not integers", where="compiler.kernels")
        return tuple(v for v in value if isinstance(v, int))

    def int(self, name: str) -> int:
        """A parameter that is an integer."""
        value = self.attrs[name]
        if not isinstance(value, int):
            raise InternalError(f"parameter {name} of {self.family} is {value!r}, not an integer", where="compiler.kernels")
        return value

    @property
    def has_epilogue(self) -> bool:
        """Whether anything happens between the anchor's result and the store."""
        return not isinstance(self.epilogue, Arg)


class Schedule(Protocol):
    """A frozen dataclass of plain values; ``str`` of it is its text form."""

    __dataclass_fields__: Any


class Family(Protocol):
    """A kernel family: one module of this package, registered under ``name``."""

    name: str

    def supports(self, workload: Workload, target: Target) -> bool:
        """Whether this family can build workload (its ``family`` field is not looked at)."""

    def heuristic(self, workload: Workload, target: Target) -> Any:
        """The schedule used when nothing is known from measurements; candidate 0 of every search."""

    def space(self, workload: Workload, target: Target) -> Sequence[Any]:
        """All legal schedules, the heuristic first."""

    def pack(self, workload: Workload, schedule: Any, constants: Sequence[Array | None]) -> list[Array | None]:
        """Constant inputs (logical order; None: not constant) in the order and shape the built function reads."""

    def build(self, workload: Workload, schedule: Any, target: Target, name: str) -> Function:
        """The kernel."""

    def flops(self, workload: Workload) -> Dim:
        """Floating-point operations, a multiply-add counted as two."""


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Make a family known by its name."""
    if family.name in _FAMILIES:
        raise InternalError(f"kernel family {family.name} is registered twice", where="compiler.kernels")
    _FAMILIES[family.name] = family


def family(name: str) -> Family:
    """The family called name. Raises InternalError where there is none."""
    found = _FAMILIES.get(name)
    if found is None:
        raise InternalError(f"no kernel family is called {name!r}", where="compiler.kernels")
    return found


def physical_strides(type_: TensorType) -> tuple[Dim, ...]:
    """Element strides of ``type_.physical_shape``, row-major."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(type_.physical_shape):
        strides.append(step)
        step = step * dim
    return tuple(reversed(strides))


def broadcast_strides(operand: TensorType, output: TensorType) -> tuple[Dim, ...]:
    """Strides of operand along each physical axis of output: 0 where it is broadcast.

    An operand whose channel dim is 1 is read as row-major whatever the output's layout: its one channel serves every lane.
    """
    shape, strides = list(operand.physical_shape), list(physical_strides(operand))
    if output.block != 1 and operand.block == 1:
        shape.append(1)
        strides.append(1)
    padding = len(output.physical_shape) - len(shape)
    shape, strides = [1] * padding + shape, [0] * padding + strides
    return tuple(0 if dim == 1 and out != 1 else stride for dim, stride, out in zip(shape, strides, output.physical_shape, strict=True))


def pack_operands(workload: Workload, constants: Sequence[Array | None]) -> list[Array | None]:
    """Constant epilogue operands as they lie in memory in their own layout."""
    packed: list[Array | None] = []
    for operand, array in zip(workload.operands, constants, strict=True):
        packed.append(None if array is None else pack_physical(array, operand.type.block))
    return packed


class Epilogue:
    """Inlines a workload's epilogue: call ``apply`` with the anchor's result and where it goes.

    ``buffers`` are those of ``workload.operands``, in order.
    """

    def __init__(self, builder: LoopBuilder, workload: Workload, buffers: Sequence[Buffer]) -> None:
        self._builder = builder
        self._workload = workload
        self._buffers = tuple(buffers)
        self._strides = [broadcast_strides(o.type, workload.output) for o in workload.operands]

    def apply(self, value: Reg, coordinates: Sequence[Dim], count: int | None = None) -> Reg:
        """The element(s) to store for ``value`` at physical output coordinates; its lanes run along the last physical axis."""
        if not self._workload.has_epilogue:
            return value
        lanes = value.type.lanes
        args = [value]
        for buffer, strides in zip(self._buffers, self._strides, strict=True):
            index: Dim = 0
            for coordinate, stride in zip(coordinates, strides, strict=True):
                index = index + coordinate * stride
            along = strides[-1]
            args.append(self._builder.load(buffer, index, lanes, stride=along, count=count if along != 0 else None))
        return self._builder.scalar(self._workload.epilogue, args)


def as_float64(array: Array) -> Array:
    """array in float64, for weight arithmetic that is rounded once."""
    return np.asarray(array, np.float64)
