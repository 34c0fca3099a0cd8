"""Patch-by-patch execution: early values, which are large, live a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.box import Box, sizes, slices, whole, within
from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import Stage
from passes.analysis.patches import Patch, cartesian_boxes, grid_boxes, patches
from passes.base import PassResult, register_pass
from passes.rewrite import rewrite


@register_pass
@dataclass(frozen=True)
class PatchByPatch:
    """Computes ``value`` in a ``grid`` of pieces, so many along each axis (``1x1x3x2``), each from the parts of earlier values that it needs.

    What pieces share is computed for each of them; nodes up to the one that makes ``source`` (none where that is empty) are not repeated.
    Convolutions of a piece pad at the borders of the whole alone (MCUNetV2: Lin et al., 2021, section 3.1).

    With ``value="y", grid="1x1x2x1"``, ``%c = conv(%x, %w); %y = relu(%c)`` becomes, two times,
    ``%p = slice(%x); %q = conv(%p, %w); %r = relu(%q)``, and ``%y = concat(%r, %r.1)``.
    """

    value: str = ""
    grid: str = ""
    source: str = ""
    name: ClassVar[str] = "patch-by-patch"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        made = {value.name: value for node in graph.nodes for value in node.outputs}
        value, source = made.get(self.value), made.get(self.source)
        pieces = [int(part) for part in self.grid.split("x") if part.isdecimal() and int(part) > 0]
        if value is None or (source is None and self.source) or len(pieces) != value.type.rank or not value.type.is_static or 0 in value.type.shape:
            return PassResult(graph, changed=False, notes=(f"%{self.value} from {self.source or 'the inputs'} cannot be cut by {self.grid}",))
        spans = grid_boxes(value.type.static_shape, pieces)
        found = patches(graph, value, cartesian_boxes(spans), source)
        if len(found) < 2:
            return PassResult(graph, changed=False, notes=(f"%{value.name} is not computed in parts",))

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            return _Writer(builder, node, iter(found)).assembled([len(axis) for axis in spans]) if value in node.outputs else None

        result, _ = rewrite(graph, rule)
        return PassResult(result, changed=True, notes=(f"%{value.name} in {len(found)} pieces",))


class _Writer:
    """Writes the nodes of patches, in the order of their boxes."""

    def __init__(self, builder: GraphBuilder, last: Node, found: Iterator[Patch]) -> None:
        self._builder = builder
        self._last = last
        self._found = found
        self._constants: dict[tuple[Value, Box], Value] = {}

    def assembled(self, grid: Sequence[int]) -> Value:
        """The next pieces, put together along the axes of ``grid``, the last fastest."""
        if not grid:
            return self._patch(next(self._found))
        pieces = [self.assembled(grid[1:]) for _ in range(grid[0])]
        axis = self._last.output.type.rank - len(grid)
        return pieces[0] if len(pieces) == 1 else self._builder.emit("concat", *pieces, name=self._last.name, axis=axis)

    def _patch(self, patch: Patch) -> Value:
        made: dict[Value, Value] = {}
        cut: dict[tuple[Value, Box], Value] = {}
        for step in patch.steps:
            operands = iter(self._operand(patch, made, cut, *read) for read in zip(step.node.present_inputs, step.part.boxes, strict=True))
            inputs = [None if value is None else next(operands) for value in step.node.inputs]
            made[step.node.output] = self._builder.emit(step.node.op, *inputs, name=step.node.name, **step.part.attrs)
        return made[self._last.output]

    def _operand(self, patch: Patch, made: dict[Value, Value], cut: dict[tuple[Value, Box], Value], value: Value, box: Box) -> Value:
        """A box of a value, cut out of what the patch, or the graph, has of it where that is more."""
        source, around = made.get(value, value), patch.boxes.get(value, whole(value.type.static_shape))
        if box == around:
            return source
        data = self._builder.array(value)
        known, key = (cut, (value, box)) if data is None else (self._constants, (value, box))
        if key not in known:
            starts = tuple(begin for begin, _ in within(box, around))
            known[key] = (
                self._builder.emit("slice", source, name=self._last.name, starts=starts, sizes=sizes(box), steps=(1,) * len(box))
                if data is None
                else self._builder.constant(data[slices(box)], name=value.name)
            )
        return known[key]
