"""A third of the onnx package's own cases (``make conformance`` runs all), and the harness that runs them."""

from __future__ import annotations

import os
import time

from tests.conformance import workers
from tests.conformance.cases import PASSED, Case, all_cases, share
from tests.conformance.expected import Entry, blessed, read_list, surprises


def test_a_third_of_the_cases_is_as_listed() -> None:
    cases = all_cases()
    names = share(list(cases), 3)
    results = workers.run_cases(cases, names, len(os.sched_getaffinity(0)))
    assert list(surprises(results, read_list(), complete=False)) == []


class Scripted(Case):
    """A case that does what its name says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self) -> str:
        if self.name == "crash":
            os._exit(3)
        if self.name == "hang":
            time.sleep(60)
        if self.name == "raise":
            raise KeyError(self.name)
        return PASSED


def test_one_bad_case_costs_only_itself(monkeypatch) -> None:
    monkeypatch.setattr(workers, "TIMEOUT_S", 0.5)
    names = ["first", "crash", "hang", "raise", "last"]
    got = workers.run_cases({name: Scripted(name) for name in names}, names, 1)
    assert got == {
        "first": PASSED,
        "crash": "crashed: exit status 3",
        "hang": "timed out: after 0 s",
        "raise": "error: KeyError: 'raise'",
        "last": PASSED,
    }


RESULTS = {"test_a": PASSED, "test_b_1": "refused: no", "test_b_2": "refused: no", "test_c": "error: KeyError", "test_d": "differs: by 1"}


def test_the_list_says_what_is_not_as_expected() -> None:
    entries = [Entry("test_a", "old"), Entry("test_b*", "known"), Entry("test_c", "known"), Entry("test_e", "gone")]
    assert list(surprises(RESULTS, entries, complete=True)) == [
        "test_a passes: remove 'test_a' from expected_failures.txt",
        "test_c error: KeyError",
        "test_d differs: by 1",
        "no case is called 'test_e': remove it from expected_failures.txt",
    ]


def test_a_case_of_random_numbers_may_pass() -> None:
    entries = [Entry("test_[ab]*", "random: seeds"), Entry("test_[cd]", "known")]
    assert list(surprises(RESULTS, entries, complete=True)) == ["test_c error: KeyError"]
    assert blessed(RESULTS, entries) == sorted(entries, key=lambda entry: entry.pattern)


def test_blessing_keeps_reasons_and_drops_what_passes() -> None:
    entries = [Entry("test_b_*", "known"), Entry("test_[ad]", "half"), Entry("test_e", "gone")]
    assert blessed(RESULTS, entries) == [Entry("test_b_*", "known"), Entry("test_d", "half")]
    assert list(surprises(RESULTS | {"test_c": PASSED}, blessed(RESULTS, entries), complete=True)) == []
