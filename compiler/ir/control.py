"""Control flow and numbers of run time: what the nodes ``if``, ``loop``, ``bind``, ``define`` and ``check`` say, typed, and their rules.

A *symbol* is a number that types and attributes use before it is known (``intexpr.Sym``). Those in the types of a graph's inputs are known
when a run begins; the others are defined by nodes, and known to the nodes after them:

    bind(%n) {symbols = ["u1"]}                          the elements of an integer tensor
    define() {symbol = "u2", value = <u1*u1>}            a derived number
    check() {low = 0, value = <u1>, high = none, …}      a condition that a run verifies
    %y: f32[u3] = if(%c, %x) {symbols = [["u3", <u1>, 4]]}
    %y: f32[u4] = loop(none, %x) {trips = <u1>, …}       ``Loop`` says what its attributes mean

The regions of ``if`` and ``loop`` are closed: they take the values they read as inputs (constants stand in the region itself) and may use
any symbol that is known around them. They are name spaces of their own: a value inside may have the name of one outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from compiler.errors import InternalError
from compiler.ir.graph import Attr, Graph, Node, Region, Value, captured
from compiler.ir.intexpr import Dim, IntExpr, substitute, sym, symbols
from compiler.ir.types import DType, TensorType

BRANCHING = frozenset({"if", "loop"})
"""The ops whose regions run on their own; passes treat each such region as a graph."""

CONTROL = BRANCHING | {"bind", "define", "check"}
"""The ops that are no kernels: they stand beside groups to the end."""


@dataclass(frozen=True)
class Merge:
    """A symbol whose number depends on control flow: ``first`` where the then-branch ran or before a loop's first iteration, ``second``
    where the else-branch ran or after an iteration (in symbols of that region).
    """

    symbol: str
    first: Dim
    second: Dim


@dataclass(frozen=True)
class If:
    """``if(condition, captured…)``: ``then`` or ``otherwise`` runs; both regions take what is captured and give as many results as the
    node, of its types with each of ``merges`` replaced by what it is there.
    """

    condition: Value
    captured: tuple[Value, ...]
    then: Graph
    otherwise: Graph
    merges: tuple[Merge, ...]

    @classmethod
    def of(cls, node: Node) -> If:
        """The parts of an ``if`` node. Raises InternalError where it is not well formed."""
        if len(node.regions) != 2 or None in node.inputs or not node.inputs:
            raise InternalError("an if has a condition, no absent inputs and two regions", where=f"node {node.name}")
        condition, *rest = node.present_inputs
        return cls(condition, tuple(rest), *node.regions, merges=_merges(node))


@dataclass(frozen=True)
class Loop:
    """``loop(condition or none, initial…, captured…)``: ``body`` runs while the condition holds, at most ``trips`` times (None: no bound).

    Attributes: ``trips``, ``iteration`` (the symbol of the iteration's number, from 0), ``carried`` (how many values go from iteration to
    iteration), ``has_condition``, ``symbols`` (``merges``), ``count`` (the symbol, after the loop, of how many iterations ran) and, where
    there are any, ``appended``: the numbers of those carried values of which the body gives what comes behind them along their first axis.
    The body takes the carried values and what is captured, and gives the condition to go on (where ``has_condition``), the next carried
    values and one element of each scan. Results are the last carried values and the scans ``[count, …]``. A dim of a carried value that
    changes is the symbol of a merge, in the body and in the result.
    """

    condition: Value | None
    initial: tuple[Value, ...]
    captured: tuple[Value, ...]
    body: Graph
    trips: Dim | None
    iteration: str
    has_condition: bool
    merges: tuple[Merge, ...]
    count: str
    appended: tuple[int, ...] = ()

    @classmethod
    def of(cls, node: Node) -> Loop:
        """The parts of a ``loop`` node. Raises InternalError where it is not well formed."""
        trips, iteration, carried, count = (node.attrs.get(key) for key in ("trips", "iteration", "carried", "count"))
        rest = tuple(v for v in node.inputs[1:] if v is not None)
        if len(node.regions) != 1 or len(rest) + 1 != len(node.inputs):
            raise InternalError("a loop has one region, and no input but the condition is absent", where=f"node {node.name}")
        if not (isinstance(iteration, str) and isinstance(count, str) and isinstance(carried, int) and isinstance(trips, int | IntExpr | None)):
            raise InternalError("a loop names its iteration and count, and says how often it runs and what it carries", where=f"node {node.name}")
        known, given = bool(node.attrs.get("has_condition")), node.attrs.get("appended", ())
        appended = tuple(number for number in given if isinstance(number, int)) if isinstance(given, tuple) else ()
        return cls(node.inputs[0], rest[:carried], rest[carried:], node.regions[0], trips, iteration, known, _merges(node), count, appended)

    @property
    def next_values(self) -> tuple[Value, ...]:
        """What the body gives for the carried values: the next ones, or what comes behind them."""
        begin = int(self.has_condition)
        return self.body.outputs[begin : begin + len(self.initial)]

    @property
    def scans(self) -> tuple[Value, ...]:
        """What the body gives for one element of each scan."""
        return self.body.outputs[int(self.has_condition) + len(self.initial) :]


def _merges(node: Node) -> tuple[Merge, ...]:
    found = []
    given = node.attrs.get("symbols", ())
    for item in given if isinstance(given, tuple) else ():
        if not (isinstance(item, tuple) and len(item) == 3):
            raise InternalError(f"{item!r} does not say what a symbol is", where=f"node {node.name}")
        symbol, first, second = item
        if not (isinstance(symbol, str) and isinstance(first, int | IntExpr) and isinstance(second, int | IntExpr)):
            raise InternalError(f"{item!r} does not say what a symbol is", where=f"node {node.name}")
        found.append(Merge(symbol, first, second))
    return tuple(found)


def names(node: Node) -> tuple[str, ...]:
    """The symbols a ``bind`` gives the elements of its input."""
    given = node.attrs.get("symbols", ())
    return tuple(name for name in given if isinstance(name, str)) if isinstance(given, tuple) else ()


def defined_symbols(node: Node) -> tuple[str, ...]:
    """The symbols that are known after node because of it."""
    match node.op:
        case "bind":
            return names(node)
        case "define":
            return (str(node.attrs["symbol"]),)
        case "if":
            return tuple(merge.symbol for merge in If.of(node).merges)
        case "loop":
            loop = Loop.of(node)
            return (*(merge.symbol for merge in loop.merges), loop.count)
    return ()


def planned_sizes(graph: Graph) -> Iterator[tuple[str, Dim]]:
    """What memory planning has found a run to know before it begins, in the order in which it is worked out."""
    given = graph.attrs.get("definitions", ())
    for item in given if isinstance(given, tuple) else ():
        name, value = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
        if not isinstance(name, str) or not isinstance(value, int | IntExpr):
            raise InternalError(f"{item!r} does not say what a symbol is", where=f"graph {graph.name}")
        yield name, value


def planned_places(node: Node, name: str, where: str = "planned graph") -> tuple[Dim | None, ...]:
    """What memory planning says of each output of a group in its attribute ``name``; None where it says nothing."""
    given = node.attrs.get(name, (None,) * len(node.outputs))
    items = given if isinstance(given, tuple) else ()
    found = tuple(item for item in items if item is None or isinstance(item, int | IntExpr))
    if len(found) != len(items) or len(found) != len(node.outputs):
        raise InternalError(f"{given!r} does not say {name} for each of {len(node.outputs)} outputs", where=where)
    return found


def attr_symbols(attr: Attr) -> Iterator[str]:
    """The symbols an attribute's expressions use; the index variables of boxes are not among them."""
    match attr:
        case IntExpr():
            yield from symbols(attr)
        case tuple():
            for item in attr:
                yield from attr_symbols(item)
        case Region():
            own = {f"i{axis}" for axis in range(len(attr.extent))}
            yield from (name for name in attr_symbols((attr.offset, attr.extent, attr.index)) if name not in own)


