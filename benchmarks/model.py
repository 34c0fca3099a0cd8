"""One model on this machine: time, speed, share of the measured peak, and the same for each kernel beside its roofline.

    python -m benchmarks.model [MODEL] [--threads 1]

MODEL is an ONNX file, the name of a zoo model, or ``mobilenet_v2`` (the default), which is built here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import tensorsmith as ts
from benchmarks.engines import repeat
from benchmarks.models import load
from benchmarks.peak import fma_gflops, read_gbytes


def main(
    model: Annotated[str, typer.Argument()] = "mobilenet_v2",
    threads: Annotated[int, typer.Option()] = 1,
    seconds: Annotated[float, typer.Option(help="How long to time whole runs.")] = 3.0,
) -> None:
    """Time MODEL as a whole and by kernel."""
    proto, feeds = load(model)
    start = time.perf_counter()
    module = ts.compile(proto, threads=threads, input_shapes={name: array.shape for name, array in feeds.items()}, cache=False)
    compile_s = time.perf_counter() - start
    # Before and after, and the better of both: the machine's clock may have been low while one was taken.
    peaks = [fma_gflops(threads)]
    times = repeat(lambda: module.run(feeds), seconds)
    peaks.append(fma_gflops(threads))
    peak, bandwidth = max(peaks), read_gbytes(threads)
    profile = module.profile(feeds, peak_gflops=peak / threads)
    gflop = sum(row.flops for row in profile.rows) / 1e9
    best, middle = min(times), sorted(times)[len(times) // 2]
    console = Console(width=200)
    console.print(f"{model}, {threads} thread{'s' if threads > 1 else ''}, compiled in {compile_s:.2f} s")
    console.print(f"fastest {best * 1e3:.3f} ms, median {middle * 1e3:.3f} ms over {len(times)} runs")
    speed = gflop / best
    console.print(f"{gflop:.3f} GFLOP, {speed:.1f} GFLOP/s, {100 * speed / peak:.1f} % of the measured peak {peak:.1f}; memory {bandwidth:.1f} GB/s")

    table = Table("kernel", "family", "µs", "% time", "GFLOP/s", "% peak", "FLOP/byte", "% roof", "schedule")
    by_family: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in profile.rows:
        # The roof is the slower of computing at the peak and reading from memory; data still in a cache can be faster than that.
        roof_us = max(row.flops / peak, row.nbytes / bandwidth) / 1e3
        intensity = row.flops / row.nbytes if row.nbytes else 0.0
        by_family[row.family][0] += row.us
        by_family[row.family][1] += row.flops
        share, roof = 100 * row.us / profile.total_us, 100 * roof_us / row.us if row.us else 0.0
        cells = [f"{row.us:.1f}", f"{share:.1f}", f"{row.gflops:.1f}", f"{row.percent_of_peak:.0f}", f"{intensity:.1f}", f"{roof:.0f}"]
        table.add_row(row.name, row.family, *cells, row.schedule)
    console.print(table)
    families = Table("family", "µs", "% time", "GFLOP/s", "% peak")
    for family, (us, flops) in sorted(by_family.items(), key=lambda item: -item[1][0]):
        gflops = flops / us / 1e3 if us else 0.0
        families.add_row(family, f"{us:.1f}", f"{100 * us / profile.total_us:.1f}", f"{gflops:.1f}", f"{100 * gflops / peak:.0f}")
    console.print(families)


if __name__ == "__main__":
    typer.run(main)
