"""Options that several subcommands take, and what is made of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compiler.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.artifact import TensorInfo
    from runtime.module import Array, Module

_FILE_COLUMNS = 200

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

ModelFile = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
ModuleFile = Annotated[Path, typer.Argument(help="A compiled module (.tsm) or an ONNX file.", show_default=False)]
Threads = Annotated[int | None, typer.Option(help="Worker threads; by default the CPUs this process may use.", show_default=False)]
OptLevel = Annotated[int, typer.Option(help="0 (only what is needed to run) to 3.")]
TargetName = Annotated[str, typer.Option(help="'native' or a preset's name.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compile even what was compiled before.")]
InputShapes = Annotated[
    list[str] | None,
    typer.Option("--input-shape", help="name=1x3x224x224: the shape of an input with symbolic dims. Repeatable.", show_default=False),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(help="The most that a run may take beside weights, inputs and outputs: 1.5MB, 800kB, 2MiB or bytes.", show_default=False),
]
InputFiles = Annotated[
    list[str] | None,
    typer.Option("--input", help="name=file.npy: an input; name=file.npz: a sequence, an array an element. Repeatable.", show_default=False),
]


def _split(option: str, text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise UserError(f"cannot read {text!r}", where=option, hint=f"write it as {example}")
    return name, value


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """``name=1x3x224x224`` to shapes by name; ``name=`` is a scalar. Raises UserError for other text."""
    example = "name=1x3x224x224"
    shapes = {}
    for text in texts or ():
        name, dims = _split("--input-shape", text, example)
        parts = dims.replace(",", "x").split("x") if dims else []
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise UserError(f"cannot read {text!r}", where="--input-shape", hint=f"write it as {example}")
        shapes[name] = tuple(map(int, parts))
    return shapes


def parse_bytes(text: str | None) -> int | None:
    """``1.5MB``, ``800kB``, ``2MiB`` or a number of bytes. Raises UserError for other text."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(|B|kB|MB|GB|KiB|MiB|GiB)", text)
    if match is None:
        raise UserError(f"cannot read {text!r}", where="--memory-budget", hint="write it as 1.5MB, 800kB, 2MiB or a number of bytes")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def read_inputs(texts: Sequence[str] | None) -> dict[str, Any]:
    """``name=file.npy`` to arrays by name, ``name=file.npz`` to lists of them. Raises UserError for other text and for files of something else."""
    from zipfile import BadZipFile

    import numpy as np

    arrays: dict[str, Any] = {}
    for text in texts or ():
        name, file = _split("--input", text, "name=file.npy")
        try:
            found = np.load(file, allow_pickle=False)
            arrays[name] = found if isinstance(found, np.ndarray) else [found[key] for key in found.files]
        except OSError as error:
            raise UserError(f"cannot read the array: {error.strerror or error}", where=file, hint="give a file written by numpy.save") from error
        except (ValueError, EOFError, BadZipFile) as error:
            hint = (
                "give a file written by numpy.save, or numpy.savez for a sequence; strings as an array of dtype U: objects would be code that is run"
            )
            raise UserError("the file holds no array of numbers or strings", where=file, hint=hint) from error
    return arrays


def open_module(path: Path, threads: int | None, shapes: Mapping[str, Sequence[int]]) -> Module:
    """The module saved at path, or compiled from the model there. Raises UserError."""
    from compiler.driver import compile as compile_model
    from runtime.artifact import MAGIC
    from runtime.module import load

    try:
        with path.open("rb") as file:
            saved = path.suffix == ".tsm" or file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", where=str(path), hint="check the path") from error
    if not saved:
        return compile_model(path, threads=threads, input_shapes=shapes)
    if shapes:
        raise UserError("a compiled module has fixed shapes", where="--input-shape", hint="give the ONNX file, or leave the option out")
    return load(path, threads=threads)


def console(*, stderr: bool = False) -> Console:
    """Where tables are printed; text is taken as it is, and files and pipes get wide lines."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=None if stream.isatty() else _FILE_COLUMNS)


def plain(array: Array) -> Array:
    """An array of a type that .npy files can name: strings as numpy's own, the bytes of what numpy lacks."""
    if array.dtype.kind == "O":
        return array.astype(str)
    return array.view(f"V{array.itemsize}") if array.dtype.isbuiltin == 2 else array


def as_declared(infos: Sequence[TensorInfo], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, with plain bytes taken as what the model declares: .npy files do not name the types that numpy lacks (``bfloat16``, ``int4``)."""
    from runtime.module import numpy_dtype

    declared = {info.name: numpy_dtype(info.elements) for info in infos}

    def named(name: str, array: Any) -> Any:
        if isinstance(array, list):
            return [named(name, element) for element in array]
        nameless = array.dtype.kind == "V" and name in declared and declared[name].itemsize == array.itemsize
        return array.view(declared[name]) if nameless else array

    return {name: named(name, array) for name, array in given.items()}


def random_inputs(infos: Sequence[TensorInfo], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` and, for tensors that are not there, normal floats, empty strings, and zeros of other types (zero is a valid index)."""
    import numpy as np

    from runtime.module import numpy_dtype
    from runtime.texts import STRINGS

    random = np.random.default_rng(0)
    feeds = as_declared(infos, given)
    for info in infos:
        if info.name not in feeds and not info.tensors:
            shape = [dim for dim in info.shape if isinstance(dim, int)]
            if info.dtype == STRINGS:
                feeds[info.name] = np.full(shape, "", object)
                continue
            floats = info.dtype.startswith(("float", "bfloat"))
            feeds[info.name] = random.standard_normal(shape).astype(numpy_dtype(info.dtype)) if floats else np.zeros(shape, numpy_dtype(info.dtype))
    return feeds
