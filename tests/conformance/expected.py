"""The list of cases that are known to fail: ``NAME: REASON`` a line, where NAME may be a pattern with ``*``.

An entry whose case passes is out of date, unless its reason starts with ``random: ``: such a case compares random numbers, and may pass by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from textwrap import shorten

from tests.conformance.cases import PASSED

LIST = Path(__file__).with_name("expected_failures.txt")
LISTABLE = ("refused: ", "differs: ")
"""Results that may be listed; an error other than a refusal, a crash or a hang may not."""
_REASON_LENGTH = 160


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    pattern: str
    reason: str

    @property
    def by_chance(self) -> bool:
        """Whether its cases may also pass."""
        return self.reason.startswith("random: ")

    def matches(self, name: str) -> bool:
        return fnmatchcase(name, self.pattern)


def read_list(path: Path = LIST) -> list[Entry]:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [Entry(pattern.strip(), reason.strip()) for pattern, _, reason in (line.partition(":") for line in lines)]


def surprises(results: Mapping[str, str], entries: list[Entry], *, complete: bool) -> Iterator[str]:
    """What differs from the list, a line each; ``complete``: results hold every case there is, so that an entry without a case is one too."""
    for name, result in results.items():
        listed = next((entry for entry in entries if entry.matches(name)), None)
        if result == PASSED and listed is not None and not listed.by_chance:
            yield f"{name} passes: remove {listed.pattern!r} from {LIST.name}"
        elif result != PASSED and (listed is None or not result.startswith(LISTABLE)):
            yield f"{name} {result}"
    for entry in entries if complete else ():
        if not any(entry.matches(name) for name in results):
            yield f"no case is called {entry.pattern!r}: remove it from {LIST.name}"


def blessed(results: Mapping[str, str], entries: list[Entry]) -> list[Entry]:
    """The list that the results of all cases fit.

    Entries whose cases all fail stay. A failing case without one gets its own, with the reason of a pattern that held it, or else what it said.
    """
    kept = []
    for entry in entries:
        matched = [result for name, result in results.items() if entry.matches(name)]
        if matched and (entry.by_chance or PASSED not in matched):
            kept.append(entry)
    made = []
    for name, result in results.items():
        if result.startswith(LISTABLE) and not any(entry.matches(name) for entry in kept):
            reason = next((entry.reason for entry in entries if entry.matches(name)), _reason(result))
            made.append(Entry(name, reason))
    return sorted([*kept, *made], key=lambda entry: entry.pattern)


def _reason(result: str) -> str:
    """What a case said, without the name of the node."""
    return shorten(re.sub(r", node [^:]*:", ":", result), _REASON_LENGTH, placeholder=" …")


def write_list(entries: list[Entry], path: Path = LIST) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")] if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in [*head, *(f"{entry.pattern}: {entry.reason}" for entry in entries)]))
