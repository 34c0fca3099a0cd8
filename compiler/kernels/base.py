"""What a kernel family is: it builds Loop IR for a workload under a schedule, and knows no op.

A ``Workload`` is everything a kernel depends on, canonical and hashable: it is the key of schedule choice, tuning records,
kernel de-duplication and the cache. A family's ``Schedule`` is a frozen dataclass whose fields are its search space.

A built function's buffers are, in order: one for each ``Workload.inputs``, one for each ``Workload.operands`` and one for each
``Workload.results``. Then, in any order, those it declares for itself: scratch, the status, the texts and their end (``Access``).
Inputs and operands that are constants arrive as ``pack`` laid them out; everything else as its type's ``physical_shape``, row-major.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

from compiler.errors import DIVISION, InternalError
from compiler.ir.control import attr_symbols
from compiler.ir.graph import Attr
from compiler.ir.intexpr import Dim, IntExpr, mod, symbols
from compiler.ir.loop import Access, Buffer, Function, Reg, VecType
from compiler.ir.loop_builder import LoopBuilder
from compiler.ir.scalar import Arg, Array, Call, Scalar, calls, divisors, leaves, rebuilt, unchecked
from compiler.ir.strided import Strided, row_major
from compiler.ir.types import DType, TensorType, pack_physical
from compiler.target import Target


@dataclass(frozen=True)
class Panels:
    """How a constant matrix ``[k, n]`` is packed: its columns as tiles of at most so many ``vectors`` of ``lanes``, each as ``[k][columns]``."""

    vectors: int
    lanes: int


@dataclass(frozen=True)
class Operand:
    """An input of a kernel; ``constant`` ones are packed at compile time.

    Where there is a ``view``, the elements lie so in what the kernel is given; otherwise as the type says. With ``panels``, a constant table is
    to be packed as its transpose is for a product.
    """

    type: TensorType
    constant: bool = False
    view: Strided | None = None
    panels: Panels | None = None

    @property
    def elements(self) -> Dim:
        """Elements of the memory that it is in."""
        return self.type.elements if self.view is None else self.view.elements

    @property
    def strided(self) -> Strided:
        """Where the elements of a row-major operand lie."""
        return Strided.row_major(self.type.shape) if self.view is None else self.view


@dataclass(frozen=True)
class Prologue:
    """What an anchor reads that is computed as it is read: its type, and its element from ``Arg(i)``, the element of ``inputs[i]``.

    These are the first ``reads`` inputs. They broadcast to the type (numpy's rules, equal rank).
    """

    type: TensorType
    element: Scalar
    reads: int


@dataclass(frozen=True)
class Further:
    """A further result of a kernel, of the shape and layout of its output: its type, and the element stored where the output's is, in the
    operands of ``Workload.epilogue``."""

    type: TensorType
    element: Scalar


@dataclass(frozen=True)
class Workload:
    """A fused kernel to be built.

    ``params`` are the anchor op's attributes. ``epilogue`` gives the stored element from ``Arg(0)``, the anchor's result, and
    ``Arg(1 + i)``, the element of ``operands[i]``, whose shapes broadcast to the output's (numpy's rules, equal rank).
    ``further`` is what is stored of each element beside. ``anchor`` is the type of the anchor's own result: the output's shape and layout,
    perhaps another dtype. With a ``prologue``, which the op must allow (``Op.takes_prologue``), ``inputs`` begin with what its first operand is
    computed from. Where there are ``stored_strides``, the output, which then is all that is stored, has its elements so far apart along its physical
    axes in what the kernel writes; otherwise they lie as its type says.
    """

    family: str
    params: tuple[tuple[str, Attr], ...]
    inputs: tuple[Operand, ...]
    anchor: TensorType
    output: TensorType
    epilogue: Scalar
    operands: tuple[Operand, ...] = ()
    threads: int = 1
    prologue: Prologue | None = None
    stored_strides: tuple[Dim, ...] | None = None
    further: tuple[Further, ...] = ()

    @property
    def results(self) -> tuple[TensorType, ...]:
        """The types of all that is stored, the output first."""
        return (self.output, *(result.type for result in self.further))

    @property
    def elements(self) -> tuple[Scalar, ...]:
        """The elements of ``results``."""
        return (self.epilogue, *(result.element for result in self.further))

    @property
    def x(self) -> TensorType:
        """The type of what the anchor reads first."""
        return self.inputs[0].type if self.prologue is None else self.prologue.type

    @property
    def others(self) -> tuple[Operand, ...]:
        """What the anchor reads beside its first operand."""
        return self.inputs[1 if self.prologue is None else self.prologue.reads :]

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

    def dim(self, name: str) -> Dim:
        """A parameter that is an integer, perhaps one of run time."""
        value = self.attrs[name]
        if not isinstance(value, IntExpr):
            return self.int(name)
        return value

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The names of every size that is known at run time only, sorted: the integer params of its kernel."""
        operands = (*self.inputs, *self.operands)
        dims = [dim for type_ in (*(o.type for o in operands), self.anchor, self.output) for dim in type_.shape]
        dims += [dim for o in operands if o.view is not None for dim in (*o.view.strides, o.view.offset, o.view.elements)]
        dims += self.stored_strides or ()
        return tuple(sorted({name for dim in dims for name in symbols(dim)} | set(attr_symbols(self.params))))

    @property
    def output_strides(self) -> tuple[Dim, ...]:
        """Distances of the output's elements along its physical axes."""
        return physical_strides(self.output) if self.stored_strides is None else self.stored_strides

    @property
    def output_elements(self) -> Dim:
        """Elements of the memory from the output's first element to its last."""
        if self.stored_strides is None or self.output.elements == 0:
            return self.output.elements
        last: Dim = 0
        for dim, step in zip(self.output.physical_shape, self.stored_strides, strict=True):
            last = last + (dim - 1) * step
        return last + 1

    @property
    def stores_plainly(self) -> bool:
        """Whether the anchor's result is stored as it is, all together, and nothing else."""
        return self.elements == (Arg(0, self.anchor.dtype),) and self.stored_strides is None


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


