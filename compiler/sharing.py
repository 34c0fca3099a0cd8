"""Weights that two kernels read in different orders, kept once: what one packs into panels, the other reads there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from compiler.ir.control import BRANCHING
from compiler.ir.graph import Constant, Graph, Node, Value
from compiler.kernels.base import Family, PanelPacker, PanelReader, Panels, Workload
from compiler.target import Target
from compiler.workloads import Selected
from passes.analysis.tied import is_transpose


def tied_panels(
    graph: Graph, selected: Mapping[Node, Selected], choose: Callable[[Family, Workload, Target], Any], target: Target
) -> dict[Constant, Panels]:
    """How each table lies whose transpose a product packs and whose readers can read it so."""
    tables: list[Constant] = []
    packed: list[tuple[Constant, Panels]] = []
    for around, each in _kernels(graph, selected):
        workload = replace(each.group.workload, family=each.family.name)
        constants = [around.constants.get(read) if isinstance(read, Value) else None for read in each.group.reads]
        if isinstance(each.family, PanelReader) and constants[0] is not None and each.family.reads_panels(workload):
            tables.append(constants[0])
        if isinstance(each.family, PanelPacker):
            found = each.family.packed(workload, choose(each.family, workload, target))
            weights = None if found is None else constants[found[0]]
            if found is not None and weights is not None and weights.array.dtype == workload.inputs[found[0]].type.dtype.numpy:
                packed.append((weights, found[1]))
    return {table: panels for table in tables for weights, panels in packed if is_transpose(table.array, weights.array)}


def _kernels(graph: Graph, selected: Mapping[Node, Selected]) -> Iterator[tuple[Graph, Selected]]:
    """Every kernel, those inside of others included, with the graph it stands in."""
    for node in graph.nodes:
        if node in selected:
            yield from ((graph, each) for each in (*selected[node].inner, selected[node]))
        for region in node.regions if node.op in BRANCHING else ():
            yield from _kernels(region, selected)