def own_symbols(node: Node) -> set[str]:
    """The symbols in a node's attributes and result types; a branching node's merges, which use symbols of its regions, left out."""
    attrs = [attr for key, attr in node.attrs.items() if not (node.op in BRANCHING and key == "symbols")]
    merges = _merges(node) if node.op in BRANCHING else ()
    found = {name for attr in attrs for name in attr_symbols(attr)}
    if node.op == "loop":
        found.update(name for merge in merges for name in symbols(merge.first))
    return found.union(*(type_symbols(value.type) for value in node.outputs)) - set(defined_symbols(node))


def read_symbols(node: Node) -> set[str]:
    """Every symbol that node and its regions use."""
    found = own_symbols(node)
    if node.op in BRANCHING:
        found.update(name for merge in _merges(node) for dim in (merge.first, merge.second) for name in symbols(dim))
    for region in node.regions:
        for value in region.inputs:
            found |= type_symbols(value.type)
        for inner in region.nodes:
            found |= read_symbols(inner)
    return found


def type_symbols(type_: TensorType) -> set[str]:
    """The symbols in a type's dims."""
    return {name for dim in type_.shape for name in symbols(dim)}


def substitute_type(type_: TensorType, values: Mapping[str, Dim]) -> TensorType:
    """type_ with symbols replaced."""
    return replace(type_, shape=tuple(substitute(dim, values) for dim in type_.shape)) if type_.shape else type_