@runtime_checkable
class TextMaker(Family, Protocol):
    """A family whose results are new texts, made by two kernels of the same buffers.

    The first gives every element of the output a place behind the texts in use, as many bytes as its record takes, and says where they end;
    when there is memory for them, the second, which is ``build``'s, writes the records. Neither has an epilogue.
    """

    def build_sizes(self, workload: Workload, schedule: Any, target: Target, name: str) -> Function:
        """The kernel that finds the places."""


@runtime_checkable
class PanelPacker(Family, Protocol):
    """A family that packs constant matrices as panels."""

    def packed(self, workload: Workload, schedule: Any) -> tuple[int, Panels] | None:
        """Which input is packed so, and how; None: none is."""


@runtime_checkable
class PanelReader(Family, Protocol):
    """A family whose input 0, a constant table ``[n, k]``, may lie as its transpose is packed (``Operand.panels``)."""

    def reads_panels(self, workload: Workload) -> bool:
        """Whether it can, and that costs little beside what others do with the table."""


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
    return row_major(type_.physical_shape)


def broadcast_strides(operand: TensorType, output: TensorType) -> tuple[Dim, ...]:
    """Strides of operand along each physical axis of output: 0 where it is broadcast.

    An operand whose channel dim is 1 is read as it is whatever the output's layout: its one channel serves every lane.
    """
    shape, strides = list(operand.physical_shape), list(physical_strides(operand))
    if output.block != 1 and operand.block == 1:
        shape.append(1)
        strides.append(1)
    elif operand.block != 1 and operand.shape[1] == 1 != output.shape[1]:
        shape[-1] = 1
        if output.block == 1:
            del shape[-1], strides[-1]
    padding = len(output.physical_shape) - len(shape)
    ones: list[Dim] = [1] * padding
    zeros: list[Dim] = [0] * padding
    pairs = zip(ones + shape, zeros + strides, output.physical_shape, strict=True)
    return tuple(0 if dim == 1 else stride for dim, stride, _ in pairs)


