"""Attention put together: two products with a softmax between them, and the arithmetic on its scores, as one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.errors import InternalError
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, product
from compiler.ir.narrow import widened
from compiler.ir.op import lookup
from compiler.ir.regroup import carried, runs
from compiler.ir.scalar import Arg, Call, Const, Scalar, divisors, leaves, substitute
from compiler.ir.strided import Shape
from compiler.ir.types import compute_dtype
from compiler.ir.verify import Stage, is_elementwise
from compiler.ops.support import attr_dims, attr_int, attr_ints
from passes.base import PassResult, RuleEvent, register_pass
from passes.rewrite import rewrite, single_use

_RULE = "attention"


@register_pass
@dataclass(frozen=True)
class FuseAttention:
    """Products of a softmax, whose operand is computed element by element from another product, become ``attention``, in whose ``score`` that is.

    ``%s = matmul(%q, %k); %m = add(%s, %mask); %w = softmax(%m) {axis = 3, log = false}; %y = matmul(%w, %v)`` becomes
    ``%y = attention(%q, %t, %v, %mask) {score = add:f32($0:f32, $1:f32), perm = [0, 1, 2, 3]}``, ``%t`` the transpose of ``%k``; a transpose
    behind it becomes its ``perm``, arithmetic on the softmax its ``weight``. Heads that share keys are those along which the keys broadcast.
    """

    name: ClassVar[str] = "fuse-attention"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        single = single_use(graph)
        events: list[RuleEvent] = []

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            context = _Context(graph, builder, single, events)
            found = _fused(node, context) if node.op == "matmul" else _transposed(node, context) if node.op == "transpose" else None
            if found is not None and node.output in single:
                single.add(found)
            return found

        result, count = rewrite(graph, rule)
        return PassResult(result, count > 0, (f"{count} nodes",) if count else (), tuple(events))


@dataclass(frozen=True)
class _Context:
    """The graph as it was, what it becomes, the values that one node alone reads, and what is known of near misses."""

    graph: Graph
    builder: GraphBuilder
    single: set[Value]
    events: list[RuleEvent]

    def maker(self, value: Value, *ops: str) -> Node | None:
        """The node of one of ``ops`` that makes a value for one reader alone."""
        node = self.builder.producer(value)
        return node if node is not None and node.op in ops and value in self.single else None

    def unviewed(self, value: Value) -> Value:
        """What a value is a reshape of."""
        while (node := self.maker(value, "reshape")) is not None:
            value = node.present_inputs[0]
        return value


class _UnfitError(Exception):
    """Why nodes that look like attention are not."""


@dataclass
class _Score:
    """The score as it is collected from the softmax's operand down: leaves are operands with the shape of what they are combined with."""

    leaves: list[tuple[Value, Shape]]

    def leaf(self, value: Value, shape: Shape, context: _Context) -> Scalar:
        array = context.builder.array(value)
        if array is not None and array.size == 1:
            return Const(array.astype(compute_dtype(value.type.dtype).numpy).item(), value.type.dtype)
        if (value, shape) not in self.leaves:
            self.leaves.append((value, shape))
        return Arg(1 + self.leaves.index((value, shape)), value.type.dtype)


def _fused(root: Node, context: _Context) -> Value | None:
    """The product ``root`` as attention, where one of its operands is a softmax."""
    left, right = root.present_inputs
    for weights, value, turned in ((left, right, False), (_turned(right, context), left, True)):
        changed = None if weights is None else _changed(context.unviewed(weights), context)
        if changed is None or weights is None:
            continue
        try:
            result = _attention(root, changed, weights, value, turned, context)
        except _UnfitError as reason:
            context.events.append(RuleEvent(_RULE, root.name or root.output.name, str(reason)))
            return None
        context.events.append(RuleEvent(_RULE, root.name or root.output.name))
        return result
    return None


def _turned(value: Value, context: _Context) -> Value | None:
    """What a value is, but for the order of its last two axes."""
    node = context.maker(value, "transpose", "reshape")
    if node is None:
        return None
    (x,), rank = node.present_inputs, value.type.rank
    if node.op == "transpose":
        return x if attr_ints(node.attrs, "perm") == _swapped(rank) else None
    if rank < 2 or 1 not in value.type.shape[-2:] or context.maker(context.unviewed(x), "softmax") is None:
        return None
    row = _reshaped(x, [value.type.shape[axis] for axis in _swapped(rank)], context.builder)
    context.single.add(row)
    return row


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


