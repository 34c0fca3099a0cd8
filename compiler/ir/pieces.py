"""Elements that lie elsewhere: what nodes that only move elements, and arithmetic between them, make of tensors, as boxes to be computed in one loop.

A ``Piece`` is a box of a row-major result in which every element is one expression of elements whose places in the row-major tensors around depend
linearly on its own. ``pieces`` finds them from the result back: a concatenation or padding cuts a box in two, a reshape splits one of its axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from compiler.ir.graph import Constant, Graph, Node, Region, Value
from compiler.ir.intexpr import Apply, Dim, IntExpr, Sym, ceildiv, floordiv, substitute, sym
from compiler.ir.op import lookup
from compiler.ir.scalar import Arg, Const, Scalar
from compiler.ir.scalar import substitute as with_args
from compiler.ir.strided import row_major, runs
from compiler.ir.types import DType, compute_dtype

_MOST_PIECES = 16
"""Boxes of one result: each has code of its own."""


class Read(NamedTuple):
    """An element that a piece reads: of tensor number ``source``, at ``offset`` plus the position along each axis times its stride."""

    source: int
    offset: Dim
    strides: tuple[Dim, ...]


class Piece(NamedTuple):
    """A box of ``extents``, whose first element lies at ``offset`` in the result's memory, the others ``strides`` apart along each axis; ``element``
    is in ``Arg(i)``, the element at ``reads[i]``."""

    extents: tuple[Dim, ...]
    offset: Dim
    strides: tuple[Dim, ...]
    element: Scalar
    reads: tuple[Read, ...]


def moves(node: Node) -> bool:
    """Whether a node only moves elements between row-major tensors: an index map, or another shape."""
    if len(node.outputs) != 1 or node.op == "group" or any(v.type.block != 1 for v in (*node.present_inputs, node.output)):
        return False
    if any(v.type.dtype is not node.output.type.dtype for v in node.present_inputs):
        return False
    op = lookup(node.op)
    return op.is_view or op.regions([v.type for v in node.present_inputs], node.attrs) is not None


Pieces = tuple[tuple[Piece, ...], tuple[Value, ...]]
"""Pieces, and the tensors that they read."""


def moved_pieces(region: Graph, held: Mapping[Value, Constant], stored_strides: tuple[Dim, ...] | None = None) -> Pieces | None:
    """``pieces`` of the result of a group's region where nodes move elements otherwise than one alone that is its anchor; None elsewhere, too."""
    moving = [node for node in region.nodes if moves(node)]
    if len(region.outputs) != 1 or not moving or is_anchor(moving, region):
        return None
    return pieces(region.outputs[0], region.producers, held, stored_strides)


def is_anchor(moving: Sequence[Node], region: Graph) -> bool:
    """Whether nodes of a group's region that move elements are one, of the shape of the results, that reads nothing the region makes."""
    shape = region.outputs[0].type.shape
    return len(moving) == 1 and moving[0].output.type.shape == shape and region.producers.keys().isdisjoint(moving[0].present_inputs)


def pieces(
    result: Value, producers: Mapping[Value, Node], held: Mapping[Value, Constant], stored_strides: tuple[Dim, ...] | None = None
) -> Pieces | None:
    """The pieces of a value that nodes which move elements and elementwise ones make; ``held`` are constants, ``stored_strides`` say how the value
    lies where that is not together.

    None where places are not linear, boxes are too many, or where they are cut depends on a run.
    """
    finder = _Finder(producers, held, row_major(result.type.shape) if stored_strides is None else stored_strides)
    domain = _Domain(tuple((f"i{k}", dim) for k, dim in enumerate(result.type.shape)), tuple(sym(f"i{k}") for k in range(result.type.rank)))
    found: list[Piece] = []
    pending = [domain]
    while pending:
        if len(found) + len(pending) > _MOST_PIECES:
            return None
        domain = pending.pop()
        try:
            found.append(finder.piece(result, domain))
        except _CutError as cut:
            pending += reversed(domain.cut(cut.symbol, cut.at))
        except _SplitError as split:
            pending.append(domain.split(split.symbol, split.inner))
        except _NotLinearError:
            return None
    return tuple(found), tuple(finder.sources)


