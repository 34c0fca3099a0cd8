"""Cases run in processes of their own, so that one that crashes or hangs costs only itself."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait

from tests.conformance.cases import Case

TIMEOUT_S = 60.0
_FORK = multiprocessing.get_context("fork")


def run_cases(cases: Mapping[str, Case], names: Sequence[str], jobs: int) -> dict[str, str]:
    """What each named case says. A bare error is ``error: …``; a process that dies is ``crashed: …``, one that hangs ``timed out: …``."""
    waiting, results = list(reversed(names)), dict[str, str]()
    workers = [_Worker(cases) for _ in range(min(jobs, len(names)))]
    try:
        while len(results) < len(names):
            for worker in workers:
                if worker.name is None and waiting:
                    worker.start(waiting.pop())
            busy = [worker for worker in workers if worker.name is not None]
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                outcome = worker.outcome(arrived=worker.pipe in ready)
                if outcome is not None:
                    results[worker.finished()] = outcome
    finally:
        for worker in workers:
            worker.stop()
    return {name: results[name] for name in names}


class _Worker:
    """A process that runs the cases it is told, one at a time."""

    def __init__(self, cases: Mapping[str, Case]) -> None:
        self._cases = cases
        self.name: str | None = None
        self._spawn()

    def _spawn(self) -> None:
        self.pipe, theirs = _FORK.Pipe()
        self._process = _FORK.Process(target=_serve, args=(theirs, self._cases), daemon=True)
        self._process.start()
        theirs.close()

    def start(self, name: str) -> None:
        self.name, self._deadline = name, time.monotonic() + TIMEOUT_S
        self.pipe.send(name)

    def outcome(self, *, arrived: bool) -> str | None:
        """What the case said, or how its process ended; None while it runs."""
        if arrived:
            try:
                return str(self.pipe.recv())
            except EOFError:
                self._process.join()
                return self._replace(f"crashed: exit status {self._process.exitcode}")
        return self._replace(f"timed out: after {TIMEOUT_S:.0f} s") if time.monotonic() > self._deadline else None

    def _replace(self, outcome: str) -> str:
        self.stop()
        self._spawn()
        return outcome

    def finished(self) -> str:
        """The name of the case that has said something; the worker is free again."""
        name, self.name = self.name, None
        assert name is not None
        return name

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, cases: Mapping[str, Case]) -> None:
    while True:
        try:
            name = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(cases[name].run())
        except Exception as error:  # noqa: BLE001 (whatever a case raises is its result)
            pipe.send(f"error: {type(error).__name__}: {' '.join(str(error).split())}")
