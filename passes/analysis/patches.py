"""Patch-by-patch execution: which box of every value a box of a later one needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as cartesian

from compiler.ir.box import Box, Part, hull, whole
from compiler.ir.control import CONTROL, own_symbols
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.op import lookup


@dataclass(frozen=True)
class Step:
    """A node in one patch: how the box of its result is computed."""

    node: Node
    box: Box
    part: Part


@dataclass(frozen=True)
class Patch:
    """The nodes that one box of a value takes, in order, and the boxes of what they make."""

    steps: tuple[Step, ...]
    boxes: Mapping[Value, Box]


def grid_boxes(shape: Sequence[int], grid: Sequence[int]) -> list[list[tuple[int, int]]]:
    """The spans of every axis cut into at most so many pieces, all of one size but the last."""
    found = []
    for dim, pieces in zip(shape, grid, strict=True):
        size = -(-dim // pieces)
        found.append([(begin, min(begin + size, dim)) for begin in range(0, dim, size)])
    return found


def patches(graph: Graph, value: Value, boxes: Sequence[Box], source: Value | None = None) -> tuple[Patch, ...]:
    """For boxes of a value, what computes each; what it reads beside is made whole before. Empty where the value cannot be computed in parts.

    Nodes up to the one that makes ``source`` are not repeated, nor are those whose result every box needs whole, or something beside the boxes.
    """
    end, begin = _place(graph, value) + 1, 0 if source is None else _place(graph, source) + 1
    wanted: list[dict[Value, Box]] = [{value: box} for box in boxes]
    steps: list[list[Step]] = [[] for _ in boxes]
    inside: set[Node] = set()
    outputs = set(graph.outputs)
    for node in reversed(graph.nodes[begin:end]):
        asked = [(number, known[node.output]) for number, known in enumerate(wanted) if len(node.outputs) == 1 and node.output in known]
        if inside and asked and (node.output in outputs or not inside.issuperset(graph.users[node.output])):
            continue
        parts = list(_parts(node, [box for _, box in asked]))
        if not parts:
            continue
        inside.add(node)
        for (number, box), part in zip(asked, parts, strict=True):
            steps[number].append(Step(node, box, part))
            known = wanted[number]
            for operand, needed in zip(node.present_inputs, part.boxes, strict=True):
                known[operand] = hull(known[operand], needed) if operand in known else needed
    if not all(steps):
        return ()
    return tuple(Patch(tuple(reversed(found)), {step.node.output: step.box for step in found}) for found in steps)


def _place(graph: Graph, value: Value) -> int:
    return next(number for number, node in enumerate(graph.nodes) if value in node.outputs)


def _parts(node: Node, boxes: Sequence[Box]) -> Iterator[Part]:
    """How a node computes each of the boxes; nothing where it does not compute them all, or each is the whole."""
    if node.op in CONTROL or own_symbols(node) or not all(v.type.is_static and 0 not in v.type.shape for v in (*node.present_inputs, node.output)):
        return
    if all(box == whole(node.output.type.static_shape) for box in boxes):
        return
    types = [v.type for v in node.present_inputs]
    parts = [lookup(node.op).part(types, node.attrs, box) for box in boxes]
    found = [part for part in parts if part is not None]
    if len(found) == len(parts):
        yield from found


def cartesian_boxes(spans: Sequence[Sequence[tuple[int, int]]]) -> list[Box]:
    """Every box of a grid, the last axis fastest."""
    return list(cartesian(*spans))
