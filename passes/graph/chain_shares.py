"""Two groups as one, share by share of their channels: what the first makes is never in memory as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.shares import shared
from compiler.ir.verify import Stage
from passes.analysis.estimate import estimate
from passes.analysis.reports import reports_nothing
from passes.base import PassResult, register_pass
from passes.rewrite import builder_for, finish

_BLOCKS, _FEWEST_BLOCKS = 3, 2
"""Channel blocks of a share with which kernels are as fast as on the whole, and the fewest that do for a value that is large: 16 to 96 channels at
112 x 112 and the depthwise convolution behind them take 433 us apart, 413 in shares of 3 blocks, 421 of 2, 543 of 1 (AMD EPYC, Zen 4)."""


_UNEVEN = 1.2
"""The most that the slowest worker's shares may be, by what they would be if all had as many."""


@register_pass
@dataclass(frozen=True)
class ChainShares:
    """A group that alone reads what another makes takes it in, in ``shares``, where that is larger than a cache of ``cache_bytes``, a share of
    what both make is not, what every share reads is not, and there are enough for all workers.

    ``%p = group(%x, %w) {conv, relu}; %d = group(%p, %k) {conv}``, the second depthwise, becomes ``%d = group(%k, %x, %w) {shares = 4}`` with
    ``%p = group(%x.1, %w.1)`` inside. Each share of the channels is made and read before the next (after Lin et al., 2021, section 3.1, by
    channels instead of patches: nothing is computed twice). Neither may report.
    """

    cache_bytes: int
    workers: int = 1
    name: ClassVar[str] = "chain-shares"
    stage: ClassVar[Stage] = Stage.GROUPED

    def run(self, graph: Graph) -> PassResult:
        builder = builder_for(graph)
        chained: dict[Node, Node] = {}
        taken: set[Node] = set()
        for node in graph.nodes:
            for value in node.present_inputs if _is_plain(node) else ():
                maker = graph.producers.get(value)
                alone = graph.users[value] == (node,) and node.present_inputs.count(value) == 1 and value not in graph.outputs
                if maker is None or not alone or maker in chained or not _is_plain(maker):
                    continue
                found = self._chained(maker, node, builder)
                if found is not None:
                    chained[node] = found
                    taken.add(maker)
                    break
        for node in graph.nodes:
            if node not in taken:
                builder.append(chained.get(node, node))
        return PassResult(finish(builder, graph, graph.outputs), bool(chained), (f"{len(chained)} pairs",) if chained else ())

    def _chained(self, first: Node, second: Node, builder: GraphBuilder) -> Node | None:
        """Both groups as one, if that may be and pays."""
        type_ = first.output.type
        if type_.block == 1 or not type_.is_static or not second.output.type.is_static or estimate(type_.nbytes) <= self.cache_bytes:
            return None
        blocks = -(-type_.static_shape[1] // type_.block)
        counts = [blocks // size for size in range(_FEWEST_BLOCKS, blocks) if blocks % size == 0]
        fitting = [count for count in counts if self._fits(first, second, count)]
        enough = [count for count in fitting if blocks // count >= _BLOCKS]
        both = _joined(first, second, builder)
        found = next((found for count in enough or fitting if (found := shared(both, count)) is not None), None)
        if found is None:
            return None
        read = sum(estimate(value.type.nbytes) for value in found.region.inputs if value not in found.cut)
        return replace(both, attrs={**both.attrs, "shares": found.count}) if read <= self.cache_bytes else None

    def _fits(self, first: Node, second: Node, count: int) -> bool:
        """Whether a share of what both groups make stays in the cache, and no worker waits long for another."""
        share = (estimate(first.output.type.nbytes) + estimate(second.output.type.nbytes)) // count
        return share <= self.cache_bytes and -(-count // self.workers) * self.workers <= _UNEVEN * count


def _joined(first: Node, second: Node, builder: GraphBuilder) -> Node:
    """The second group with the first inside."""
    (region,) = second.regions
    inside = dict(zip(second.present_inputs, region.inputs, strict=True))
    made = inside.pop(first.output)
    for value in first.present_inputs:
        if value not in inside:
            inside[value] = Value(builder.unique(value.name), value.type)
    inner = replace(first, inputs=tuple(inside[value] for value in first.present_inputs), outputs=(made,))
    return replace(second, inputs=tuple(inside), regions=(region.with_(inputs=tuple(inside.values()), nodes=(inner, *region.nodes)),))


def _is_plain(node: Node) -> bool:
    """Whether a node is a group without others inside whose kernel reports nothing."""
    return node.op == "group" and len(node.outputs) == 1 and all(inner.op != "group" and reports_nothing(inner) for inner in node.regions[0].nodes)
