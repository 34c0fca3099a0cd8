"""A few dozen random graphs; ``make random-graphs`` runs thousands."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from random_graphs import GraphMaker, UnfitError, check, reduced, run


def test_random_graphs_agree_with_the_oracle() -> None:
    failures = run(first_seed=3, count=60, most_nodes=25)
    assert not failures, "\n".join(failures)


def small_graph() -> tuple[GraphMaker, list[str]]:
    maker = GraphMaker(Random(1))
    names = [maker.known(np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4), constant=False)]
    for op in ("Sigmoid", "Relu", "Exp"):
        names += maker.node(op, names[-1:])
    return maker, names


def test_a_wrong_result_is_found_and_reduced_to_its_node() -> None:
    maker, names = small_graph()
    check(maker, native=True)
    maker.values[names[3]] = tuple(array + np.float32(1e-3) for array in maker.values[names[3]])

    def fails(graph: GraphMaker) -> bool:
        graph.read_outputs = [names[3]]
        try:
            check(graph, native=False)
        except AssertionError:
            return True
        return False

    assert fails(maker)
    assert [node.op_type for node in reduced(maker, fails).nodes] == ["Exp"]


def test_what_rounding_decides_is_not_added() -> None:
    maker = GraphMaker(Random(1))
    x = maker.known(np.float32([0.5, 3]), constant=False)
    (tie,) = maker.node("Mul", [x, maker.known(np.float32([2, 1]))])
    with pytest.raises(UnfitError):
        maker.node("Floor", [tie])


def test_a_constant_under_a_shape_that_only_a_run_knows() -> None:
    maker = GraphMaker(Random(1), symbolic=True)
    data, indices = (maker.known(np.zeros((1, 1, 20), dtype), constant=False) for dtype in (np.float32, np.int64))
    updates = maker.known(np.ones((1, 1, 20), np.float32), constant=True)
    maker.node("ScatterElements", [data, indices, updates], axis=-2)
    check(maker, native=True)


def test_an_empty_operand_that_tells_a_size() -> None:
    maker = GraphMaker(Random(1), symbolic=True)
    x = maker.known(np.ones((2, 6), np.float32), constant=False)
    empty = maker.known(np.ones((0, 6), np.float32), constant=True)
    maker.node("ReduceLogSumExp", maker.node("Concat", [x, empty, x], axis=0), keepdims=0)
    check(maker, native=True)