class _NotLinearError(Exception):
    """A place that is not a sum of multiples of positions."""


@dataclass
class _CutError(Exception):
    """The box is to be cut before position ``at`` of an axis."""

    symbol: str
    at: int


@dataclass
class _SplitError(Exception):
    """An axis is to become two, the inner one of ``inner`` elements."""

    symbol: str
    inner: int


@dataclass(frozen=True)
class _Domain:
    """A box: its axes, and the coordinates in the result of the element at their positions."""

    axes: tuple[tuple[str, Dim], ...]
    place: tuple[Dim, ...]

    def cut(self, symbol: str, at: int) -> list[_Domain]:
        """The boxes before and from a position of an axis on."""
        return [self._with(symbol, [(symbol, at)], sym(symbol)), self._with(symbol, [(symbol, dict(self.axes)[symbol] - at)], sym(symbol) + at)]

    def split(self, symbol: str, inner: int) -> _Domain:
        """The same box with an axis as two."""
        outer, last = f"{symbol}o", f"{symbol}i"
        return self._with(symbol, [(outer, floordiv(dict(self.axes)[symbol], inner)), (last, inner)], sym(outer) * inner + sym(last))

    def _with(self, symbol: str, axes: Sequence[tuple[str, Dim]], position: Dim) -> _Domain:
        found = [pair for own in self.axes for pair in (axes if own[0] == symbol else (own,))]
        return _Domain(tuple(found), tuple(substitute(x, {symbol: position}) for x in self.place))


class _Linear:
    """A sum: numbers and what only a run knows, and the axes' positions times numbers, or times what a run knows."""

    def __init__(self, expr: Dim, extents: Mapping[str, Dim]) -> None:
        self.steps: dict[str, Dim] = {}
        self.base: Dim = expr if isinstance(expr, int) else expr.const
        for monomial, factor in () if isinstance(expr, int) else expr.terms:
            own = [atom for atom in monomial if isinstance(atom, Sym) and atom.name in extents]
            rest = IntExpr(((tuple(atom for atom in monomial if atom not in own), factor),), 0) if len(own) < len(monomial) else factor
            if len(own) > 1 or any(isinstance(atom, Apply) for atom in monomial):
                raise _NotLinearError
            if own:
                self.steps[own[0].name] = self.steps.get(own[0].name, 0) + rest
            else:
                self.base = self.base + rest

    def known(self, extents: Mapping[str, Dim]) -> tuple[int, dict[str, tuple[int, int]]]:
        """The sum's number, and for each axis its step, all of which must be known and none negative, and its extent."""
        found: dict[str, tuple[int, int]] = {}
        for name, step in self.steps.items():
            extent = extents[name]
            if not isinstance(step, int) or not isinstance(extent, int) or step < 0:
                raise _NotLinearError
            found[name] = step, extent
        if not isinstance(self.base, int):
            raise _NotLinearError
        return self.base, found


@dataclass
class _Finder:
    producers: Mapping[Value, Node]
    held: Mapping[Value, Constant]
    stored: tuple[Dim, ...]
    sources: dict[Value, int] = field(default_factory=dict)

    def piece(self, result: Value, domain: _Domain) -> Piece:
        """The whole of a box as one piece."""
        walk = _Walk(self, dict(domain.axes))
        element = walk.element(result, domain.place)
        symbols = [name for name, _ in domain.axes]
        flat = _Linear(_weighed(domain.place, self.stored), walk.extents)
        reads = []
        for source, index in walk.reads:
            linear = _Linear(index, walk.extents)
            reads.append(Read(source, linear.base, tuple(linear.steps.get(name, 0) for name in symbols)))
        strides = tuple(flat.steps.get(name, 0) for name in symbols)
        return Piece(tuple(extent for _, extent in domain.axes), flat.base, strides, element, tuple(reads))


