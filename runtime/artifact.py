"""The artefact: a compiled model in one file, which is mapped, not read, and needs no compiler.

    offset 0      header, 64 bytes, little-endian: magic 8s, format version u32, zero u32, manifest bytes u64, file bytes u64, sha256 of the manifest
    then          manifest: JSON (ASCII), padded with spaces to the next multiple of PAGE
    then          code: a flat image, padded with zeros to a multiple of PAGE
    then          weights: to the end of the file

Every byte is covered by a check: the header's fields by their values, manifest, code and weights by a sha256. The checks find damage, not
malice: an artefact is machine code, so load only those you would run as a program.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import mmap
import os
import platform
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from compiler.errors import ArtifactError, UserError
from runtime.cpus import missing_flags

MAGIC = b"TSMITH\r\n"
FORMAT_VERSION = 4
"""Changes with the file's layout, the ABI of the code (entry points, slots) and the layout of the worker pool's block."""
PAGE = 4096
TEMPORARY_SUFFIX = ".tmp"
"""Of files that are still being written, or whose writer was killed."""

_HEADER = struct.Struct("<8sIIQQ32s")
_RECOMPILE = "compile the model again"

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: dtype is numpy's name of it (``bfloat16`` included), or ``str``; a symbolic dim is its name, or an expression of names.

    A sequence has the dtype ``seq(float32)``, an optional value ``optional(…)``; ``shape`` is that of the tensor, or of the elements as far as
    they agree (``?`` where dims differ, ``...`` for any shape), and ``tensors`` are what code sees in its place (``runtime/containers.py``).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    tensors: tuple[TensorInfo, ...] = ()

    @property
    def is_optional(self) -> bool:
        """Whether it may be absent."""
        return self.dtype.startswith("optional(")

    @property
    def is_sequence(self) -> bool:
        """Whether it is a list of arrays."""
        return "seq(" in self.dtype

    @property
    def elements(self) -> str:
        """numpy's name of the type of its elements."""
        return self.tensors[int(self.is_optional)].dtype if self.tensors else self.dtype

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class KernelInfo:
    """One kernel call, in the order of the program; flops and nbytes (read and written) of one call, or the symbols that hold them.

    ``divisions`` are the nodes whose integer divisors it checks.
    """

    name: str
    family: str
    schedule: str
    flops: int | str
    nbytes: int | str
    divisions: tuple[str, ...] = ()