@dataclass(frozen=True)
class _Changed:
    """A softmax, the arithmetic on it before the values are summed with it, and the operands that reads."""

    softmax: Node
    weight: Scalar
    others: list[Value]


def _changed(value: Value, context: _Context) -> _Changed | None:
    """The softmax that weights are computed from element by element, for nothing else; None where they are not."""
    producers: dict[Value, Node] = {}
    others: list[Value] = []
    pending = [value]
    softmax = None
    for each in pending:
        node = context.builder.producer(each)
        if each in producers or each in others:
            continue
        if node is not None and each.type.shape == value.type.shape and (node.op == "softmax" or _is_free(node)):
            producers[each] = node
            softmax = node if node.op == "softmax" else softmax
            pending += () if node.op == "softmax" else node.present_inputs
        else:
            others.append(each)
    inside = {*producers.values()}
    known = softmax is not None and sum(node.op == "softmax" for node in inside) == 1
    alone = known and all(v in context.single if v is value else _is_inside(v, inside, context) for v in producers)
    if softmax is None or not alone:
        return None
    return _Changed(softmax, _expression(value, softmax, producers, others), others)


def _is_free(node: Node) -> bool:
    """Whether a node is elementwise and divides no integers."""
    if not is_elementwise(node):
        return False
    expr = lookup(node.op).scalar([Arg(n, v.type.dtype) for n, v in enumerate(node.present_inputs)], node.attrs)
    return expr is not None and not divisors(expr)


def _is_inside(value: Value, nodes: set[Node], context: _Context) -> bool:
    """Whether nodes alone read a value."""
    made = {v for node in nodes for v in node.outputs}
    users = context.graph.users.get(value, ())
    return bool(users) and value not in context.graph.outputs and all(set(user.outputs) <= made for user in users)


def _expression(value: Value, softmax: Node, producers: Mapping[Value, Node], others: Sequence[Value]) -> Scalar:
    """An element of a value, ``Arg(0)`` that of the softmax and ``Arg(1 + i)`` that of ``others[i]``."""
    found: dict[Value, Scalar] = {softmax.output: Arg(0, softmax.output.type.dtype)}
    found.update((v, Arg(1 + n, v.type.dtype)) for n, v in enumerate(others))

    def element(v: Value) -> Scalar:
        if v not in found:
            node = producers[v]
            expr = lookup(node.op).scalar([Arg(n, x.type.dtype) for n, x in enumerate(node.present_inputs)], node.attrs)
            if expr is None:
                raise InternalError(f"{node.op} has no scalar expression", where="pass fuse-attention")
            found[v] = substitute(expr, [element(x) for x in node.present_inputs])
        return found[v]

    return element(value)


