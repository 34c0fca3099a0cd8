"""If, Loop and Scan: subgraphs become the regions of ``if`` and ``loop``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import onnx

from compiler.errors import UnsupportedForm
from compiler.ir.control import Merge, defined_symbols, substitute_type
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, minimum, sym, symbols
from compiler.ir.run_time import depends_on_run, natural
from compiler.ir.types import DType, TensorType
from frontend.onnx.borders import declared_sequence
from frontend.onnx.emitter import Emitter
from frontend.onnx.entries import Entry, Ragged, RaggedForm, common_form, form_of, kind_of, loosened, replaced, values_of
from frontend.onnx.inputs import declared_ranks, static_shapes
from frontend.onnx.order import captured, ordered
from frontend.onnx.ragged import appended, brought, item, length_of, ragged
from frontend.onnx.reading import initializers
from frontend.onnx.scope import Scope

FOREVER = 2**31 - 1
"""Trip counts from here on are no bound; exporters write INT32_MAX or INT64_MAX."""

BRANCHES = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""The operators that have subgraphs."""

_UNROLLED = 256
"""Iterations up to which a loop that carries sequences is written out."""


class Host(Protocol):
    """What this needs of the importer."""

    where: str
    failures: list[str]

    def entry(self, name: str, scope: Scope) -> Entry:
        """What a name stands for in scope."""

    def nodes(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], scope: Scope) -> None:
        """Import nodes, in order; what fails is recorded in ``failures``."""


def import_body(host: Host, graph: onnx.GraphProto, scope: Scope) -> list[Entry] | None:
    """The results of a subgraph whose inputs are in ``scope.values`` already; None where something in it failed, which is recorded."""
    scope.tensors = initializers(graph)
    declared = (*graph.value_info, *graph.output)
    scope.declared, scope.ranks = static_shapes(declared), declared_ranks(declared)
    outputs = [value.name for value in graph.output]
    known = (*scope.values, *(name for name in scope.tensors if name not in scope.values), *captured(graph))
    nodes = ordered(graph.node, known, outputs, f"{host.where}, subgraph {graph.name or scope.prefix!r}")
    before = len(host.failures)
    host.nodes(nodes, outputs, scope)
    return None if len(host.failures) > before else [_declared(host.entry(name, scope), name, scope) for name in outputs]


def _declared(entry: Entry, name: str, scope: Scope) -> Entry:
    """A result with dims that the subgraph declares in the place of those that only a run knows, which is checked to agree."""
    shape = scope.declared.get(name)
    if not isinstance(entry, Value) or shape is None or len(shape) != entry.type.rank or not any(map(depends_on_run, entry.type.shape)):
        return entry
    place = f"result {name!r} of the subgraph {scope.prefix!r}"
    for dim, number in zip(entry.type.shape, shape, strict=True):
        scope.builder.check(number, dim, number, "a dim is {value}, and the model declares it as {low}", place)
    return scope.builder.emit("reshape", entry, shape=shape)


def import_if(
    host: Host, node: onnx.NodeProto, condition: Value, then: onnx.GraphProto, otherwise: onnx.GraphProto, scope: Scope
) -> list[Entry] | None:
    """Both branches as regions, or the one that is taken where the condition is known. None where a branch failed."""
    if condition.type.dtype is not DType.BOOL or condition.type.elements != 1:
        raise UnsupportedForm(f"the condition is {condition.type}, not one bool")
    name = node.name or next(iter(node.output), "")
    known = scope.builder.array(condition)
    if known is not None:
        return import_body(host, then if known.item() else otherwise, scope.inside(name, scope.builder))
    scopes = [scope.region(name), scope.region(name)]
    found = [import_body(host, graph, inner) for graph, inner in zip((then, otherwise), scopes, strict=True)]
    first, second = found
    if first is None or second is None:
        return None
    pairs = [_equalized(given, scopes) for given in zip(first, second, strict=True)]
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if any(isinstance(a, Value) and isinstance(b, Value) and a.type.rank != b.type.rank for a, b in pairs):
        ranks = [sum(entry.type.rank for entry in entries if isinstance(entry, Value)) for entries in (first, second)]
        taken = ranks.index(min(ranks))
        _require(condition, taken == 0, scope, name)
        return import_body(host, (then, otherwise)[taken], scope.inside(name, scope.builder))
    forms = [common_form(form_of(a), form_of(b), f"result {number}") for number, (a, b) in enumerate(pairs)]
    shaped = [
        [brought(Emitter(inner.builder, name), *given) for given in zip(part, forms, strict=True)]
        for inner, part in zip(scopes, (first, second), strict=True)
    ]
    results = [_own(inner, [v for entry in part for v in values_of(entry)]) for inner, part in zip(scopes, shaped, strict=True)]
    merger = _Merger(scope, [_inner_symbols(inner) for inner in scopes])
    types = [merger.type(a.type, b.type) for a, b in zip(*results, strict=True)]
    outer = tuple(dict.fromkeys(value for inner in scopes for value in inner.captures))
    regions = []
    for word, inner, made in zip(("then", "else"), scopes, results, strict=True):
        inputs = tuple(inner.take_value(value) for value in outer)
        regions.append(inner.builder.graph(made).with_(name=word, inputs=inputs))
    outputs = tuple(Value(scope.builder.unique(name), type_) for type_ in types)
    attrs = {"symbols": tuple((m.symbol, m.first, m.second) for m in merger.merges)}
    scope.builder.append(Node("if", (condition, *outer), outputs, attrs, tuple(regions), name))
    return _rebuilt(shaped[0], outputs)


