"""Regions between transposes: what is done on transposed tensors is done on what they are transposes of, where fewer transposes are left so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Attr, Graph, Node, Value
from compiler.ir.intexpr import Dim
from compiler.ir.verify import Stage, is_elementwise
from compiler.ops.support import attr_dims, attr_int, attr_ints
from passes.base import PassResult, register_pass
from passes.graph.sink_transposes import State, Step, before_transpose, carried
from passes.rewrite import builder_for, rewrite


@register_pass
@dataclass(frozen=True)
class UntransposeRegions:
    """Elementwise nodes, products by constants, norms, slices and concatenations whose data all comes from transposes of one order, however they
    branch and meet again, work on what these transpose. Transposes back are not needed then; what others read is transposed behind the region.

    ``%t = transpose(%x); %r = relu(%t); %s = add(%t, %r); %y = transpose(%s); %z = transpose(%r)``, each the other's inverse, becomes
    ``%z = relu(%x); %y = add(%x, %z)``.
    """

    name: ClassVar[str] = "untranspose-regions"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        turned = _Turned.of(graph)
        chosen = turned.worth_it(graph)
        now: dict[Value, Value] = {}

        def rule(node: Node, builder: GraphBuilder) -> Value | None:
            value = node.output
            if value in turned.back:
                return now.get(turned.back[value])
            if value not in turned.states or turned.region(value) not in chosen:
                return None
            step = turned.steps.get(value)
            if step is None:
                now[value] = node.present_inputs[0]
                return None
            now[value] = step.emit(iter([now[read] for read in turned.read[value]]), builder)
            if not turned.is_read_outside(graph, value):
                return None
            return builder.emit("transpose", now[value], perm=step.state.perm, name=node.name)

        result, _ = rewrite(graph, rule) if chosen else (graph, 0)
        return PassResult(result, bool(chosen), (f"{len(chosen)} regions",) if chosen else ())


@dataclass(frozen=True)
class _Turned:
    """The values of a graph that are transposes of others, and the nodes that could be done on those instead, by their results.

    ``steps`` are these nodes, ``read`` what they read of such values; ``back`` are transposes that undo that, and what they read.
    """

    states: dict[Value, State] = field(default_factory=dict)
    steps: dict[Value, Step] = field(default_factory=dict)
    read: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    back: dict[Value, Value] = field(default_factory=dict)
    leader: dict[Value, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> _Turned:
        found, builder = cls(), builder_for(graph)
        for node in graph.nodes:
            if node.op == "transpose":
                (x,), perm = node.present_inputs, attr_ints(node.attrs, "perm")
                if x in found.states and tuple(found.states[x].perm[axis] for axis in perm) == tuple(range(len(perm))):
                    found.back[node.output] = x
                elif x not in graph.constants:
                    found.states[node.output] = State(x.type.shape, perm)
                continue
            step = _step(node, found.states, builder)
            if step is not None:
                value = node.output
                found.steps[value], found.states[value] = step, step.state
                found.read[value] = tuple(v for v in node.present_inputs if v in found.states)
                for read in found.read[value]:
                    found.leader[found.region(value)] = found.region(read)
        return found

    def region(self, value: Value) -> Value:
        """What stands for all values that are connected with this one."""
        while value in self.leader and self.leader[value] is not value:
            value = self.leader[value]
        return value

    def is_read_outside(self, graph: Graph, value: Value) -> bool:
        """Whether a value is needed as it is, transposed, when its region is not."""
        users = graph.users.get(value, ())
        return value in graph.outputs or not all(node.outputs and (node.outputs[0] in self.steps or node.outputs[0] in self.back) for node in users)

    def worth_it(self, graph: Graph) -> set[Value]:
        """The regions that take fewer transposes on what is not transposed."""
        fewer: Counter[Value] = Counter()
        for value in self.states:
            outside = self.is_read_outside(graph, value)
            fewer[self.region(value)] += -outside if value in self.steps else not outside
        for value in self.back.values():
            fewer[self.region(value)] += value in self.steps
        working = {self.region(value) for value in self.steps}
        return {region for region, count in fewer.items() if count > 0 and region in working}


def _step(node: Node, states: Mapping[Value, State], builder: GraphBuilder) -> Step | None:
    """A node as it is done on what is not transposed; None where it cannot be, or reads anything else."""
    data = [v for v in node.present_inputs if builder.array(v) is None]
    if not data or len(node.outputs) != 1 or None in node.inputs or not all(v in states for v in data):
        return None
    perm, result = states[data[0]].perm, node.output.type
    if any(states[v].perm != perm for v in data) or result.rank != len(perm):
        return None
    arrays = tuple(before_transpose(builder.array(v), perm) for v in node.present_inputs)
    if is_elementwise(node):
        return Step(node, arrays, dict(node.attrs), _state(result.shape, perm), node.op)
    if node.op == "concat":
        return Step(node, arrays, {"axis": perm[attr_int(node.attrs, "axis")]}, _state(result.shape, perm), node.op)
    if node.op == "slice":
        attrs: dict[str, Attr] = {name: _untransposed(attr_dims(node.attrs, name), perm) for name in ("starts", "sizes", "steps")}
        return Step(node, (None,), attrs, _state(result.shape, perm), node.op)
    return carried(node, data[0], states[data[0]], builder) if len(data) == 1 and node.op in ("matmul", "normalize") else None


def _state(shape: tuple[Dim, ...], perm: tuple[int, ...]) -> State:
    return State(_untransposed(shape, perm), perm)


def _untransposed(dims: tuple[Dim, ...], perm: tuple[int, ...]) -> tuple[Dim, ...]:
    """Numbers for each axis in the order that the axes have before the transpose."""
    return tuple(dims[perm.index(axis)] for axis in range(len(perm)))
