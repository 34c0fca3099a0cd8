"""tensorsmith run: one inference on arrays from files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compiler.cli.options import InputFiles, InputShapes, ModuleFile, Threads, as_declared, open_module, parse_shapes, plain, read_inputs
from compiler.errors import UserError

if TYPE_CHECKING:
    from runtime.module import Array

OutputDir = Annotated[Path | None, typer.Option(help="Folder for the outputs: a .npy file each, .npz for a sequence.", show_default=False)]


def run_command(
    module: ModuleFile, inputs: InputFiles = None, output_dir: OutputDir = None, threads: Threads = None, input_shape: InputShapes = None
) -> None:
    """Run a model once and describe, or write, its outputs."""
    import numpy as np

    feeds = read_inputs(inputs)
    shapes = parse_shapes(input_shape)
    opened = open_module(module, threads, shapes)
    outputs = opened.run(as_declared(opened.inputs, feeds))
    for index, (info, (name, found)) in enumerate(zip(opened.outputs, outputs.items(), strict=True)):
        typer.echo(f"{info}{_summary(found)}")
        if output_dir is not None and found is not None:
            file = output_dir / file_name(name, index)
            try:
                output_dir.mkdir(parents=True, exist_ok=True)
                if isinstance(found, list):
                    np.savez(file.with_suffix(".npz"), *map(plain, found))
                else:
                    np.save(file, plain(found), allow_pickle=False)
            except OSError as error:
                raise UserError(f"cannot write: {error.strerror}", where=str(file), hint="name a folder that can be written") from error


def _summary(found: Array | list[Array] | None) -> str:
    """What an output is like."""
    if found is None:
        return ", absent"
    if isinstance(found, list):
        return "".join([f", {len(found)} elements", *(f"\n  {list(array.shape)}{_summary(array)}" for array in found)])
    array = found
    if not array.size:
        return ""
    if array.dtype.kind == "O":
        return f", the first {array.reshape(-1)[0]!r:.60}"
    numbers = array.astype(float)
    return f", from {numbers.min():.6g} to {numbers.max():.6g}, mean {numbers.mean():.6g}"


def file_name(name: str, index: int) -> str:
    """A file name for an output; one with characters that do not belong in file names is told from others by its number."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")
    return f"{safe}.npy" if safe == name and name else f"{index}_{safe}.npy"