def _equalized(pair: tuple[Entry, Entry], scopes: Sequence[Scope]) -> tuple[Entry, Entry]:
    """The two results, those of one element each in the larger of their ranks: broadcasting makes no difference between them."""
    first, second = pair
    if not (isinstance(first, Value) and isinstance(second, Value) and first.type.elements == second.type.elements == 1):
        return pair
    if first.type.rank < second.type.rank:
        return scopes[0].builder.emit("reshape", first, shape=second.type.shape), second
    if first.type.rank > second.type.rank:
        return first, scopes[1].builder.emit("reshape", second, shape=first.type.shape)
    return pair


def _require(condition: Value, holds: bool, scope: Scope, name: str) -> None:
    """Every run checks that the branch is taken that is compiled.

    Results of different ranks are what exporters make of a squeeze: one branch squeezes, if the axis is of one element, the other does not.
    Ranks do not depend on the run, so it is taken at its word.
    """
    (bit,) = scope.builder.bind(condition)
    message = f"its branches give results of different ranks, and the condition is not {str(holds).lower()}, for which it is compiled"
    scope.builder.check(int(holds), bit, int(holds), message, f"node {name!r}")


def _inner_symbols(scope: Scope) -> set[str]:
    """The symbols that are known in a region alone."""
    return {name for node in scope.builder.nodes for name in defined_symbols(node)}


def _own(scope: Scope, values: Sequence[Value]) -> list[Value]:
    """values, each made by a node of the region and there once."""
    found: list[Value] = []
    for value in values:
        if scope.builder.producer(value) is None or value in found:
            copy = Value(scope.builder.unique("identity"), value.type)
            scope.builder.append(Node("identity", (value,), (copy,)))
            value = copy
        found.append(value)
    return found


class _Merger:
    """Types for what two regions give: a dim that differs, or that is known inside alone, becomes a new symbol."""

    def __init__(self, scope: Scope, inside: Sequence[set[str]]) -> None:
        self._scope = scope
        self._inside = set().union(*inside)
        self._found: dict[tuple[Dim, Dim], Dim] = {}
        self.merges: list[Merge] = []

    def type(self, first: TensorType, second: TensorType) -> TensorType:
        return TensorType(first.dtype, tuple(self._dim(a, b) for a, b in zip(first.shape, second.shape, strict=True)))

    def _dim(self, first: Dim, second: Dim) -> Dim:
        if first == second and self._inside.isdisjoint(symbols(first)):
            return first
        if (first, second) not in self._found:
            symbol = self._scope.builder.symbol(natural=True)
            self.merges.append(Merge(symbol, first, second))
            self._found[first, second] = sym(symbol)
        return self._found[first, second]


@dataclass(frozen=True)
class Iteration:
    """What the body of a loop gives: the condition to go on (None: always), the next carried entries, one element of each scan."""

    condition: Value | None
    carried: Sequence[Entry]
    scans: Sequence[Value]


BuildBody = Callable[[Scope, Dim, Sequence[Entry]], Iteration | None]
"""Imports a body into a new region, given the iteration's number and the carried entries there; None where something failed."""