@dataclass(frozen=True)
class PassInfo:
    """What one pass did when the model was compiled: wall-clock ``seconds``, nodes of the graph before and after, and what it says of it."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """Where things lie in the array that a run and its caller share, in 64-bit words; compiler/ir/program.py says what they are.

    ``symbols`` are the names of the values that follow the status; the first ``inputs`` of them are sizes of inputs. ``outputs`` is where
    the dims of each output begin.
    """

    words: int
    symbols: tuple[str, ...]
    inputs: int
    arena: int
    scratch: int
    texts: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Texts:
    """What the texts of a run begin with: ``nbytes`` from ``offset`` of the weights on; they are in dynamic buffer number ``buffer``."""

    buffer: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """What the runtime must know of a compiled model.

    Sizes that depend on the shapes of inputs are in the ``state``, once ``ts_prepare`` has worked them out; arena and scratch are None here then.
    ``arena_peak`` is the kernel that runs when the most of the arena is needed. ``dynamic`` buffers grow as a run asks for them; ``results`` are
    those that hold an output whose shape depends on data, or None. ``checks`` are the messages of what a run verifies; they may name ``{low}``,
    ``{value}`` and ``{high}``. ``passes`` is the compilation's report. ``texts`` is None where there are no strings.

    ``machine`` (as ``platform.machine`` says it) and ``cpu_flags`` (as /proc/cpuinfo does) are what the code needs to run. ``threads`` is how many
    workers a run uses by default; None: the CPUs available. ``entries`` are byte offsets into the code. ``peak_flops`` is the work
    of one round of ``ts_peak``. Each worker has ``scratch_bytes`` of its own behind the arena.
    """

    name: str
    target: str
    machine: str
    cpu_flags: tuple[str, ...]
    threads: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    kernels: tuple[KernelInfo, ...]
    arena_bytes: int | None
    arena_bound_bytes: int | None
    arena_peak: str
    scratch_bytes: int | None
    entries: dict[str, int]
    peak_flops: int
    state: State
    dynamic: int = 0
    results: tuple[int | None, ...] = ()
    checks: tuple[str, ...] = ()
    passes: tuple[PassInfo, ...] = ()
    texts: Texts | None = None


@dataclass(frozen=True)
class _Section:
    size: int
    sha256: bytes


def _section(fields: dict[str, Any]) -> _Section:
    return _Section(int(fields["size"]), bytes.fromhex(fields["sha256"]))


def write(path: Path, manifest: Manifest, code: bytes, weights: Sequence[tuple[int, Array]], weights_bytes: int) -> None:
    """Write an artefact; ``weights`` are (byte offset, array). The file appears whole or not at all. Raises UserError where it cannot."""
    code += bytes(-len(code) % PAGE)
    hasher = hashlib.sha256()
    for piece in _blob(weights, weights_bytes):
        hasher.update(piece)
    sections = {
        "code": {"size": len(code), "sha256": hashlib.sha256(code).hexdigest()},
        "weights": {"size": weights_bytes, "sha256": hasher.hexdigest()},
    }
    text = json.dumps({"manifest": asdict(manifest), "sections": sections}, separators=(",", ":")).encode("ascii")
    text += b" " * (-(_HEADER.size + len(text)) % PAGE)
    total = _HEADER.size + len(text) + len(code) + weights_bytes
    with replacing(path) as file:
        file.write(_HEADER.pack(MAGIC, FORMAT_VERSION, 0, len(text), total, hashlib.sha256(text).digest()))
        file.write(text)
        file.write(code)
        for piece in _blob(weights, weights_bytes):
            file.write(piece)


def _blob(weights: Sequence[tuple[int, Array]], weights_bytes: int) -> Iterator[bytes | memoryview]:
    """The weights section, piece by piece, gaps filled with zeros."""
    at = 0
    for offset, array in sorted(weights, key=lambda item: item[0]):
        yield bytes(offset - at)
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        at = offset + array.nbytes
    yield bytes(weights_bytes - at)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes path's place when all went well. Raises UserError where the folder cannot be written."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        _check_replaceable(path)
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the file: {error.strerror or error}", where=str(path), hint="name a place that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check_replaceable(path: Path) -> None:
    """Raises OSError for a folder, a device or a pipe: a file must not take its place."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "what has that name now is not a file")


def file_path(path: str | os.PathLike[str]) -> Path:
    """path as a Path. Raises UserError for what cannot name a file."""
    try:
        named = Path(path)
    except TypeError as error:
        raise UserError(f"the path is a {type(path).__name__}", where="path", hint="give a str or a Path") from error
    if not named.name or "\0" in named.name:
        raise UserError(f"{str(path)!r} does not name a file", where="path", hint="give the path of a file")
    return named