def verify_branching(node: Node, where: str) -> None:
    """Raises InternalError where the operands, regions and results of an ``if`` or ``loop`` do not fit one another (the regions' own
    nodes are not looked at).
    """
    for region in node.regions:
        free = next(captured(region), None)
        if free is not None:
            raise InternalError(f"region {region.name} reads %{free.name} from outside", where=where)
        if len(set(region.outputs)) != len(region.outputs) or any(v not in region.producers for v in region.outputs):
            raise InternalError(f"an output of region {region.name} is not made by a node of it, or is there twice", where=where)
        if any(v.type.block != 1 for v in (*region.inputs, *region.outputs)):
            raise InternalError(f"an input or output of region {region.name} is not row-major", where=where)
    if any(v.type.block != 1 for v in (*node.present_inputs, *node.outputs)):
        raise InternalError("an input or result is not row-major", where=where)
    (_verify_if if node.op == "if" else _verify_loop)(node, where)


def _verify_if(node: Node, where: str) -> None:
    branch = If.of(node)
    _condition(branch.condition.type, "the condition", where)
    for number, region in enumerate((branch.then, branch.otherwise)):
        values = {merge.symbol: (merge.first, merge.second)[number] for merge in branch.merges}
        _same([v.type for v in region.inputs], [v.type for v in branch.captured], f"the inputs of region {region.name}", where)
        results = [substitute_type(v.type, values) for v in node.outputs]
        _same([v.type for v in region.outputs], results, f"the outputs of region {region.name}", where)


def _verify_loop(node: Node, where: str) -> None:
    loop = Loop.of(node)
    carried, captured_types = loop.body.inputs[: len(loop.initial)], [v.type for v in loop.captured]
    before, after = ({m.symbol: m.first for m in loop.merges}, {m.symbol: m.second for m in loop.merges})
    if loop.condition is not None:
        _condition(loop.condition.type, "the condition", where)
    if loop.has_condition:
        _condition(loop.body.outputs[0].type, "the condition to go on", where)
    _same([v.type for v in loop.initial], [substitute_type(v.type, before) for v in carried], "the initial values", where)
    for number in loop.appended:
        if not 0 <= number < len(carried) or carried[number].type.rank == 0:
            raise InternalError(f"carried value {number} is to be appended to, and is none of rank 1 or more", where=where)
    following = [_grown(c.type, v.type) if i in loop.appended else v.type for i, (c, v) in enumerate(zip(carried, loop.next_values, strict=True))]
    _same(following, [substitute_type(v.type, after) for v in carried], "the next values", where)
    _same([v.type for v in loop.body.inputs[len(carried) :]], captured_types, "the captured values", where)
    scans = [TensorType(v.type.dtype, (sym(loop.count), *v.type.shape)) for v in loop.scans]
    _same([v.type for v in node.outputs], [*(v.type for v in carried), *scans], "the results", where)


def _grown(type_: TensorType, tail: TensorType) -> TensorType:
    """The type of a value with a tail of that type behind it."""
    return replace(tail, shape=(type_.shape[0] + tail.shape[0], *tail.shape[1:]))


def _condition(type_: TensorType, role: str, where: str) -> None:
    if type_.dtype is not DType.BOOL or type_.elements != 1:
        raise InternalError(f"{role} is {type_}, not one bool", where=where)


def _same(met: list[TensorType], expected: list[TensorType], role: str, where: str) -> None:
    if met != expected:
        raise InternalError(f"{role} are {', '.join(map(str, met))}, not {', '.join(map(str, expected))}", where=where)