def repeat(
    host: Host,
    scope: Scope,
    name: str,
    trips: Dim | None,
    condition: Value | None,
    given: Sequence[Entry],
    build: BuildBody,
    declared: Mapping[int, RaggedForm] = MappingProxyType({}),
) -> tuple[list[Entry], list[Value]] | None:
    """A ``loop`` node; its last carried entries and its scans.

    The body is imported again while what they are made of, and dims, turn out to change in it; and as if the lengths of sequences were not
    known where it cannot be imported for those they begin with. Of one that begins empty, ``declared`` says by number what its elements are.
    """
    forms, start = [form_of(entry) for entry in given], list(given)
    initial = [value for entry in start for value in values_of(entry)]
    varying: dict[tuple[int, int], str] = {}
    before = len(host.failures)
    while True:
        del host.failures[before:]
        inner, number = scope.region(name), scope.builder.symbol(natural=True)
        types = [
            TensorType(v.type.dtype, tuple(sym(varying[p, axis]) if (p, axis) in varying else dim for axis, dim in enumerate(v.type.shape)))
            for p, v in enumerate(initial)
        ]
        carried = [inner.builder.input(value.name, type_) for value, type_ in zip(initial, types, strict=True)]
        found = build(inner, sym(number), _rebuilt(start, carried))
        if found is None:
            wanted = [loosened(form, declared.get(p)) for p, form in enumerate(forms)]
            if wanted == forms:
                return None
        else:
            wanted = [
                common_form(form, form_of(entry), f"carried value {p}") for p, (form, entry) in enumerate(zip(forms, found.carried, strict=True))
            ]
        if found is None or wanted != forms:
            forms, varying = wanted, {}
            start = [brought(Emitter(scope.builder, name), *pair) for pair in zip(given, forms, strict=True)]
            initial = [value for entry in start for value in values_of(entry)]
            if found is None:
                owners = [entry for entry in start for _ in values_of(entry)]
                varying = {(p, 0): scope.builder.symbol(natural=True) for p, owner in enumerate(owners) if isinstance(owner, Ragged)}
            continue
        following = [v for pair in zip(found.carried, forms, strict=True) for v in values_of(brought(Emitter(inner.builder, name), *pair))]
        changed = [place for place in _differences(types, following) if place not in varying]
        if not changed:
            break
        varying.update((place, scope.builder.symbol(natural=True)) for place in changed)
    merges = [Merge(symbol, initial[p].type.shape[axis], following[p].type.shape[axis]) for (p, axis), symbol in varying.items()]
    _check_scans(found.scans, {*_inner_symbols(inner), number, *varying.values()})
    going, trips = _going(inner, found.condition, trips)
    results = _own(inner, [*([] if going is None else [going]), *following, *found.scans])
    count = scope.builder.symbol(natural=True)
    scans = [TensorType(v.type.dtype, (sym(count), *v.type.shape)) for v in found.scans]
    outputs = tuple(Value(scope.builder.unique(name), type_) for type_ in (*types, *scans))
    attrs = {
        "trips": trips,
        "iteration": number,
        "carried": len(initial),
        "has_condition": going is not None,
        "symbols": tuple((m.symbol, m.first, m.second) for m in merges),
        "count": count,
    }
    body = _with_inputs(inner, carried).with_(outputs=tuple(results), name="body")
    scope.builder.append(Node("loop", (condition, *initial, *inner.captures), outputs, attrs, (body,), name))
    ran: Dim = trips if trips is not None and condition is None and going is None else sym(count)
    last = {m.symbol: _last(m, ran) for m in merges} | {count: ran}
    exact = [_view(scope, value, substitute_type(value.type, last)) for value in outputs]
    return _rebuilt(start, exact[: len(initial)]), exact[len(initial) :]


def _rebuilt(entries: Sequence[Entry], values: Sequence[Value]) -> list[Entry]:
    """Entries like those, of other values."""
    rest = iter(values)
    return [replaced(entry, lambda _: next(rest)) for entry in entries]


def _with_inputs(inner: Scope, carried: Sequence[Value]) -> Graph:
    return inner.builder.graph(()).with_(inputs=(*carried, *(inner.taken[value] for value in inner.captures)))


