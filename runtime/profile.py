"""Where an inference spends its time: one row per kernel call."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class KernelProfile:
    """One kernel call: its median time in microseconds, its speed, and that as a share of the peak of all workers.

    ``flops`` and ``nbytes`` (read and written) are of one call; 0 where they depend on data.
    """

    name: str
    family: str
    schedule: str
    us: float
    gflops: float
    percent_of_peak: float
    flops: int
    nbytes: int


@dataclass(frozen=True)
class Profile:
    """Kernels in execution order; ``total_us`` is the median of whole inferences, ``peak_gflops`` that of all ``workers`` together."""

    rows: tuple[KernelProfile, ...]
    total_us: float
    workers: int
    peak_gflops: float

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows], default=0)
        lines = [f"{'kernel':{width}}  {'family':16}  {'us':>9}  {'GFLOP/s':>8}  {'% peak':>6}  schedule"]
        lines += [
            f"{row.name:{width}}  {row.family:16}  {row.us:9.2f}  {row.gflops:8.1f}  {row.percent_of_peak:6.1f}  {row.schedule}" for row in self.rows
        ]
        lines.append(f"{'total':{width}}  {'':16}  {self.total_us:9.2f}  with {self.workers} workers, peak {self.peak_gflops:.1f} GFLOP/s")
        return "\n".join(lines)


def measure(run: Callable[[int], object], kernels: int, repeats: int) -> tuple[list[float], float]:
    """Median microseconds of each kernel, all its calls in a run taken together, and of the whole.

    ``run`` takes the address of ``kernels + 2`` 64-bit words: it puts the cycle count when it begins and ends into the first two, and adds the
    cycles of each call to its kernel's. The cycle counter's rate is taken from the clock over all the repeats.
    """
    stamps = (ctypes.c_int64 * (kernels + 2))()
    address = ctypes.addressof(stamps)
    run(address)
    runs: list[list[int]] = []
    started = time.perf_counter_ns()
    for _ in range(repeats):
        ctypes.memset(address, 0, ctypes.sizeof(stamps))
        run(address)
        runs.append(list(stamps))
    elapsed_us = (time.perf_counter_ns() - started) / 1e3
    cycles = runs[-1][1] - runs[0][0]
    us_per_cycle = elapsed_us / cycles if cycles > 0 else 0.0
    each = [median(counts[k + 2] for counts in runs) * us_per_cycle for k in range(kernels)]
    return each, median(counts[1] - counts[0] for counts in runs) * us_per_cycle


def peak_gflops(rounds: Callable[[int], float], flops_per_round: int) -> float:
    """One core's multiply-add peak: the best of some bursts of about 0.2 ms, the first of which wake the vector units up."""
    burst = 20_000
    best_ns = None
    for _ in range(20):
        started = time.perf_counter_ns()
        rounds(burst)
        taken = time.perf_counter_ns() - started
        best_ns = taken if best_ns is None else min(best_ns, taken)
    return flops_per_round * burst / best_ns if best_ns else 0.0