class _Walk:
    """One box, from the result back; ``reads`` are the tensors' numbers and the places read."""

    def __init__(self, finder: _Finder, extents: Mapping[str, Dim]) -> None:
        self._finder = finder
        self.extents = extents
        self.reads: dict[tuple[int, Dim], int] = {}
        self._known: dict[tuple[Value, tuple[Dim, ...]], Scalar] = {}

    def element(self, value: Value, place: tuple[Dim, ...]) -> Scalar:
        """The element of a value at coordinates."""
        if (value, place) not in self._known:
            self._known[value, place] = self._element(value, place)
        return self._known[value, place]

    def _element(self, value: Value, place: tuple[Dim, ...]) -> Scalar:
        node, constant, dtype = self._finder.producers.get(value), self._finder.held.get(value), value.type.dtype
        if node is None and constant is not None and constant.array.size == 1 and dtype is not DType.STRING:
            return Const(constant.array.astype(compute_dtype(dtype).numpy).item(), dtype)
        if node is None:
            source = self._finder.sources.setdefault(value, len(self._finder.sources))
            return Arg(self.reads.setdefault((source, _flat(place, value.type.shape)), len(self.reads)), dtype)
        op, types = lookup(node.op), [v.type for v in node.present_inputs]
        expr = op.scalar([Arg(k, type_.dtype) for k, type_ in enumerate(types)], node.attrs)
        if expr is not None:
            return with_args(expr, [self.element(v, _broadcast(place, v.type.shape)) for v in node.present_inputs])
        if op.is_view:
            (x,) = node.present_inputs
            return self.element(x, self._reshaped(place, value.type.shape, x.type.shape))
        regions = op.regions(types, node.attrs) or ()
        region = self._region(regions, place, value.type.shape)
        if region.source is None:
            return Const(region.fill, dtype)
        inside = {f"i{axis}": x - start for axis, (x, start) in enumerate(zip(place, region.offset, strict=True))}
        index = tuple(self._resolved(x, inside) for x in region.index)
        return self.element(node.present_inputs[region.source], index)

    def _region(self, regions: Sequence[Region], place: Sequence[Dim], shape: Sequence[Dim]) -> Region:
        """The one region that all of the box lies in."""
        left = list(regions)
        for axis, x in enumerate(place):
            spans = [(region.offset[axis], region.offset[axis] + region.extent[axis]) for region in left]
            if all(span == (0, shape[axis]) for span in spans):
                continue
            known = [(start, end) for start, end in spans if isinstance(start, int) and isinstance(end, int)]
            if len(known) < len(spans):
                raise _NotLinearError
            low, high = self._range(x, sorted({bound for span in known for bound in span}))
            left = [region for region, (start, end) in zip(left, known, strict=True) if start <= low and high < end]
        if len(left) != 1:
            raise _NotLinearError
        return left[0]

    def _range(self, x: Dim, bounds: Sequence[int]) -> tuple[int, int]:
        """The smallest and the largest of a coordinate in the box, between neighbours among bounds; the box is cut where it is not."""
        base, steps = _Linear(x, self.extents).known(self.extents)
        span = sum(step * (extent - 1) for step, extent in steps.values())
        crossed = next((bound for bound in bounds if base < bound <= base + span), None)
        if crossed is None:
            return base, base + span
        for name, (step, extent) in sorted(steps.items(), key=lambda pair: -pair[1][0]):
            if step == 0:
                continue
            rest = span - step * (extent - 1)
            for at in (floordiv(crossed - 1 - base - rest, step) + 1, ceildiv(crossed - base, step)):
                if isinstance(at, int) and 0 < at < extent:
                    raise _CutError(name, at)
        raise _NotLinearError

    def _resolved(self, expr: Dim, values: Mapping[str, Dim]) -> Dim:
        """An index with positions put in, its quotients and remainders worked out."""
        if isinstance(expr, int):
            return expr
        total: Dim = expr.const
        for monomial, factor in expr.terms:
            part: Dim = factor
            for atom in monomial:
                part = part * (values.get(atom.name, sym(atom.name)) if isinstance(atom, Sym) else self._applied(atom, values))
            total = total + part
        return total

    def _applied(self, atom: Apply, values: Mapping[str, Dim]) -> Dim:
        lhs = self._resolved(atom.lhs, values)
        if atom.op not in ("floordiv", "mod") or not isinstance(atom.rhs, int) or atom.rhs < 1:
            raise _NotLinearError
        return self._divided(lhs, atom.rhs)[atom.op == "mod"]

    def _divided(self, x: Dim, divisor: int) -> tuple[Dim, Dim]:
        """Quotient and remainder as sums; the box is cut, or an axis split, where they are not."""
        linear = _Linear(x, self.extents)
        outer, inner = floordiv(linear.base, divisor), linear.base - floordiv(linear.base, divisor) * divisor
        if not isinstance(inner, int):
            raise _NotLinearError
        last, within = inner, dict[str, tuple[int, int]]()
        for name, step in linear.steps.items():
            extent = self.extents[name]
            quotient = floordiv(step, divisor)
            if step - quotient * divisor == 0:
                outer = outer + sym(name) * quotient
            elif isinstance(step, int) and isinstance(extent, int) and step > 0:
                within[name] = step, extent
                last += step * (extent - 1)
            else:
                raise _NotLinearError
        if last < divisor:
            remainder: Dim = inner
            for name, (step, _) in within.items():
                remainder = remainder + sym(name) * step
            return outer, remainder
        self._separate(inner, within, divisor)
        raise _NotLinearError

    def _separate(self, first: int, within: Mapping[str, tuple[int, int]], divisor: int) -> None:
        """Cut the box, or split an axis, so that what crosses multiples of a divisor does so between boxes, or with an axis of its own."""
        for name, (step, extent) in sorted(within.items(), key=lambda pair: -pair[1][0]):
            whole = divisor // step if divisor % step == 0 and first % step == 0 else 0
            lead = -(-(divisor - first) // step) if first else 0
            if 0 < lead < extent:
                raise _CutError(name, lead)
            if whole and extent > whole and extent % whole:
                raise _CutError(name, extent // whole * whole)
            if 1 < whole < extent:
                raise _SplitError(name, whole)

    def _reshaped(self, place: Sequence[Dim], before: Sequence[Dim], after: Sequence[Dim]) -> tuple[Dim, ...]:
        """Coordinates under the shape ``before`` as those under ``after``, of the same elements in order."""
        found: list[Dim] = []
        at = 0
        for dims, axes in self._runs(tuple(before), tuple(after)):
            flat = _flat(place[at : at + len(dims)], dims)
            at += len(dims)
            parts: list[Dim] = []
            own = after[axes]
            for number, dim in enumerate(reversed(own)):
                if dim == 1:
                    parts.append(0)
                elif all(outer == 1 for outer in own[: len(own) - number - 1]):
                    parts.append(flat)
                    flat = 0
                elif isinstance(dim, int):
                    flat, inner = self._divided(flat, dim)
                    parts.append(inner)
                else:
                    raise _NotLinearError
            found += reversed(parts)
        return tuple(found)

    @staticmethod
    def _runs(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Iterable[tuple[tuple[Dim, ...], slice]]:
        found = runs(before, after)
        if found is None:
            raise _NotLinearError
        return found


def _flat(place: Sequence[Dim], shape: Sequence[Dim]) -> Dim:
    """The number of the element at coordinates in row-major order."""
    return _weighed(place, row_major(tuple(shape)))


def _weighed(place: Sequence[Dim], strides: Sequence[Dim]) -> Dim:
    total: Dim = 0
    for x, stride in zip(place, strides, strict=True):
        total = total + x * stride
    return total


def _broadcast(place: Sequence[Dim], shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The coordinates of an operand's element that goes into the one at ``place``."""
    return tuple(0 if dim == 1 else x for x, dim in zip(place[len(place) - len(shape) :], shape, strict=True))