class Artifact:
    """An artefact in memory: weights mapped from the file and shared between processes, code mapped executable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map and check a file.

        Raises UserError for no path, ArtifactError for a file that is missing, damaged, of another format version, or made for another CPU.
        """
        named = file_path(path)
        self._where = str(named)
        try:
            with named.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < _HEADER.size:
                    raise self._error(f"the file has {self.size} bytes, too few for an artefact", "give a file written by save() or 'compile -o'")
                self._file = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
                manifest_bytes = self._check_header()
                sections = self._read_manifest(manifest_bytes)
                code_at = _HEADER.size + manifest_bytes
                weights_at = code_at + sections["code"].size
                self._check(code_at, sections["code"], "code")
                self._check(weights_at, sections["weights"], "weights")
                if weights_at + sections["weights"].size != self.size:
                    raise self._error("the sections do not fill the file", _RECOMPILE)
                self.code = _map_code(file.fileno(), code_at, sections["code"].size)
        except OSError as error:
            raise self._error(f"cannot read the file: {error.strerror or error}", "check the path and its permissions") from error
        self.code_bytes, self.weights_bytes = sections["code"].size, sections["weights"].size
        self.weights_address = _address(self._file) + weights_at
        self._code_address = _address(self.code)
        if any(not 0 <= offset < self.code_bytes for offset in self.manifest.entries.values()):
            raise self._error("an entry point lies outside the code", _RECOMPILE)

    def entry(self, name: str) -> int:
        """The address of an entry point. Raises ArtifactError where there is none of that name."""
        offset = self.manifest.entries.get(name)
        if offset is None:
            raise self._error(f"the code has no entry point {name}", _RECOMPILE)
        return self._code_address + offset

    def save(self, path: Path) -> None:
        """Write a copy. Raises UserError where it cannot."""
        with replacing(path) as file:
            file.write(self._file)

    def _error(self, what: str, hint: str) -> ArtifactError:
        return ArtifactError(what, where=self._where, hint=hint)

    def _check_header(self) -> int:
        magic, version, zero, manifest_bytes, total, digest = _HEADER.unpack_from(self._file)
        if magic != MAGIC:
            raise self._error("this is not a compiled model", "give a file written by save() or 'compile -o'")
        if version != FORMAT_VERSION:
            raise self._error(
                f"the artefact has format version {version}; this Tensorsmith reads version {FORMAT_VERSION}",
                f"{_RECOMPILE}, or install the Tensorsmith that wrote it",
            )
        if total != self.size:
            what = f"the file has {self.size} bytes where its header says {total}: it is cut off or damaged"
            raise self._error(what, f"copy it again, or {_RECOMPILE}")
        end = _HEADER.size + manifest_bytes
        if zero != 0 or end > self.size or end % PAGE:
            raise self._error("the header is damaged", f"copy it again, or {_RECOMPILE}")
        self._compare(_HEADER.size, manifest_bytes, digest, "manifest")
        return int(manifest_bytes)

    def _read_manifest(self, size: int) -> dict[str, _Section]:
        try:
            document = json.loads(self._file[_HEADER.size : _HEADER.size + size])
            self.manifest = _manifest(document["manifest"])
            sections = {name: _section(document["sections"][name]) for name in ("code", "weights")}
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(f"the manifest cannot be understood: {error!r}", _RECOMPILE) from error
        machine, here = self.manifest.machine, platform.machine()
        missing = missing_flags(self.manifest.cpu_flags) if machine == here else []
        if machine != here or missing:
            lacking = f" has no {', '.join(missing)}" if missing else f" is {here}"
            raise self._error(
                f"the artefact was made for target {self.manifest.target} ({machine}), but this machine's CPU{lacking}",
                f"{_RECOMPILE} on this machine or for a target it can run",
            )
        return sections

    def _check(self, offset: int, section: _Section, name: str) -> None:
        if section.size < 0 or offset + section.size > self.size:
            raise self._error(f"the {name} section reaches past the end of the file", _RECOMPILE)
        self._compare(offset, section.size, section.sha256, name)

    def _compare(self, offset: int, size: int, digest: bytes, name: str) -> None:
        with memoryview(self._file) as view, view[offset : offset + size] as part:
            if hashlib.sha256(part).digest() != digest:
                raise self._error(f"the {name} does not match its checksum: the file is damaged", f"copy it again, or {_RECOMPILE}")


def _manifest(fields: dict[str, Any]) -> Manifest:
    return Manifest(
        **fields
        | {
            "cpu_flags": tuple(fields["cpu_flags"]),
            "inputs": tuple(_tensor_info(item) for item in fields["inputs"]),
            "outputs": tuple(_tensor_info(item) for item in fields["outputs"]),
            "kernels": tuple(_kernel_info(item) for item in fields["kernels"]),
            "state": _state(fields["state"]),
            "results": tuple(fields["results"]),
            "checks": tuple(fields["checks"]),
            "passes": tuple(PassInfo(**item | {"notes": tuple(item["notes"])}) for item in fields["passes"]),
            "texts": None if fields["texts"] is None else Texts(**fields["texts"]),
        }
    )


def _state(fields: dict[str, Any]) -> State:
    return State(**fields | {"symbols": tuple(fields["symbols"]), "outputs": tuple(fields["outputs"])})


def _kernel_info(fields: dict[str, Any]) -> KernelInfo:
    return KernelInfo(**fields | {"divisions": tuple(fields["divisions"])})


def _tensor_info(fields: dict[str, Any]) -> TensorInfo:
    return TensorInfo(**fields | {"shape": tuple(fields["shape"]), "tensors": tuple(map(_tensor_info, fields["tensors"]))})


def tensors_of(infos: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The tensors that code sees, in order."""
    return tuple(tensor for info in infos for tensor in info.tensors or (info,))


def _map_code(descriptor: int, offset: int, size: int) -> mmap.mmap:
    """The code section, readable and executable."""
    try:
        return mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC, offset=offset)
    except PermissionError:
        # A file system mounted noexec: the code is copied to memory of our own, writable first and executable afterwards.
        copy = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        copy.write(os.pread(descriptor, size, offset))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(_address(copy)), ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_EXEC):
            raise OSError(ctypes.get_errno(), "the system forbids executable memory") from None
        return copy


def _address(mapping: mmap.mmap) -> int:
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)
