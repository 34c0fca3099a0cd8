"""What the nodes of a graph say as linear forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from compiler.ir.graph import Array, Graph, Node, Value
from compiler.ir.intexpr import Dim, IntExpr
from compiler.ir.types import TensorType, compute_dtype
from passes.analysis.tied import gathered_tables, is_transpose
from passes.linear.forms import Bias, Domain, Form, Term, merged
from passes.linear.maps import LinearMap, Weights, Window, diagonal, identity, select


def linear_forms(graph: Graph, domain: Domain) -> dict[Value, Form]:
    """The form of every value of the graph that is linear in this domain, of floats whose arithmetic is their own, and of known channels."""
    return dict(_found(graph, domain))


def _found(graph: Graph, domain: Domain) -> Iterator[tuple[Value, Form]]:
    tables = gathered_tables(graph)
    for node in graph.nodes:
        read = _READERS.get(node.op)
        if read is None or not _is_possible(node.output.type, domain) or (tables and _is_tied(graph, node, tables)):
            continue
        form = read(_Place(domain, graph, node))
        if form is not None and all(t.operand not in graph.constants and domain.fits(t, node.output.type) for t in form.terms):
            yield node.output, form


def _is_tied(graph: Graph, node: Node, tables: Sequence[Array]) -> bool:
    """Whether a node multiplies by a table that is gathered from, too: with other weights in its place there would be two."""
    weights = graph.constant_array(node.present_inputs[1]) if node.op == "matmul" else None
    return weights is not None and any(is_transpose(table, weights) for table in tables)


def _is_possible(type_: TensorType, domain: Domain) -> bool:
    plain = type_.dtype.is_float and compute_dtype(type_.dtype) is type_.dtype
    return plain and 0 not in type_.shape and domain.channels(type_) is not None


@dataclass(frozen=True)
class _Place:
    """A node of a graph, whose result has known channels."""

    domain: Domain
    graph: Graph
    node: Node

    @property
    def type(self) -> TensorType:
        """The result's type."""
        return self.node.output.type

    @property
    def channels(self) -> int:
        """The result's channels."""
        return self.domain.channels(self.type) or 0

    @property
    def axes(self) -> int:
        """The result's spatial axes."""
        return self.domain.axes(self.type)

    def array(self, value: Value) -> Array | None:
        """A constant's data."""
        return self.graph.constant_array(value)

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """An attribute of dims, where all of them are numbers."""
        dims = self.dims(name)
        found = tuple(dim for dim in dims if isinstance(dim, int))
        return found if len(found) == len(dims) else None

    def dims(self, name: str) -> tuple[Dim, ...]:
        """An attribute of dims."""
        dims = self.node.attrs[name]
        return tuple(dim for dim in dims if isinstance(dim, int | IntExpr)) if isinstance(dims, tuple) else ()

    def windows(self, counts: tuple[int, ...]) -> tuple[Window, ...] | None:
        """The windows of a kernel of that shape by the node's attributes; None where the padding in front is not a number."""
        strides, dilations, pads = self.numbers("strides"), self.numbers("dilations"), self.dims("pads")
        found = []
        for axis, count in enumerate(counts):
            begin, end = pads[axis], pads[axis + len(counts)]
            if strides is None or dilations is None or not isinstance(begin, int):
                return None
            window = Window(-begin, count, dilations[axis] if count > 1 else 1, strides[axis])
            found.append(replace(window, reach=end - window.high))
        return tuple(found)

    def term(self, x: Value, map_: LinearMap) -> Term:
        """A term that comes from the node."""
        return Term(x, map_, self.node.name)

    def of(self, x: Value, map_: LinearMap) -> Form:
        """The form of one term."""
        return Form((self.term(x, map_),), kept=(self.node,))

    def scaled(self, x: Value, factors: Array) -> Term:
        """x, each channel multiplied by its factor or all by one."""
        return self.term(x, diagonal(np.broadcast_to(factors.reshape(-1), (self.channels,)), self.axes))

    def per_channel(self, value: Value) -> Array | None:
        """A constant's numbers in float64, one or one per channel of the result; None where it is not finite or not laid along its channels."""
        array = self.array(value)
        if array is None or array.ndim > self.type.rank:
            return None
        shape = [1] * self.type.rank
        shape[self.domain.channel_axis(self.type)] = self.channels
        aligned = (1,) * (self.type.rank - array.ndim) + array.shape
        if any(size not in (1, limit) for size, limit in zip(aligned, shape, strict=True)) or not np.isfinite(array).all():
            return None
        return array.reshape(-1).astype(np.float64)


