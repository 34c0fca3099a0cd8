"""``python -m tests.conformance``: run the cases, compare with the list of known failures, and say what differs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from tests.conformance.cases import PASSED, all_cases
from tests.conformance.expected import LIST, blessed, read_list, surprises, write_list
from tests.conformance.workers import run_cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name contains TEXT")
    parser.add_argument("-j", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one for each CPU)")
    parser.add_argument("-v", action="store_true", help="print what every case that does not pass says")
    parser.add_argument("--bless", action="store_true", help=f"write {LIST.name} anew from what fails; reasons are kept")
    options = parser.parse_args()
    cases = all_cases()
    names = [name for name in cases if options.k in name]
    start = time.perf_counter()
    results = run_cases(cases, names, options.j)
    complete = len(names) == len(cases)
    if options.bless and not complete:
        parser.error("--bless needs all cases: leave -k out")
    if options.bless:
        write_list(blessed(results, read_list()))
    if options.v:
        _print_lines(f"{name} {result}" for name, result in results.items() if result != PASSED)
    found = list(surprises(results, read_list(), complete=complete))
    _print_lines(found)
    counts = Counter(result.partition(":")[0] for result in results.values())
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    print(f"{len(results)} cases in {time.perf_counter() - start:.0f} s: {summary}; {len(found)} not as listed")
    return 1 if found else 0


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