def _attention(root: Node, changed: _Changed, weights: Value, value: Value, turned: bool, context: _Context) -> Value:
    softmax, builder = changed.softmax, context.builder
    (scores,) = softmax.present_inputs
    shape = scores.type.shape
    if attr_int(softmax.attrs, "axis") != len(shape) - 1 or len(shape) < 2 or softmax.attrs["log"]:
        raise _UnfitError(f"%{softmax.output.name} is not a softmax along the last axis")
    found = _Score([])
    matched = _collect(scores, found, context)
    if matched is None:
        raise _UnfitError(f"%{scores.name} is not computed from a product element by element")
    producing, expr = matched
    if divisors(expr):
        raise _UnfitError(f"%{scores.name} divides integers")
    query, key = producing.present_inputs
    if not query.type.dtype.is_float or shape[-1] != key.type.shape[-1]:
        raise _UnfitError(f"%{producing.output.name} is not a product of floats with the rows of the softmax")
    key, value = _unexpanded(key, context), _unexpanded(value, context)
    if value.type.dtype is not query.type.dtype:
        raise _UnfitError(f"%{value.name} holds {value.type.dtype.value}, and the keys {query.type.dtype.value}")
    heads = _Heads.of(shape, producing, (key, value), weights, turned, context.graph.users.get(root.output, ()))
    wide = compute_dtype(query.type.dtype)
    score = widened(expr, {0: Arg(0, wide)})
    weight = substitute(changed.weight, [Arg(0, scores.type.dtype), *(found.leaf(other, shape, context) for other in changed.others)])
    query, score = _unscaled(query, score, context)
    key, score = _unscaled(key, score, context)
    key = builder.emit("transpose", key, perm=_swapped(key.type.rank), name=producing.name)
    if turned:
        value = builder.emit("transpose", value, perm=_swapped(value.type.rank), name=root.name)
    rows, keys = shape[-2:]
    scored = (heads.batch, heads.heads, rows, keys)
    operands = [
        _reshaped(query, (*scored[:3], query.type.shape[-1]), builder),
        _reshaped(key, (heads.batch, heads.groups, *key.type.shape[-2:]), builder),
        _reshaped(value, (heads.batch, heads.groups, *value.type.shape[-2:]), builder),
    ]
    for leaf, around in found.leaves:
        own = (1, 1, 1, 1) if leaf.type.elements == 1 else carried(leaf.type.shape, scored, around)
        if own is None:
            raise _UnfitError(f"%{leaf.name} broadcasts to a part of the batch or the heads")
        operands.append(_reshaped(leaf, own, builder))
    perm = (0, 1, 3, 2) if turned else (0, 1, 2, 3)
    attrs = {} if changed.weight == Arg(0, scores.type.dtype) else {"weight": widened(weight, {0: Arg(0, wide)})}
    result = builder.emit("attention", *operands, score=score, perm=perm, name=root.name, **attrs)
    if root.output in context.single:
        context.single.add(result)
    return _reshaped(result, root.output.type.shape, builder)


def _reshaped(value: Value, shape: Sequence[Dim], builder: GraphBuilder) -> Value:
    return value if value.type.shape == tuple(shape) else builder.emit("reshape", value, shape=tuple(shape))


def _collect(value: Value, score: _Score, context: _Context) -> tuple[Node, Scalar] | None:
    """The product that a value is computed from, and its element from the product's and those of the score's leaves."""
    node = context.builder.producer(value)
    if node is None or value not in context.single:
        return None
    if node.op == "matmul":
        return node, Arg(0, value.type.dtype)
    if node.op == "reshape":
        return _collect(node.present_inputs[0], score, context)
    if not is_elementwise(node):
        return None
    for number, operand in enumerate(node.present_inputs):
        inner = _collect(operand, score, context) if operand.type.elements == value.type.elements else None
        if inner is None or node.inputs.count(operand) > 1:
            continue
        producing, expr = inner
        others = [expr if n == number else score.leaf(v, value.type.shape, context) for n, v in enumerate(node.present_inputs)]
        element = lookup(node.op).scalar([Arg(n, v.type.dtype) for n, v in enumerate(node.present_inputs)], node.attrs)
        return None if element is None else (producing, substitute(element, others))
    return None


@dataclass(frozen=True)
class _Heads:
    """How many batches there are, heads of queries in each, and heads of keys and values."""

    batch: Dim
    heads: Dim
    groups: Dim

    @classmethod
    def of(cls, scores: Shape, producing: Node, shared: tuple[Value, Value], weights: Value, turned: bool, readers: Sequence[Node]) -> _Heads:
        """From the axes before the last two. Raises _UnfitError where heads share keys other than one after another, or values other than keys.

        In row-major order the rows of queries come head by head, whatever the axes are that they have in the products; keys that broadcast along
        the last of these serve so many rows each.
        """
        outer = producing.output.type.shape[:-2]
        kept, given = (_trailing(v.type.shape, lead) for v, lead in zip(shared, (outer, weights.type.shape[:-2]), strict=True))
        if producing.present_inputs[0].type.shape[:-2] != outer or kept is None or given is None or product(kept) != product(given):
            raise _UnfitError(f"%{producing.output.name} and the product behind the softmax do not share heads in one way, one after another")
        if weights.type.shape[-1] != scores[-1] or (turned and weights.type.shape[-2] != scores[-2]):
            raise _UnfitError(f"%{weights.name} has other rows or columns than the softmax")
        lead = scores[:-2]
        if len(lead) == 1:
            split = next((attr_dims(node.attrs, "shape") for node in readers if node.op == "reshape"), ())
            if len(split) == 4 and product(split[:2]) == lead[0]:
                lead = split[:2]
        options = [(product(lead[:-1]), lead[-1])] if len(lead) > 1 else [(product(lead), 1)]
        for batch, heads in (*options, (1, product(lead))):
            parts = [n for n in range(1, heads + 1) if heads % n == 0] if isinstance(heads, int) else [heads]
            groups = next((n for n in reversed(parts) if batch * n == product(kept)), None)
            if groups is not None:
                return cls(batch, heads, groups)
        raise _UnfitError(f"{product(kept)} heads of keys for {' x '.join(map(str, lead)) or 1} of queries")


