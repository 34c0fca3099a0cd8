"""tensorsmith profile: where an inference spends its time."""

from __future__ import annotations

from typing import Annotated

import typer

from compiler.cli.inspect import kernel_table
from compiler.cli.options import InputFiles, InputShapes, ModuleFile, Threads, console, open_module, parse_shapes, random_inputs, read_inputs


def profile_command(
    module: ModuleFile,
    inputs: InputFiles = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Inferences to take the median of.")] = 50,
    input_shape: InputShapes = None,
) -> None:
    """Time each kernel; inputs that are not given are random."""
    feeds, shapes = read_inputs(inputs), parse_shapes(input_shape)
    opened = open_module(module, threads, shapes)
    profile = opened.profile(random_inputs(opened.inputs, feeds), repeats)
    table = kernel_table("us", "GFLOP/s", "% of peak")
    for row in profile.rows:
        table.add_row(row.name, row.family, f"{row.us:.2f}", f"{row.gflops:.1f}", f"{row.percent_of_peak:.1f}", row.schedule)
    out = console()
    out.print(table)
    out.print(f"total {profile.total_us:.1f} us with {profile.workers} threads; peak {profile.peak_gflops:.1f} GFLOP/s")
