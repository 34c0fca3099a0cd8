"""Passes as text: each file of tests/passes holds passes, a graph before, and the graph after; ``pytest --bless`` rewrites the latter.

Both graphs are also interpreted on random inputs, so that a blessed text cannot be a wrong one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler.kernels
import compiler.ops  # noqa: F401
from compiler.ir.graph import Graph
from compiler.ir.interp import interpret
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.ir.scalar import Array
from passes.base import PassManager, all_passes, parse_pass

CASES = sorted((Path(__file__).parent / "passes").glob("*.ir"))
ARROW = "=>\n"


def feeds(graph: Graph) -> dict[str, Array]:
    """Random inputs; symbolic dims become 3."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for value in graph.inputs:
        shape = tuple(d if isinstance(d, int) else 3 for d in value.type.shape)
        found[value.name] = (rng.standard_normal(shape) * 3).astype(value.type.dtype.numpy)
    return found


def check_same(before: Graph, after: Graph, tolerance: float = 1e-6) -> None:
    """Both graphs give the same outputs, to tolerance of their scale."""
    given = feeds(before)
    expected, got = interpret(before, given), interpret(after, given)
    assert list(expected) == list(got)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        scale = max(1.0, float(np.abs(array.astype(np.float64)).max(initial=0)))
        np.testing.assert_allclose(got[name].astype(np.float64), array.astype(np.float64), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_text(path: Path, bless: bool) -> None:
    head, before_text = path.read_text().partition("\n")[::2]
    before_text, _, after_text = before_text.partition(ARROW)
    before = parse_graph(before_text)
    steps = tuple(parse_pass(text) for text in head.removeprefix("passes: ").split("; "))
    after, reports = PassManager(steps, verify=True).run(before)
    printed = print_graph(after)
    check_same(before, after)
    assert any(report.changed for report in reports) == (printed != print_graph(before))
    if bless:
        path.write_text(f"{head}\n{before_text}{ARROW}{printed}")
    else:
        assert printed == after_text


def test_every_pass_has_a_text_test() -> None:
    tested = {parse_pass(text).name for path in CASES for text in path.read_text().partition("\n")[0].removeprefix("passes: ").split("; ")}
    assert tested == set(all_passes())
