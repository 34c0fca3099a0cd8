"""Passes as text: each file of tests/passes holds passes, a graph before, and the graph after; ``pytest --bless`` rewrites the latter.

Both graphs are also interpreted on random inputs, so that a blessed text cannot be a wrong one. Files whose names end in ``_left`` hold what a
pass nearly does something to; the names of their nodes say why it does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph
from compiler.pipeline import canonical_passes
from passes.base import PassManager, all_passes, parse_passes
from tests.graph_cases import check_same

FILES = sorted((Path(__file__).parent / "passes").glob("*.ir"))
LEFT = [path for path in FILES if path.stem.endswith("_left")]
CASES = [path for path in FILES if path not in LEFT]
ARROW = "=>\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_text(path: Path, bless: bool) -> None:
    head, before_text = path.read_text().partition("\n")[::2]
    before_text, _, after_text = before_text.partition(ARROW)
    before = parse_graph(before_text)
    steps = parse_passes(head.removeprefix("passes: "))
    after, reports = PassManager(steps, verify=True).run(before)
    printed = print_graph(after)
    check_same(before, after)
    assert any(report.changed for report in reports) == (printed != print_graph(before))
    again, reports = PassManager(steps, verify=True).run(after)
    assert (print_graph(again), any(report.changed for report in reports)) == (printed, False), "a pass changes what it has made itself"
    if bless:
        path.write_text(f"{head}\n{before_text}{ARROW}{printed}")
    else:
        assert printed == after_text


@pytest.mark.parametrize("path", LEFT, ids=lambda path: path.stem)
def test_left(path: Path) -> None:
    head, text = path.read_text().partition("\n")[::2]
    graph = parse_graph(text)
    after, reports = PassManager(parse_passes(head.removeprefix("passes: ")), verify=True).run(graph)
    assert print_graph(after) == print_graph(graph)
    assert not any(report.changed for report in reports)


def passes_of(paths: list[Path]) -> set[str]:
    return {step.name for path in paths for step in parse_passes(path.read_text().partition("\n")[0].removeprefix("passes: "))}


def test_every_pass_has_a_text_test() -> None:
    assert passes_of(CASES) == set(all_passes())


def test_every_pass_of_any_order_has_a_near_miss() -> None:
    assert passes_of(LEFT) == {step.name for step in canonical_passes(3)}
