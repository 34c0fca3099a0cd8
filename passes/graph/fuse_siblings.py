"""Horizontal fusion: products of one operand as one product, of which each reader takes its part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import mod
from compiler.ir.op import lookup
from compiler.ir.strided import Strided, after
from compiler.ir.types import TensorType
from compiler.ir.verify import Stage
from compiler.ops.support import attr_dims
from passes.base import PassManager, PassResult, RuleEvent, register_pass
from passes.graph.group import Group
from passes.graph.join import JoinInPlace
from passes.graph.order import OrderNodes
from passes.graph.plan import arena_bound
from passes.rewrite import builder_for, finish, substitute
from passes.siblings import Bundle, Constants, Operand, Places, Repeated, Run, Shared, products, together

_RULE = "siblings"


@register_pass
@dataclass(frozen=True)
class FuseSiblings:
    """Products, and convolutions with the same windows, of one value by constants become one, with their weights side by side; what follows all of
    them alike follows the one: biases, activations, heads that are split off and turned. Each reader takes its part where that costs nothing: a
    slice that is a view (of channels in blocks of ``block``), or one that is read where it lies, as attention and products do. Other branches stay
    as they are, and so do those whose weights others read, and those that would lose arithmetic their kernels do as they store.

    ``%a = matmul(%x, %v); %b = matmul(%x, %w)`` becomes ``%c = matmul(%x, %vw); %a = slice(%c) {…}; %b = slice(%c) {…}``.
    """

    block: int
    name: ClassVar[str] = "fuse-siblings"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        families = _families(graph)
        if not families:
            return PassResult(graph, changed=False)
        search = _Search(graph, self.block)
        found = search.worth(_of_own_weights(graph, [fused for family in families for fused in search.fused(family)]))
        found = _of_own_weights(graph, found)
        events = (*search.events, *(RuleEvent(_RULE, _name(bundles[0].nodes[0])) for bundles in found))
        if not found:
            return PassResult(graph, changed=False, events=events)
        count = sum(len(bundles[0].nodes) for bundles in found)
        return PassResult(_Writer(graph, chain.from_iterable(found)).write(), True, (f"{count} products became {len(found)}",), events)


def _families(graph: Graph) -> list[list[Node]]:
    """The products of each value by constants, those that could be one product."""
    found: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes:
        if node.op in ("matmul", "conv") and node.present_inputs[1] in graph.constants and node.attrs.get("group", 1) == 1:
            x, w = node.present_inputs
            like = w.type.shape[1:] if node.op == "conv" else w.type.shape[:-1]
            if 0 not in (*x.type.shape, *w.type.shape):
                found.setdefault((x, node.op, tuple(sorted(node.attrs.items())), like), []).append(node)
    return [nodes for nodes in found.values() if len(nodes) > 1]


def _of_own_weights(graph: Graph, found: list[list[Bundle]]) -> list[list[Bundle]]:
    """Those whose weights no one else reads: weights that are shared stay shared."""
    while True:
        weights = {node: bundles[0].operands[1] for bundles in found for node in bundles[0].nodes}
        kept = []
        for bundles in found:
            own = bundles[0].operands[1]
            users = {user for node in bundles[0].nodes for user in graph.users[node.present_inputs[1]]}
            if all(weights.get(user) == own for user in users):
                kept.append(bundles)
        if len(kept) == len(found):
            return found
        found = kept


def _kind(bundles: Sequence[Bundle]) -> tuple[tuple[str, TensorType], ...]:
    """What bundles of another layer have in common with these."""
    return tuple((node.op, node.output.type) for bundle in bundles for node in bundle.nodes)


def _cost(graph: Graph) -> tuple[int, int]:
    """How many groups a graph becomes, and the most bytes that are alive at once then."""
    grouped, _ = PassManager((Group(), OrderNodes(), JoinInPlace())).run(graph)
    return sum(node.op == "group" for node in grouped.nodes), arena_bound(grouped)


def _in_blocks(node: Node) -> bool:
    """Whether the result of a product may be laid out with channels in blocks."""
    return node.op == "conv"


def _name(node: Node) -> str:
    return node.name or node.output.name


class _Search:
    """What can be side by side in a graph."""

    def __init__(self, graph: Graph, block: int) -> None:
        self._graph = graph
        self._block = block
        self._order = {node: number for number, node in enumerate(graph.nodes)}
        self._stored = {value for node in Group().run(graph).graph.nodes for value in node.outputs}
        self.events: list[RuleEvent] = []

    def fused(self, nodes: Sequence[Node]) -> list[list[Bundle]]:
        """Products of one value as bundles, each with those that follow it: all of them, or those that go on alike, and then what fits to them."""
        bundles, wrong = self._attempt(nodes)
        if not wrong:
            return [bundles]
        alike: dict[tuple[str, ...], list[Node]] = {}
        for node in nodes:
            alike.setdefault(self._tail(node), []).append(node)
        found: list[list[Node]] = []
        for each in alike.values():
            left = self._attempt(each)[1] if len(each) > 1 else {}
            wrong |= left
            fit = [node for node in each if node not in left]
            for some in (fit, *([node] for node in each if node in left)) if fit else ([node] for node in each):
                into = next((other for other in found if not self._attempt([*other, *some])[1]), None)
                if into is None:
                    found.append(some)
                else:
                    into += some
        self.events += [RuleEvent(_RULE, _name(node), wrong[node]) for node, *others in found if not others and node in wrong]
        return [self._attempt(each)[0] for each in found if len(each) > 1]

    def _attempt(self, nodes: Sequence[Node]) -> tuple[list[Bundle], dict[Node, str]]:
        """Products as one and all that follows them alike, and those of them that cannot be together with the others, with the reason."""
        # Only a part that begins at a whole block is a view, and behind one that is no multiple of a block none does.
        nodes = sorted(nodes, key=lambda node: (_in_blocks(node) and mod(node.output.type.shape[1], self._block) != 0, self._order[node]))
        bundles = self._grown(nodes)
        taken = {node for bundle in bundles for node in bundle.nodes}
        wrong: dict[Node, str] = {}
        for bundle in bundles:
            for number in range(len(bundle.nodes)):
                reason = self._reason(bundle, number, taken)
                if reason is not None:
                    wrong.setdefault(nodes[bundle.origin + number], reason)
        return bundles, wrong

    def worth(self, found: list[list[Bundle]]) -> list[list[Bundle]]:
        """Those of what was found, as a whole or only as far as readers have parts in common, with which there are fewer kernels and no more memory
        is alive at once: parts of one value live as long as the one that is read last. What is not worth it in one layer is not tried in others."""
        kernels, most = _cost(self._graph)
        kept: list[list[Bundle]] = []
        reasons: dict[tuple[tuple[str, TensorType], ...], str] = {}
        pending = [found]
        while pending:
            some = pending.pop()
            self.events += [RuleEvent(_RULE, _name(each[0].nodes[0]), reasons[_kind(each)]) for each in some if _kind(each) in reasons]
            some = [each for each in some if _kind(each) not in reasons]
            if not some:
                continue
            count, alive = _cost(_Writer(self._graph, chain(*kept, *some)).write())
            if count < kernels and alive <= most:
                kept += some
                kernels = count
            elif len(some) > 1:
                pending += [some[len(some) // 2 :], some[: len(some) // 2]]
            elif parts := self._by_reader(some[0]):
                pending += [[fused] for nodes in parts if len(nodes) > 1 for fused in self.fused(nodes)]
            else:
                reasons[_kind(some[0])] = "more memory would be alive at once" if alive > most else "there would be no fewer kernels"
                pending.append(some)
        return kept

    def _by_reader(self, bundles: Sequence[Bundle]) -> list[list[Node]]:
        """The products in sets whose parts have readers in common; none where all have."""
        taken = {node for bundle in bundles for node in bundle.nodes}
        sets: list[tuple[set[int], set[Node]]] = []
        for bundle in bundles:
            for number, node in enumerate(bundle.nodes):
                numbers, readers = {bundle.origin + number}, {user for user in self._graph.users.get(node.output, ()) if user not in taken}
                apart = []
                for other in sets:
                    if numbers & other[0] or readers & other[1]:
                        numbers, readers = numbers | other[0], readers | other[1]
                    else:
                        apart.append(other)
                sets = [*apart, (numbers, readers)]
        return [[bundles[0].nodes[number] for number in sorted(numbers)] for numbers, _ in sets] if len(sets) > 1 else []

    def _tail(self, node: Node) -> tuple[str, ...]:
        """What a product is followed by, as far as one node follows another."""
        found: list[str] = []
        users = self._graph.users.get(node.output, ())
        while len(users) == 1 and len(users[0].outputs) == 1:
            found.append(users[0].op)
            users = self._graph.users.get(users[0].output, ())
        return (*found, *(user.op for user in users))

    def _grown(self, nodes: Sequence[Node]) -> list[Bundle]:
        """Products as one and, in order, all that follows parts of it alike."""
        bundles = [products(nodes)]
        places = {node.output: (bundles[0], number) for number, node in enumerate(nodes)}
        taken, pending, seen = set(nodes), list[tuple[int, Node]](), set[Node]()

        def look(value: Value) -> None:
            for user in self._graph.users.get(value, ()):
                if user not in seen:
                    seen.add(user)
                    heappush(pending, (self._order[user], user))

        for node in nodes:
            look(node.output)
        while pending:
            _, node = heappop(pending)
            bundle = None if node in taken else self._next(node, places, taken)
            if bundle is not None:
                bundles.append(bundle)
                taken.update(bundle.nodes)
                for number, made in enumerate(bundle.nodes):
                    places[made.output] = (bundle, number)
                    look(made.output)
        return bundles

    def _next(self, node: Node, places: Places, taken: set[Node]) -> Bundle | None:
        """A node and those that do the same to the neighbours of the part that it reads, as one."""
        read = next((value for value in node.present_inputs if value in places), None)
        if read is None:
            return None
        bundle, at = places[read]
        members = [node]
        for step, numbers in ((-1, range(at - 1, -1, -1)), (1, range(at + 1, len(bundle.nodes)))):
            for number in numbers:
                beside = members[0] if step < 0 else members[-1]
                other = self._like(beside, bundle.nodes[number].output, step, places, taken)
                if other is None:
                    break
                members.insert(0 if step < 0 else len(members), other)
        found = together(members, places, self._graph) if len(members) > 1 else None
        return found if found is not None and all(self._readable(operand) for operand in found.operands) else None

    def _like(self, node: Node, part: Value, step: int, places: Places, taken: set[Node]) -> Node | None:
        """A node that does to the next part, or to the one before, what ``node`` does to its own."""
        for user in self._graph.users.get(part, ()):
            pair = (user, node) if step < 0 else (node, user)
            if user not in taken and user is not node and together(pair, places, self._graph) is not None:
                return user
        return None

    def _readable(self, operand: Operand) -> bool:
        """Whether an operand costs nothing: all parts of a bundle, or some that lie together and that nothing would be lost by storing."""
        if not isinstance(operand, Run) or operand.is_whole:
            return True
        parts = operand.bundle.nodes[operand.first : operand.first + operand.count]
        return self._is_view(operand.bundle, operand.first, operand.count) and all(node.output in self._stored for node in parts)

    def _is_view(self, bundle: Bundle, first: int, count: int) -> bool:
        taken = bundle.taken(first, count)
        if _in_blocks(bundle.root.nodes[0]) and mod(bundle.starts[first], self._block) != 0:
            return False
        part = TensorType(bundle.type.dtype, attr_dims(taken, "sizes"))
        return lookup("slice").view_offset([bundle.type], taken, part) is not None

    def _reason(self, bundle: Bundle, number: int, taken: set[Node]) -> str | None:
        """Why a part of a bundle is not to be had for nothing."""
        value = bundle.nodes[number].output
        if value in self._graph.outputs:
            return f"%{value.name} is an output, which a copy would have to be made of"
        outside = [user for user in self._graph.users.get(value, ()) if user not in taken]
        if not outside:
            return None
        view = self._is_view(bundle, number, 1)
        if view and value in self._stored and not any(map(self._holds, outside)):
            return None
        region = Strided.row_major(bundle.type.shape)
        regions = lookup("slice").regions([bundle.type], bundle.taken(number, 1)) or ()
        part = region.mapped(regions[0])
        if part is not None and self._is_read_strided(value, part):
            return None
        if view:
            return f"%{value.name} is stored for no other reason"
        return f"a part of what makes %{value.name} is no view, and not all that read it could read it where it lies"

    def _holds(self, node: Node) -> bool:
        """Whether a node is a concatenation whose operands may be made where they lie in its result."""
        made = self._graph.producers.keys() >= set(node.present_inputs) and self._graph.outputs.count(node.output) == 0
        types = [v.type for v in node.present_inputs]
        return node.op == "concat" and made and lookup("join").held_starts(types, node.attrs, node.output.type) is not None

    def _is_read_strided(self, value: Value, view: Strided) -> bool:
        """Whether all readers of a value can read it as a view of something else."""
        for user in self._graph.users.get(value, ()):
            types = [None if v is None else v.type for v in user.inputs]
            if all(lookup(user.op).reads_strided(number, view, types) for number, v in enumerate(user.inputs) if v is value):
                continue
            behind = after(user, view)
            if behind is None or user.output in self._graph.outputs or not self._is_read_strided(user.output, behind):
                return False
        return bool(self._graph.users.get(value))


class _Writer:
    """Builds the graph in which bundles are nodes."""

    def __init__(self, graph: Graph, bundles: Iterable[Bundle]) -> None:
        self._graph = graph
        self._builder: GraphBuilder = builder_for(graph)
        self._of = {node: bundle for bundle in bundles for node in bundle.nodes}
        self._made: dict[Bundle, Value] = {}
        self._parts: dict[tuple[Bundle, int, int], Value] = {}
        self._constants: dict[Constants, Value] = {}
        self._twins: dict[Value, Value] = {}

    def write(self) -> Graph:
        for node in self._graph.nodes:
            bundle = self._of.get(node)
            if bundle is None:
                self._builder.append(substitute(node, self._twins))
            elif bundle not in self._made:
                self._write(bundle)
        return finish(self._builder, self._graph, self._graph.outputs)

    def _write(self, bundle: Bundle) -> None:
        """A bundle where its first node stands: all that any of its nodes reads but parts is there already."""
        first = bundle.nodes[0]
        operands = [self._operand(operand) for operand in bundle.operands]
        self._made[bundle] = self._builder.emit(first.op, *operands, name=first.name, **bundle.attrs)
        for number, node in enumerate(bundle.nodes):
            if any(self._reads_part(user, node.output, bundle) for user in self._graph.users.get(node.output, ())):
                self._twins[node.output] = self._part(bundle, number, 1, node.name)

    def _reads_part(self, user: Node, value: Value, bundle: Bundle) -> bool:
        """Whether a reader of a part of a bundle reads it apart from the others."""
        reader = self._of.get(user)
        return reader is None or reader.root is not bundle.root or Shared(value) in reader.operands

    def _operand(self, operand: Operand) -> Value:
        match operand:
            case Shared(value):
                return self._twins.get(value, value)
            case Constants(values):
                if operand not in self._constants:
                    arrays = [self._graph.constants[value].array for value in values]
                    self._constants[operand] = self._builder.constant(operand.array(arrays), name=values[0].name)
                return self._constants[operand]
            case Repeated(nodes, operands):
                return self._builder.emit(nodes[0].op, *map(self._operand, operands), name=nodes[0].name, **nodes[0].attrs)
            case Run(bundle, first, count):
                return self._made[bundle] if operand.is_whole else self._part(bundle, first, count, bundle.nodes[first].name)

    def _part(self, bundle: Bundle, first: int, count: int, name: str) -> Value:
        key = bundle, first, count
        if key not in self._parts:
            self._parts[key] = self._builder.emit("slice", self._made[bundle], name=name, **bundle.taken(first, count))
        return self._parts[key]