def flat_axis(workload: Workload, axes: Sequence[int]) -> int | None:
    """The physical output axis along which all of ``axes`` (neighbours, outermost first) can be walked as one.

    It is the last of them longer than 1. None where the output does not lie together along them, or an operand is broadcast along a part of
    them only.
    """
    shape = workload.output.physical_shape
    long = [axis for axis in axes if shape[axis] != 1]
    for strides in (workload.output_strides, *(broadcast_strides(operand.type, workload.output) for operand in workload.operands)):
        if any(strides[axis] != strides[below] * shape[below] for axis, below in pairwise(long)):
            return None
    return long[-1] if long else axes[-1]


def pack_operands(workload: Workload, constants: Sequence[Array | None]) -> list[Array | None]:
    """Constant epilogue operands as they lie in memory in their own layout."""
    packed: list[Array | None] = []
    for operand, array in zip(workload.operands, constants, strict=True):
        packed.append(None if array is None else pack_physical(array, operand.type.block))
    return packed


class Epilogue:
    """Inlines a workload's epilogue: call ``store`` with the anchor's result and where it goes.

    ``buffers`` are those of ``workload.operands``, then those of ``workload.further``, in order. ``row_axes`` are the physical output axes along
    which a builder's accumulators differ in one tile; when the epilogue begins by adding an operand that does not vary along them (a bias),
    ``initial`` gives it as the accumulators' start and the addition is dropped. Without ``row_axes`` nothing is folded.
    """

    def __init__(self, builder: LoopBuilder, workload: Workload, buffers: Sequence[Buffer], row_axes: Sequence[int] = ()) -> None:
        self._builder = builder
        self._workload = workload
        self._buffers = tuple(buffers[: len(workload.operands)])
        self._further = tuple(buffers[len(workload.operands) :])
        self._strides = [broadcast_strides(o.type, workload.output) for o in workload.operands]
        self._output_strides = workload.output_strides
        self._exprs = workload.elements
        self._bias: int | None = None
        if row_axes:
            self._fold_bias([axis % len(self._output_strides) for axis in row_axes])
        self._divisors = [unchecked(divisor) for divisor in divisors(*self._exprs)]
        self._exprs = tuple(map(unchecked, self._exprs))
        self._used = {leaf.index for leaf in leaves(*self._exprs)}

    @property
    def padded(self) -> bool:
        """Whether the output has padding lanes, so that whole vectors may always be stored."""
        return self._workload.output.block != 1

    def initial(self, coordinates: Sequence[Dim], type_: VecType, loads: dict[object, Reg], count: Dim | None = None) -> Reg:
        """What a sum that goes to ``coordinates`` starts from: the folded bias, or zero. ``loads`` remembers what is in registers."""
        if self._bias is not None:
            return self._operand(self._bias, coordinates, type_.lanes, count, loads)
        zero = loads.get(type_)
        if zero is None:
            zero = loads[type_] = self._builder.const(0, type_)
        return zero

    def store(
        self,
        out: Buffer,
        value: Reg,
        coordinates: Sequence[Dim],
        count: Dim | None = None,
        loads: dict[object, Reg] | None = None,
        axis: int = -1,
    ) -> None:
        """Store what is to be stored for ``value`` at physical output coordinates, lanes along physical axis ``axis``: in ``out`` and in the
        buffers of further results.

        An integer divisor that is zero in a lane in use is reported, and divides as if it were one.
        """
        known = {} if loads is None else loads
        lanes = value.type.lanes
        operands = (self._operand(n, coordinates, lanes, count, known, axis) if n + 1 in self._used else value for n in range(len(self._buffers)))
        found = self._builder.scalars((*self._exprs, *self._divisors), [value, *operands])
        self._check_divisors(found[len(self._exprs) :], coordinates, lanes if count is None else count, axis)
        index, stride = self.at(coordinates, axis)
        for buffer, stored in zip((out, *self._further), found, strict=False):
            self._builder.store(buffer, index, stored, stride=stride, count=count)

    def at(self, coordinates: Sequence[Dim], axis: int = -1) -> tuple[Dim, Dim]:
        """The element of the output's memory at its coordinates, and the distance of two lanes along physical axis ``axis``."""
        index: Dim = 0
        for coordinate, stride in zip(coordinates, self._output_strides, strict=True):
            index = index + coordinate * stride
        return index, self._output_strides[axis] if self._output_strides else 1

    def _operand(self, number: int, coordinates: Sequence[Dim], lanes: int, count: Dim | None, loads: dict[object, Reg], axis: int = -1) -> Reg:
        strides = self._strides[number]
        index: Dim = 0
        for coordinate, stride in zip(coordinates, strides, strict=True):
            index = index + coordinate * stride
        key = (number, index, lanes, axis)
        value = loads.get(key)
        if value is None:
            along = strides[axis] if strides else 0
            value = loads[key] = self._builder.load(self._buffers[number], index, lanes, stride=along, count=count if along != 0 else None)
        return value

    def _check_divisors(self, found: Sequence[Reg], coordinates: Sequence[Dim], count: Dim, axis: int) -> None:
        """Report the divisors that are zero in one of the first ``count`` lanes, those of padding aside."""
        b = self._builder
        flags = []
        for divisor in found:
            lanes = divisor.type.lanes
            flag = b.op("eq", divisor, b.const(0, divisor.type))
            for used in (count, self._before_padding(coordinates, axis, lanes)):
                if used != lanes:
                    flag = b.op("and", flag, b.first_lanes(used, lanes))
            flags.append(flag)
        if not flags:
            return
        with b.if_less(0, b.any_lane(flags)):
            for number, flag in enumerate(flags):
                with b.if_less(0, b.any_lane([flag])):
                    b.store(b.status(), 0, b.const(DIVISION + number, VecType(DType.INT64, 1)))

    def _before_padding(self, coordinates: Sequence[Dim], axis: int, lanes: int) -> Dim:
        """How many of the lanes along ``axis`` are not in the padding of a channel block; any number from ``lanes`` on: all, from 0 down: none."""
        output = self._workload.output
        if output.block == 1 or mod(output.shape[1], output.block) == 0:
            return lanes
        left = output.shape[1] - coordinates[1] * output.block - coordinates[-1]
        return left if axis % len(coordinates) == len(coordinates) - 1 else left * lanes

    def _fold_bias(self, row_axes: Sequence[int]) -> None:
        total = _sum_with_anchor(self._exprs)
        if total is None:
            return
        other = next(a for a in total.args if isinstance(a, Arg) and a.index != 0)
        number = other.index - 1
        if other.dtype is self._workload.anchor.dtype and all(self._strides[number][axis] == 0 for axis in row_axes):
            self._bias = number
            self._exprs = tuple(rebuilt(expr, lambda part: Arg(0, part.dtype) if part == total else part) for expr in self._exprs)