_Reader = Callable[[_Place], Form | None]
_READERS: dict[str, _Reader] = {}


def _reads(*ops: str) -> Callable[[_Reader], _Reader]:
    def note(reader: _Reader) -> _Reader:
        _READERS.update(dict.fromkeys(ops, reader))
        return reader

    return note


@_reads("conv")
def _conv(at: _Place) -> Form | None:
    x, w = at.node.present_inputs
    weights, group = at.array(w), at.node.attrs["group"]
    if not at.domain.windowed or weights is None or 0 in weights.shape or not isinstance(group, int):
        return None
    windows = at.windows(weights.shape[2:])
    return None if windows is None else at.of(x, Weights(weights.shape[0], weights.shape[1] * group, group, windows, weights))


@_reads("pool")
def _average(at: _Place) -> Form | None:
    """An average of as many elements everywhere: of all in the window, padding counted, or without padding."""
    (x,) = at.node.present_inputs
    kernel = at.numbers("kernel_shape")
    even = at.node.attrs["count_include_pad"] or all(pad == 0 for pad in at.dims("pads"))
    if not at.domain.windowed or at.node.attrs["kind"] != "average" or at.node.attrs["ceil_mode"] or not even or kernel is None:
        return None
    windows = at.windows(kernel)
    weights = np.full((at.channels, 1, *kernel), 1 / prod(kernel))
    return None if windows is None else at.of(x, Weights(at.channels, at.channels, at.channels, windows, weights))


@_reads("matmul")
def _matmul(at: _Place) -> Form | None:
    x, w = at.node.present_inputs
    weights = at.array(w)
    if at.domain.windowed or weights is None or weights.ndim != 2 or 0 in weights.shape:
        return None
    return at.of(x, Weights(weights.shape[1], weights.shape[0], 1, (), weights.T))


@_reads("identity", "neg")
def _sign(at: _Place) -> Form | None:
    (x,) = at.node.present_inputs
    return Form((at.scaled(x, np.array(-1.0 if at.node.op == "neg" else 1.0)),), kept=(at.node,))


@_reads("mul", "div")
def _factor(at: _Place) -> Form | None:
    left, right = at.node.present_inputs
    x, other = (right, left) if at.node.op == "mul" and at.array(left) is not None else (left, right)
    factors = at.per_channel(other)
    if factors is None or x.type != at.type or (at.node.op == "div" and not factors.all()):
        return None
    return Form((at.scaled(x, 1 / factors if at.node.op == "div" else factors),), kept=(at.node,))


@_reads("add", "sub")
def _sum(at: _Place) -> Form | None:
    form = Form((), kept=(at.node,))
    for operand, sign in zip(at.node.present_inputs, (1.0, -1.0 if at.node.op == "sub" else 1.0), strict=True):
        vector = at.per_channel(operand)
        if vector is not None:
            numbers = np.broadcast_to(sign * vector, (at.channels,))
            form = replace(form, bias=Bias(form.bias.parts + ((((), numbers),) if numbers.any() else ())))
        elif operand.type == at.type:
            form = replace(form, terms=(*form.terms, at.scaled(operand, np.array(sign))))
        else:
            return None
    if len({term.operand for term in form.terms}) < len(form.terms):
        doubled = merged(form, *form.terms)
        return None if doubled is None else replace(doubled, kept=(at.node,))
    return form if form.terms else None


