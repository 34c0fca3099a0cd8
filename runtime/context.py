"""What one running inference needs for itself: its activations' memory, its sizes, and its table of pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compiler.errors import STATUS_WORDS
from runtime.artifact import Artifact, tensors_of
from runtime.texts import WORD_BYTES, Records, decoded

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector."""

ARENA, WEIGHTS, STATE, ALLOC, FREE, FIRST_TENSOR = range(6)
"""The slots, with the first input's; the outputs follow the inputs, and two words for each dynamic buffer them."""

OUT_OF_MEMORY = 1 << 62
"""The status of a run for which there was not enough memory, and a size that no memory has; the first number reported is what it asked for."""

Array = np.ndarray[Any, np.dtype[Any]]

_libc = ctypes.CDLL(None)
_libc.free.argtypes = (ctypes.c_void_p,)
_libc.free.restype = None
_libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
_libc.aligned_alloc.restype = ctypes.c_void_p


class Context:
    """An arena, the state that generated code shares with its caller, and the slots it finds everything through. Used by one run at a time."""

    def __init__(self, artifact: Artifact, workers: int, prepare: Callable[[int], None]) -> None:
        manifest = artifact.manifest
        tensors = len(tensors_of(manifest.inputs)) + len(tensors_of(manifest.outputs))
        self._layout = manifest.state
        self._workers = workers
        self._prepare = prepare
        self._sizes: tuple[int, ...] | None = None
        self._dynamic = FIRST_TENSOR + tensors
        self._buffers = manifest.dynamic
        self.state = (ctypes.c_int64 * manifest.state.words)()
        self.slots = (ctypes.c_void_p * (self._dynamic + 2 * manifest.dynamic))()
        self.slots[WEIGHTS] = artifact.weights_address
        self.slots[STATE] = ctypes.addressof(self.state)
        self.slots[ALLOC] = ctypes.cast(_libc.aligned_alloc, ctypes.c_void_p).value
        self.slots[FREE] = ctypes.cast(_libc.free, ctypes.c_void_p).value
        self.address = ctypes.addressof(self.slots)
        self.arena_bytes = 0
        self._texts = manifest.texts
        self._constants = artifact.weights_address
        if manifest.arena_bytes is not None and manifest.scratch_bytes is not None:
            self._reserve(manifest.arena_bytes, manifest.scratch_bytes)

    def resize(self, sizes: tuple[int, ...]) -> None:
        """Be ready for inputs of these sizes, in the order of the state's symbols. Raises MemoryError where there is not enough."""
        if sizes == self._sizes:
            return
        self._sizes = None
        self.state[STATUS_WORDS : STATUS_WORDS + len(sizes)] = list(sizes)
        self._prepare(self.slots[STATE] or 0)
        arena, scratch = self.state[self._layout.arena], self.state[self._layout.scratch]
        if max(arena, scratch) >= OUT_OF_MEMORY:
            raise MemoryError("more than can be addressed")
        self._reserve(arena, scratch)
        self._sizes = sizes

    @property
    def status(self) -> int:
        """What went wrong in the run; 0: nothing."""
        return self.state[0]

    def take_status(self) -> list[int]:
        """The status and the three numbers reported with it, which are forgotten."""
        found = self.state[:STATUS_WORDS]
        self.state[0] = 0
        return found

    @property
    def amounts(self) -> dict[str, int]:
        """The value of every symbol that is known when a run begins."""
        values = self.state[STATUS_WORDS : STATUS_WORDS + len(self._layout.symbols)]
        return dict(zip(self._layout.symbols, values, strict=True))

    def shape(self, output: int, rank: int) -> tuple[int, ...]:
        """The shape of an output: once the sizes of the inputs are given, or where it depends on data, once the run is over."""
        at = self._layout.outputs[output]
        return tuple(self.state[at : at + rank])

    def result(self, buffer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A copy of what a dynamic buffer holds."""
        array: Array = np.empty(shape, dtype)
        address = self.slots[self._dynamic + 2 * buffer]
        if array.nbytes and address:
            ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return array

    def place(self, arrays: Sequence[Array]) -> list[Array]:
        """The inputs as code reads them: of texts, arrays of the bytes of each, the places where they are now among the texts of the run."""
        if self._texts is None:
            return list(arrays)
        records = Records(self._texts.nbytes // WORD_BYTES)
        found = [records.places(array) if array.dtype.kind == "O" else array for array in arrays]
        data, begin = records.data(), self._texts.nbytes
        self._grow_texts(begin + len(data))
        ctypes.memmove(self._texts_address + begin, data, len(data))
        self.state[self._layout.texts] = begin + len(data)
        return found

    def texts(self, places: Array) -> Array:
        """The strings at places, as objects."""
        base = self._texts_address
        return decoded(places, lambda place: ctypes.string_at(base + 8 * place + 8, ctypes.c_int64.from_address(base + 8 * place).value))

    @property
    def _texts_address(self) -> int:
        return self.slots[self._dynamic + 2 * self._texts.buffer] or 0 if self._texts is not None else 0

    def _grow_texts(self, nbytes: int) -> None:
        """Make the buffer of texts large enough; it begins with the constants. Raises MemoryError where it cannot be."""
        if self._texts is None:
            return
        slot = self._dynamic + 2 * self._texts.buffer
        if nbytes > (self.slots[slot + 1] or 0):
            size = -(-2 * nbytes // ALIGNMENT) * ALIGNMENT
            fresh = _libc.aligned_alloc(ALIGNMENT, size)
            if not fresh:
                raise MemoryError(f"{size} bytes of texts")
            ctypes.memmove(fresh, self._constants + self._texts.offset, self._texts.nbytes)
            _libc.free(self.slots[slot])
            self.slots[slot], self.slots[slot + 1] = fresh, size

    def _reserve(self, arena_bytes: int, scratch_bytes: int) -> None:
        wanted = max(0, arena_bytes) + self._workers * max(0, scratch_bytes)  # below 0 where dims are, which the run refuses
        if not self.slots[ARENA] or wanted > self.arena_bytes:
            self._arena = np.empty(wanted + ALIGNMENT, np.uint8)
            start = self._arena.ctypes.data
            self.slots[ARENA] = start + -start % ALIGNMENT
            self.arena_bytes = wanted

    def __del__(self, free: Callable[[int | None], None] = _libc.free) -> None:
        for buffer in range(getattr(self, "_buffers", 0)):
            free(self.slots[self._dynamic + 2 * buffer])