def _sum_with_anchor(exprs: Sequence[Scalar]) -> Call | None:
    """The ``add`` of Arg(0) and another operand, if that is all that reads Arg(0)."""
    readers = [call for call in calls(*exprs) for arg in call.args if isinstance(arg, Arg) and arg.index == 0]
    alone = len(readers) == 1 and not any(isinstance(expr, Arg) and expr.index == 0 for expr in exprs)
    found = readers[0] if alone else None
    return found if found is not None and found.fn == "add" and all(isinstance(arg, Arg) for arg in found.args) else None


def declare_buffers(builder: LoopBuilder, workload: Workload, packed: Mapping[int, Dim] | None = None) -> tuple[list[Buffer], list[Buffer], Buffer]:
    """The buffers of a kernel: inputs, what its epilogue reads and, behind that, stores beside the output, and the output.

    ``packed`` gives sizes of packed inputs, by number. The names of the kernel's integer params are reserved.
    """
    builder.reserve(workload.symbols)
    sizes = packed or {}
    inputs = [builder.buffer(f"in{i}", operand.type.dtype, sizes.get(i, operand.elements), Access.READ) for i, operand in enumerate(workload.inputs)]
    operands = [builder.buffer(f"ep{i}", operand.type.dtype, operand.type.elements, Access.READ) for i, operand in enumerate(workload.operands)]
    out = builder.buffer("out", workload.output.dtype, workload.output_elements, Access.WRITE)
    further = [builder.buffer(f"out{i}", type_.dtype, type_.elements, Access.WRITE) for i, type_ in enumerate(workload.results) if i > 0]
    return inputs, [*operands, *further], out