@_reads("pad")
def _pad(at: _Place) -> Form | None:
    """Zeros around the spatial axes."""
    (x,) = at.node.present_inputs
    begins, ends = at.numbers("begins"), at.dims("ends")
    if not at.domain.windowed or begins is None or at.node.attrs["mode"] != "constant" or at.node.attrs["value"] != 0:
        return None
    if any(begins[:2]) or any(end != 0 for end in ends[:2]) or any(isinstance(pad, int) and pad < 0 for pad in (*begins, *ends)):
        return None
    windows = tuple(Window(-begin, reach=begin + end) for begin, end in zip(begins[2:], ends[2:], strict=True))
    return at.of(x, replace(identity(at.channels, at.axes), windows=windows))


@_reads("slice")
def _slice(at: _Place) -> Form | None:
    """Some of the channels, the other axes whole."""
    (x,) = at.node.present_inputs
    axis, channels = at.domain.channel_axis(at.type), at.domain.channels(x.type)
    starts, steps = at.dims("starts"), at.dims("steps")
    whole = all(starts[a] == 0 and steps[a] == 1 and size == x.type.shape[a] for a, size in enumerate(at.type.shape) if a != axis)
    start, step = starts[axis], steps[axis]
    if not whole or channels is None or not isinstance(start, int) or not isinstance(step, int):
        return None
    return at.of(x, select([start + step * k for k in range(at.channels)], channels, at.axes))


@_reads("concat")
def _concat(at: _Place) -> Form | None:
    """Each operand, placed among channels of zeros."""
    if at.node.attrs["axis"] != at.domain.channel_axis(at.type):
        return None
    terms, first = [], 0
    for operand in at.node.present_inputs:
        channels = at.domain.channels(operand.type)
        if channels is None:
            return None
        rows = [k - first if first <= k < first + channels else -1 for k in range(at.channels)]
        terms.append(at.term(operand, select(rows, channels, at.axes)))
        first += channels
    return Form(tuple(terms), kept=(at.node,))


@_reads("shuffle_channels")
def _shuffled(at: _Place) -> Form | None:
    """Channels in another order, or some of them, where axis 1 holds the channels."""
    (x,) = at.node.present_inputs
    channels, group, start = at.domain.channels(x.type), at.node.attrs["group"], at.node.attrs["start"]
    if at.domain.channel_axis(at.type) != 1 or channels is None or not isinstance(group, int) or not isinstance(start, int):
        return None
    order = np.arange(channels).reshape(group, -1).T.reshape(-1)
    return at.of(x, select(order[start : start + at.channels].tolist(), channels, at.axes))


@_reads("reshape")
def _shuffle(at: _Place) -> Form | None:
    """The last node of a channel shuffle: the channels as a table of two axes, transposed."""
    turned = at.graph.producers.get(at.node.present_inputs[0])
    split = None if turned is None or turned.op != "transpose" else at.graph.producers.get(turned.present_inputs[0])
    if turned is None or split is None or split.op != "reshape" or any(len(at.graph.users[n.output]) > 1 for n in (turned, split)):
        return None
    (x,), table, axis = split.present_inputs, split.output.type.shape, at.domain.channel_axis(at.type)
    order = (*range(axis), axis + 1, axis, *range(axis + 2, at.type.rank + 1))
    if (
        x.type != at.type
        or turned.attrs["perm"] != order
        or (*table[:axis], *table[axis + 2 :]) != (*at.type.shape[:axis], *at.type.shape[axis + 1 :])
    ):
        return None
    rows, columns = table[axis], table[axis + 1]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    places = np.arange(rows * columns).reshape(rows, columns).T.reshape(-1).tolist()
    return Form((at.term(x, select(places, rows * columns, at.axes)),), kept=(split, turned, at.node))
