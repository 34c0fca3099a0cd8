"""The compile cache: artefacts in the user's cache folder, named by a hash of everything they depend on.

Files appear whole (temporary name, rename) and are checked when mapped, so processes need no locks: the worst that can happen is that two
compile the same model. The least recently used files go when the folder grows past its limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.artifact import TEMPORARY_SUFFIX
from runtime.cpus import cpu_description

FOLDER_VARIABLE = "TENSORSMITH_CACHE_DIR"
"""The environment variable that names another cache folder."""
LIMIT_BYTES = 2 << 30

_SUFFIX = ".tsm"
_LEFTOVER_SECONDS = 3600
_PROJECT = Path(__file__).resolve().parent.parent
_SOURCES = ("backends", "compiler", "frontend", "passes", "runtime")
_LIBRARIES = ("llvmlite", "onnx")
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
_LOCATION = re.compile(rb"\x0a\x08location\x12")
"""In protobuf, a StringStringEntryProto with the key ``location`` up to its value's length: how ONNX names an external data file."""


@dataclass(frozen=True)
class Cache:
    """A folder of artefacts, kept below ``limit_bytes``."""

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def find(self, key: str) -> Path | None:
        """The file of that key, marked as used now; None where there is none."""
        path = self.path(key)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def path(self, key: str) -> Path:
        """Where the file of that key belongs."""
        return self.folder / (key + _SUFFIX)

    def shrink(self, keep: str) -> None:
        """Remove the least recently used files until the rest fit the limit; ``keep`` is the key of one that stays."""
        self._remove_leftovers()
        files = []
        for path in self.folder.glob("*" + _SUFFIX):
            try:
                status = path.stat()
            except OSError:
                continue  # another process removed it
            files.append((path == self.path(keep), status.st_mtime_ns, status.st_size, path))
        total = 0
        for kept, _, size, path in sorted(files, reverse=True):
            total += size
            if total > self.limit_bytes and not kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _remove_leftovers(self) -> None:
        """Remove what killed processes had begun to write."""
        for path in self.folder.glob("*" + TEMPORARY_SUFFIX):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()


def user_cache() -> Cache | None:
    """The user's cache, made when it is not there; None where its folder cannot be written."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named)
    else:
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("tensorsmith"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return Cache(folder) if os.access(folder, os.W_OK) else None


def key(model: bytes, folder: Path, options: str) -> str:
    """The key of a model compiled with these options by this compiler; ``folder`` holds its external data."""
    hasher = hashlib.sha256(model)
    for name in sorted(_external_files(model)):
        _add_file(hasher, folder, name)
    for part in (options, _compiler_fingerprint()):
        hasher.update(b"\0" + part.encode())
    return hasher.hexdigest()


def native_fingerprint() -> str:
    """A text that is the same on machines for which native code is the same, found without LLVM."""
    fields = cpu_description()
    return "|".join([platform.machine(), *(fields.get(name, "") for name in _CPU_FIELDS)])


def _external_files(model: bytes) -> set[str]:
    """Names that look like external data files, and perhaps some that are not."""
    names = set()
    for match in _LOCATION.finditer(model):
        size = shift = 0
        for at in range(match.end(), len(model)):
            size |= (model[at] & 0x7F) << shift
            shift += 7
            if not model[at] & 0x80:
                names.add(model[at + 1 : at + 1 + size].decode(errors="replace"))
                break
    return names


def _add_file(hasher: hashlib._Hash, folder: Path, name: str) -> None:
    path = folder / name
    hasher.update(b"\0" + name.encode() + b"\0")
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        if inside and path.is_file():
            with path.open("rb") as file:
                hasher.update(hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError):
        pass  # the import says what is wrong with such a name


def _compiler_fingerprint() -> str:
    """A hash of our sources and of which LLVM and ONNX libraries are installed."""
    hasher = hashlib.sha256()
    for package in _SOURCES:
        for path in sorted((_PROJECT / package).rglob("*.py")):
            hasher.update(str(path.relative_to(_PROJECT)).encode() + b"\0" + path.read_bytes())
    for library in _LIBRARIES:
        spec = importlib.util.find_spec(library)
        if spec is not None and spec.origin is not None:
            hasher.update(f"{spec.origin} {Path(spec.origin).stat().st_mtime_ns}".encode())
    return hasher.hexdigest()