def _differences(types: Sequence[TensorType], values: Sequence[Value]) -> list[tuple[int, int]]:
    """Where the dims of the next carried values are not those of the present ones."""
    found = []
    for position, (type_, value) in enumerate(zip(types, values, strict=True)):
        found += [(position, axis) for axis, dim in enumerate(type_.shape) if dim != value.type.shape[axis]]
    return found


def _check_scans(scans: Sequence[Value], inside: set[str]) -> None:
    for value in scans:
        if any(not inside.isdisjoint(symbols(dim)) for dim in value.type.shape):
            raise UnsupportedForm(f"what is collected in every iteration, {value.type}, may differ in shape from one to the next")


def _going(inner: Scope, condition: Value | None, trips: Dim | None) -> tuple[Value | None, Dim | None]:
    """The condition to go on where it is computed, and the trips; one that is known to be false ends the loop after one iteration."""
    if condition is None:
        return None, trips
    if condition.type.dtype is not DType.BOOL or condition.type.elements != 1:
        raise UnsupportedForm(f"the condition to go on is {condition.type}, not one bool")
    known = inner.builder.array(condition)
    if known is None:
        return condition, trips
    return None, trips if known.item() else (1 if trips is None else minimum(trips, 1))


def _last(merge: Merge, ran: Dim) -> Dim:
    """A dim after the loop: told by how often it ran where the dim grows by as much in every iteration."""
    step = merge.second - sym(merge.symbol)
    return merge.first + step * ran if isinstance(step, int) else sym(merge.symbol)


def _view(scope: Scope, value: Value, type_: TensorType) -> Value:
    """value with dims that say more than the symbols of its loop."""
    return value if value.type == type_ else scope.builder.emit("reshape", value, shape=type_.shape)


def import_loop(host: Host, node: onnx.NodeProto, inputs: Sequence[Entry], body: onnx.GraphProto, scope: Scope) -> list[Entry] | None:
    """https://onnx.ai/onnx/operators/onnx__Loop.html"""
    name = node.name or next(iter(node.output), "")
    given, condition = (inputs[index] if index < len(inputs) else None for index in range(2))
    initial = inputs[2:]
    trips = _trips(scope, given)
    if not isinstance(condition, Value | None):
        raise UnsupportedForm(f"the condition is {kind_of(condition)}")
    if len(body.input) != len(initial) + 2 or len(body.output) < len(initial) + 1:
        raise UnsupportedForm(f"its body has {len(body.input)} inputs and {len(body.output)} outputs for {len(initial)} carried values")
    known = None if condition is None else scope.builder.array(condition)
    if known is not None:
        trips, condition = trips if known.item() else 0, None
    if any(isinstance(entry, tuple) for entry in initial) and condition is None and isinstance(trips, int) and trips <= _UNROLLED:
        # Sequences of known length stay so in a loop that is written out, which is tried aside: its conditions must be known.
        trial, before = scope.region(name), len(host.failures)
        written = _unrolled(host, name, trips, [trial.take(entry) for entry in initial], body, trial)
        if len(host.failures) > before:
            return None
        if written is not None:
            return _unrolled(host, name, trips, initial, body, scope)

    def build(inner: Scope, number: Dim, carried: Sequence[Entry]) -> Iteration | None:
        found = _iterate(host, body, inner, number, carried)
        if found is None:
            return None
        going, rest = found
        return Iteration(going, rest[: len(carried)], _tensors(rest[len(carried) :]))

    declared = {p: form for p, value in enumerate(body.input[2:]) if (form := declared_sequence(value)) is not None}
    results = repeat(host, scope, name, trips, condition, initial, build, declared)
    return None if results is None else [*results[0], *results[1]]


def _trips(scope: Scope, given: Entry) -> Dim | None:
    if given is None:
        return None
    if not isinstance(given, Value) or given.type.dtype.is_float or given.type.elements != 1:
        raise UnsupportedForm("the trip count is not one integer")
    (trips,) = scope.builder.bind(given)
    return None if isinstance(trips, int) and trips >= FOREVER else natural(trips)


