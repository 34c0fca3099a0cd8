"""The canonical passes mean the same in any order; ``pass_orders.py`` draws more of them."""

from __future__ import annotations

import pytest
from graph_cases import check_same, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_orders import compare, order
from zoo_models import needs_zoo

from compiler.ir.graph import Graph
from compiler.ir.printer import print_graph
from passes.base import PassManager


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 10**6))
def test_random_graphs(graph: Graph, seed: int) -> None:
    after, _ = PassManager(order(seed), verify=True).run(graph)
    check_same(graph, after, 1e-5)


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 10**6))
def test_a_pass_says_whether_it_changes_a_graph_and_leaves_what_it_made(graph: Graph, seed: int) -> None:
    for step in order(seed):
        result = step.run(graph)
        assert result.changed == (print_graph(result.graph) != print_graph(graph)), step.name
        again = step.run(result.graph)
        assert not again.changed, (step.name, again.notes)
        assert print_graph(again.graph) == print_graph(result.graph), step.name
        graph = result.graph


@needs_zoo
@pytest.mark.parametrize(("name", "seed"), [("lcnet_100", 1), ("bert_tiny", 2), ("mobileone_s0_train", 3), ("espcn_x3", 4)])
def test_models(name: str, seed: int) -> None:
    worst, bound = compare(name, seed)
    assert worst <= bound
