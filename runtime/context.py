"""What one running inference needs for itself: its activations' memory and its table of pointers."""

from __future__ import annotations

import ctypes

import numpy as np

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector."""

FIRST_TENSOR = 2
"""The slot of the first input; the arena and the weights stand before, the outputs after the inputs."""


class Context:
    """An arena and the slots that generated code finds everything through. Used by one run at a time."""

    def __init__(self, arena_bytes: int, weights_address: int, tensors: int) -> None:
        self._arena = np.empty(arena_bytes + ALIGNMENT, np.uint8)
        start = self._arena.ctypes.data
        self.slots = (ctypes.c_void_p * (FIRST_TENSOR + tensors))(start + -start % ALIGNMENT, weights_address)
        self.address = ctypes.addressof(self.slots)