def _trailing(shape: Shape, around: Shape) -> Shape | None:
    """The outer dims of a matrix operand, where they are ``around`` with 1 for none or some of the last ones; None where not."""
    own = (*(1,) * (len(around) + 2 - len(shape)), *shape[:-2])
    last = max((axis for axis, dim in enumerate(own) if dim != 1), default=-1)
    return own if own[: last + 1] == around[: last + 1] else None


def _unexpanded(value: Value, context: _Context) -> Value:
    """What is repeated for heads that share it, where a value is that."""
    node = context.builder.producer(value)
    if node is None or node.op != "expand" or node.present_inputs[0].type.shape[-2:] != value.type.shape[-2:]:
        return value
    return node.present_inputs[0]


def _unscaled(value: Value, score: Scalar, context: _Context) -> tuple[Value, Scalar]:
    """A factor of an operand of the product as one of the score, which costs less."""
    chain: list[Node] = []
    source = value
    while (node := context.maker(source, "reshape", "transpose")) is not None:
        chain.append(node)
        source = node.present_inputs[0]
    scaled = context.maker(source, "mul")
    if scaled is None:
        return value, score
    for x, factor in (scaled.present_inputs, scaled.present_inputs[::-1]):
        array = context.builder.array(factor)
        if array is not None and array.size == 1 and x.type.shape == source.type.shape:
            for node in reversed(chain):
                x = context.builder.emit(node.op, x, name=node.name, **node.attrs)
            number = Const(array.astype(compute_dtype(factor.type.dtype).numpy).item(), score.dtype)
            return x, _scaled(score, number)
    return value, score


def _scaled(score: Scalar, factor: Const) -> Scalar:
    """The score of products that are ``factor`` times as large."""
    twins: dict[int, Scalar] = {leaf.index: leaf for leaf in leaves(score)}
    twins[0] = Call("mul", (Arg(0, factor.dtype), factor), factor.dtype)
    return substitute(score, [twins.get(n, factor) for n in range(max(twins) + 1)])


def _transposed(node: Node, context: _Context) -> Value | None:
    """A transpose of attention, which is attention with another ``perm``."""
    (x,) = node.present_inputs
    result = context.unviewed(x)
    attention = context.maker(result, "attention")
    if attention is None:
        return None
    order = _moved(result.type.shape, x.type.shape, attr_ints(node.attrs, "perm"))
    if order is None:
        return None
    perm = attr_ints(attention.attrs, "perm")
    attrs = {**attention.attrs, "perm": tuple(perm[axis] for axis in order)}
    found = context.builder.emit("attention", *attention.inputs, name=attention.name, **attrs)
    if node.output in context.single:
        context.single.add(found)
    return _reshaped(found, node.output.type.shape, context.builder)


def _moved(before: Shape, after: Shape, perm: Sequence[int]) -> list[int] | None:
    """The order of axes that, done before a reshape, is ``perm`` done after it; None where that splits an axis."""
    blocks: list[tuple[list[int], list[int]]] = []
    at = 0
    found = runs(before, after)
    if found is None:
        return None
    for dims, axes in found:
        blocks.append((list(range(at, at + len(dims))), list(range(*axes.indices(len(after))))))
        at += len(dims)
    order = [axis for own, axes in blocks for axis in own if not axes]
    at = 0
    while at < len(perm):
        block = next(block for block in blocks if perm[at] in block[1])
        if list(perm[at : at + len(block[1])]) != block[1]:
            return None
        order += block[0]
        at += len(block[1])
    return order if len(order) == len(before) else None
