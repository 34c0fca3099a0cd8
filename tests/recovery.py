"""What tests of recovered operators share."""

from __future__ import annotations

from graph_cases import check_same

from compiler.ir.graph import Graph
from compiler.ir.printer import print_graph
from passes.base import PassManager, PassResult
from passes.graph.recover import RecoverOps


def recovered(graph: Graph) -> PassResult:
    """The pass's result, verified, of the same meaning, and final."""
    after, (report,) = PassManager((RecoverOps(),), verify=True).run(graph)
    check_same(graph, after, 1e-5)
    again = RecoverOps().run(after)
    assert not again.changed
    assert print_graph(again.graph) == print_graph(after)
    assert report.changed == (print_graph(after) != print_graph(graph))
    return PassResult(after, report.changed, report.notes, report.events)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]
