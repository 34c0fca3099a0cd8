"""Values as sums of linear maps of other values, plus a bias, and what follows from inserting one into another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from compiler.ir.graph import Array, Node, Value
from compiler.ir.intexpr import Dim
from compiler.ir.types import TensorType
from passes.linear.maps import LinearMap, Window, add, compose, composition_work


@dataclass(frozen=True, eq=False)
class Term:
    """``map`` of ``operand``; ``name`` is that of the node it comes from."""

    operand: Value
    map: LinearMap
    name: str = ""


@dataclass(frozen=True, eq=False)
class Bias:
    """A number for each channel: the sum of constant vectors, each taken through maps, the last one first."""

    parts: tuple[tuple[tuple[LinearMap, ...], Array], ...] = ()

    def through(self, map_: LinearMap) -> Bias:
        """What the map makes of it."""
        return Bias(tuple(((map_, *maps), vector) for maps, vector in self.parts))

    def vector(self) -> Array | None:
        """The numbers in float64; None for no bias."""
        total: Array | None = None
        for maps, vector in self.parts:
            for map_ in reversed(maps):
                vector = map_.apply_to_constant(vector)
            total = vector if total is None else total + vector
        return total


@dataclass(frozen=True, eq=False)
class Form:
    """The sum of the terms and the bias. ``kept`` are the nodes that say so, the last of them the value's, as long as nothing is inserted."""

    terms: tuple[Term, ...]
    bias: Bias = field(default_factory=Bias)
    kept: tuple[Node, ...] = ()


class InsertionError(Exception):
    """One form cannot be inserted into another; the message says why."""


@dataclass(frozen=True)
class Domain:
    """Which axis of a tensor holds the channels: 1, with windows over all behind it, or the last, without windows."""

    windowed: bool

    def axes(self, type_: TensorType) -> int:
        """The number of spatial axes."""
        return type_.rank - 2 if self.windowed else 0

    def channel_axis(self, type_: TensorType) -> int:
        """The position of the channels."""
        return 1 if self.windowed else type_.rank - 1

    def sizes(self, type_: TensorType) -> tuple[Dim, ...]:
        """The dims that windows move along."""
        return type_.shape[2:] if self.windowed else ()

    def fits(self, term: Term, type_: TensorType) -> bool:
        """Whether the term's result has this type for all sizes a run may find."""
        x = term.operand.type
        outputs = tuple(window.outputs(size) for window, size in zip(term.map.windows, self.sizes(x), strict=True))
        around = x.shape[:1] if self.windowed else x.shape[:-1]
        return (*around, *outputs) == (*type_.shape[:1], *type_.shape[2:]) if self.windowed else around == type_.shape[:-1]

    def channels(self, type_: TensorType) -> int | None:
        """The number of channels where it is known."""
        size = type_.shape[self.channel_axis(type_)] if type_.rank >= (3 if self.windowed else 2) else None
        return size if isinstance(size, int) else None


def insert(form: Form, value: Value, operand: Value, inner: Form, domain: Domain) -> tuple[Form, int]:
    """value's form with ``inner`` in the place of ``operand``, and the multiply-adds that computing its weights takes. Raises InsertionError where
    padding stands between the two.
    """
    terms: list[Term] = []
    bias, work = form.bias, 0
    sizes = domain.sizes(operand.type)
    for term in form.terms:
        if term.operand is not operand:
            terms.append(term)
            continue
        if inner.bias.parts and reads_padding(term.map.windows, sizes):
            raise InsertionError("a bias under padding")
        for below in inner.terms:
            _check_borders(term.map.windows, below.map.windows, sizes, domain.sizes(below.operand.type))
            product = compose(term.map, below.map)
            work += composition_work(product)
            terms.append(Term(below.operand, product, below.name if term.map.is_diagonal else term.name))
            if not domain.fits(terms[-1], value.type):
                raise InsertionError("sizes that only a run knows")
        bias = Bias(bias.parts + inner.bias.through(term.map).parts)
    return Form(tuple(terms), bias), work


def reads_padding(windows: Sequence[Window], sizes: Sequence[Dim]) -> bool:
    """Whether an output may read beside an input of these sizes."""
    return any(window.low < 0 or window.reads_behind(size) for window, size in zip(windows, sizes, strict=True))


def _check_borders(outer: Sequence[Window], inner: Sequence[Window], middle: Sequence[Dim], sizes: Sequence[Dim]) -> None:
    """Where the outer windows read padding, the inner ones must read nothing but padding there."""
    for window, below, between, size in zip(outer, inner, middle, sizes, strict=True):
        before = window.low < 0 and not below.is_zero_before()
        if before or (window.reads_behind(between) and not below.is_zero_behind(size)):
            raise InsertionError("a window under padding")


def merged(form: Form, left: Term, right: Term) -> Form | None:
    """form with two terms of one operand as one; None where their sum is no map."""
    total = add(left.map, right.map)
    if total is None:
        return None
    name = right.name if left.map.is_diagonal and not right.map.is_diagonal else left.name
    terms = tuple(Term(left.operand, total, name) if term is left else term for term in form.terms if term is not right)
    return replace(form, terms=terms, kept=())
