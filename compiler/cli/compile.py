"""tensorsmith compile: an ONNX file to a compiled module."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compiler.cli.options import InputShapes, MemoryBudget, ModelFile, NoCache, OptLevel, TargetName, Threads, parse_bytes, parse_shapes
from compiler.errors import UserError
from runtime.artifact import file_path

Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; by default the model's name with .tsm.", show_default=False)]


def compile_command(
    model: ModelFile,
    output: Output = None,
    target: TargetName = "native",
    threads: Threads = None,
    opt_level: OptLevel = 3,
    input_shape: InputShapes = None,
    memory_budget: MemoryBudget = None,
    no_cache: NoCache = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compile anew; check the graph after every pass, and rewrites on random numbers.")] = False,
) -> None:
    """Compile an ONNX file to a module that runs without a compiler."""
    from compiler.driver import Options, compile_to

    destination = output or file_path(model).with_suffix(".tsm")
    if destination.resolve() == model.resolve():
        raise UserError("the module would take the model's place", where=str(model), hint="name another file with -o")
    options = Options.checked(target, threads, parse_shapes(input_shape), opt_level, parse_bytes(memory_budget), verify=verify)
    compile_to(model, destination, options, cache=not no_cache)
    typer.echo(f"{destination}: {destination.stat().st_size / 1e6:.2f} MB")
