"""A group in equal shares of its channels: what one share of the result is computed from, inner groups included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from compiler.errors import InternalError
from compiler.ir.box import Box, Part, sizes, whole
from compiler.ir.graph import Attr, Graph, Node, Value
from compiler.ir.op import lookup
from compiler.ir.types import TensorType

_CHANNELS = 1


@dataclass(frozen=True)
class Shares:
    """``region`` is a group's region on the types of one share. ``cut`` are those of its inputs of which each share reads another part, one after
    another; of the others every share reads all."""

    count: int
    region: Graph
    cut: frozenset[Value]


def shares_of(group: Node) -> Shares:
    """A group in the shares that its attribute asks for: one of all where it has none. Raises InternalError where it cannot be computed so."""
    count = group.attrs.get("shares", 1)
    if count == 1:
        return Shares(1, group.regions[0], frozenset())
    found = shared(group, count) if isinstance(count, int) and count > 0 else None
    if found is None:
        raise InternalError(f"a group cannot be computed in {count} shares", where=f"node {group.name}")
    return found


def shared(group: Node, count: int) -> Shares | None:
    """A group in ``count`` shares of whole channel blocks. None where it cannot be computed so: every share of what the group makes by itself,
    and once, from one piece, or all, of each operand.
    """
    (region,) = group.regions
    type_ = group.outputs[0].type
    if (
        len(group.outputs) != 1
        or type_.block == 1
        or not type_.is_static
        or 0 in type_.shape
        or type_.static_shape[_CHANNELS] % (count * type_.block)
    ):
        return None
    size = type_.static_shape[_CHANNELS] // count
    found = [_boxes(region, _span(whole(type_.static_shape), _CHANNELS, number, size)) for number in range(count)]
    plans = [plan for plan in found if plan is not None]
    if len(plans) < count:
        return None
    made = {value for node in region.nodes for value in node.outputs}
    cut: set[Value] = set()
    for value in plans[0].boxes:
        boxes = [plan.boxes[value] for plan in plans]
        if _are_pieces(boxes, value.type):
            cut.add(value)
        elif value in made or any(box != whole(value.type.static_shape) for box in boxes):
            return None
    if any(plan.attrs != plans[0].attrs for plan in plans):
        return None
    part = _Region(plans[0]).of(region)
    return Shares(count, part, frozenset(own for own, value in zip(part.inputs, region.inputs, strict=True) if value in cut))


@dataclass(frozen=True)
class _Plan:
    """The box of every value that a box of a region's result takes, and the attributes of each node on these, inner regions included."""

    boxes: Mapping[Value, Box]
    attrs: Mapping[Node, Mapping[str, Attr]]


def _boxes(region: Graph, box: Box) -> _Plan | None:
    boxes: dict[Value, Box] = {region.outputs[0]: box}
    attrs: dict[Node, Mapping[str, Attr]] = {}
    for node in reversed(region.nodes):
        own = boxes.get(node.outputs[0])
        if own is None or len(node.outputs) != 1 or not all(value.type.is_static for value in (*node.present_inputs, node.output)):
            return None
        if node.op == "group":
            inner = _boxes(node.regions[0], own)
            if inner is None:
                return None
            boxes |= inner.boxes
            attrs |= inner.attrs
            read: Sequence[Box] = [inner.boxes[value] for value in node.regions[0].inputs]
        else:
            part: Part | None = lookup(node.op).part([value.type for value in node.present_inputs], node.attrs, own)
            if part is None:
                return None
            read, attrs[node] = part.boxes, part.attrs
        for value, needed in zip(node.present_inputs, read, strict=True):
            if boxes.setdefault(value, needed) != needed:
                return None
    return _Plan(boxes, attrs)


def _span(box: Box, axis: int, number: int, size: int) -> Box:
    return (*box[:axis], (number * size, (number + 1) * size), *box[axis + 1 :])


def _are_pieces(boxes: Sequence[Box], type_: TensorType) -> bool:
    """Whether the boxes of a value, one for each share, are equal pieces of its memory, one after another."""
    full = whole(type_.static_shape)
    for axis, dim in enumerate(type_.static_shape):
        size = dim // len(boxes)
        if size * len(boxes) == dim and all(box == _span(full, axis, number, size) for number, box in enumerate(boxes)):
            in_blocks = type_.block == 1 or (axis == _CHANNELS and size % type_.block == 0)
            return in_blocks and prod(type_.static_shape[:axis]) == 1
    return False


class _Region:
    """Copies regions onto the types of a share."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._twins: dict[Value, Value] = {}

    def of(self, region: Graph) -> Graph:
        """The copy of a region."""
        inputs, nodes = tuple(map(self._twin, region.inputs)), tuple(map(self._node, region.nodes))
        return Graph(region.name, inputs, tuple(map(self._twin, region.outputs)), nodes)

    def _twin(self, value: Value) -> Value:
        if value not in self._twins:
            type_ = value.type
            self._twins[value] = Value(value.name, TensorType(type_.dtype, sizes(self._plan.boxes[value]), type_.block))
        return self._twins[value]

    def _node(self, node: Node) -> Node:
        inputs = tuple(None if value is None else self._twin(value) for value in node.inputs)
        attrs = self._plan.attrs.get(node, node.attrs)
        return replace(node, inputs=inputs, outputs=tuple(map(self._twin, node.outputs)), attrs=attrs, regions=tuple(map(self.of, node.regions)))