def _iterate(host: Host, body: onnx.GraphProto, inner: Scope, number: Dim, carried: Sequence[Entry]) -> tuple[Value, list[Entry]] | None:
    """One import of a loop's body: the condition to go on, and its other results."""
    names = [value.name for value in body.input]
    shapes = [len(value.type.tensor_type.shape.dim) if value.type.tensor_type.HasField("shape") else 0 for value in body.input[:2]]
    position = inner.builder.emit("dims", values=(number,), scalar=shapes[0] == 0)
    going = inner.builder.constant(np.ones((1,) * shapes[1], np.bool_))
    inner.values.update(zip(names, (position, going, *carried), strict=True))
    found = import_body(host, body, inner)
    if found is None:
        return None
    condition, *rest = found
    if not isinstance(condition, Value):
        raise UnsupportedForm(f"the condition to go on is {kind_of(condition)}")
    return condition, rest


def _tensors(entries: Sequence[Entry]) -> list[Value]:
    values = [entry for entry in entries if isinstance(entry, Value)]
    if len(values) < len(entries):
        raise UnsupportedForm("a sequence or an optional value is to be collected or mapped to; only tensors can be")
    return values


def _unrolled(host: Host, name: str, trips: int, initial: Sequence[Entry], body: onnx.GraphProto, scope: Scope) -> list[Entry] | None:
    """A loop iteration by iteration; None where that is not possible: a condition is not known, or nothing tells the shapes of scans."""
    carried = list(initial)
    scans: list[list[Value]] = [[] for _ in body.output[1 + len(initial) :]]
    for number in range(trips):
        found = _iterate(host, body, scope.inside(f"{name}/{number}", scope.builder), number, carried)
        if found is None:
            return None
        going, rest = found
        carried = rest[: len(initial)]
        for scan, value in zip(scans, _tensors(rest[len(initial) :]), strict=True):
            scan.append(scope.builder.emit("reshape", value, shape=(1, *value.type.shape)))
        known = scope.builder.array(going)
        if known is None:
            return None
        if not known.item():
            break
    if any(not scan for scan in scans):
        return None
    return [*carried, *(scan[0] if len(scan) == 1 else scope.builder.emit("concat", *scan, axis=0) for scan in scans)]


def import_map(host: Host, node: onnx.NodeProto, inputs: Sequence[Entry], body: onnx.GraphProto, scope: Scope) -> list[Entry] | None:
    """SequenceMap: the body for every element of the first sequence, with the elements of the other sequences and tensors as they are."""
    name = node.name or node.op_type
    first, names, emit = inputs[0], [value.name for value in body.input], Emitter(scope.builder, f"{node.op_type} node {node.name!r}")
    if not isinstance(first, tuple | Ragged):
        raise UnsupportedForm(f"input 0 is {kind_of(first)}, not a sequence")
    if len(names) != len(inputs):
        raise UnsupportedForm(f"its body has {len(names)} inputs for {len(inputs)} operands")
    lengths = [length_of(entry) for entry in inputs if isinstance(entry, tuple | Ragged)]
    known = next((length for length in lengths if isinstance(length, int)), None)
    if known is not None and known > _UNROLLED:
        known, inputs = None, [ragged(emit, entry, entry[0].type.dtype) if isinstance(entry, tuple) and entry else entry for entry in inputs]
    for length in lengths[1:]:
        emit.check(lengths[0], length, lengths[0], "its sequences have different lengths, {low} and {value}")
    ranks = declared_ranks(body.input)

    def arguments(inner: Scope, number: Dim) -> list[Entry]:
        taken = [inner.take(entry) for entry in inputs]
        inside = Emitter(inner.builder, emit.place)
        return [item(inside, entry, number, ranks.get(label)) for label, entry in zip(names, taken, strict=True)]

    if known is not None:
        results: list[tuple[Value, ...]] = [()] * len(body.output)
        for number in range(known):
            inner = scope.inside(f"{name}/{number}", scope.builder)
            inner.values.update(zip(names, arguments(inner, number), strict=True))
            found = import_body(host, body, inner)
            if found is None:
                return None
            results = [(*result, value) for result, value in zip(results, _tensors(found), strict=True)]
        return list(results)

    def build(inner: Scope, number: Dim, carried: Sequence[Entry]) -> Iteration | None:
        inner.values.update(zip(names, arguments(inner, number), strict=True))
        found = import_body(host, body, inner)
        if found is None:
            return None
        return Iteration(None, [appended(Emitter(inner.builder, name), old, new) for old, new in zip(carried, _tensors(found), strict=True)], ())

    made = repeat(host, scope, name, lengths[0], None, [()] * len(body.output), build)
    return None if made is None else made[0]
