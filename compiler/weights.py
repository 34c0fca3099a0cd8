"""The weights blob of a program as it is being written."""

from __future__ import annotations

import numpy as np

from compiler.ir.scalar import Array
from compiler.ir.verify import ARENA_ALIGNMENT

_SAMPLE = 256
"""Bytes of weights by which those are told apart that cannot be the same."""


class Weights:
    """Arrays by their byte offset, in the order they were stored; ``nbytes`` are all of them."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, Array]] = []
        self.nbytes = 0
        self._alike: dict[tuple[int, bytes], list[tuple[int, Array]]] = {}

    def store(self, array: Array) -> int:
        """The offset of an array, which is appended where no other has the same bytes."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        alike = self._alike.setdefault((data.size, data[:: data.size // _SAMPLE + 1].tobytes()), [])
        for offset, other in alike:
            if np.array_equal(data, other):
                return offset
        offset = -(-self.nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        alike.append((offset, data))
        self.stored.append((offset, array))
        self.nbytes = offset + array.nbytes
        return offset
