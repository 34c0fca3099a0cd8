"""Texts in memory: what an element of a string tensor refers to.

The *texts* of a run are 64-bit words. A record is a length in bytes, the UTF-8 bytes, and zeros up to a word's end at least eight bytes past
them, so that code may read and write texts by words. An element of a string tensor is the number of the word that its record begins at. The
record of the empty text begins at word 0, which makes it what elements of zeros are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

WORD_BYTES = 8
STRINGS = "str"
"""The name of the element type of strings, as which numpy has objects."""


class Records:
    """Records one after another from word ``first`` on, which are to follow those that are there already; equal texts are there once."""

    def __init__(self, first: int = 0) -> None:
        self.words = first
        self._parts: list[bytes] = []
        self._places: dict[str | bytes, int] = {}

    def place(self, text: str | bytes) -> int:
        """The word that the record of a text, given as it is or as UTF-8, begins at; it is added where there is none yet."""
        found = self._places.get(text)
        if found is None:
            found = self._places[text] = self.words
            data = text.encode() if isinstance(text, str) else text
            zeros = -len(data) % WORD_BYTES + WORD_BYTES
            self._parts.append(len(data).to_bytes(WORD_BYTES, "little") + data + bytes(zeros))
            self.words += (WORD_BYTES + len(data) + zeros) // WORD_BYTES
        return found

    def places(self, texts: Array) -> Array:
        """``place`` of every element of an array of objects."""
        found: Array = np.fromiter(map(self.place, texts.reshape(-1).tolist()), np.int64, texts.size)
        return found.reshape(texts.shape)

    def data(self) -> bytes:
        """The records."""
        return b"".join(self._parts)


def encoded(name: str, value: Any, where: str) -> Array:
    """Strings given for input ``name``, as an array of the bytes of their UTF-8.

    Takes a string or nested lists of strings, and numpy's arrays of strings, of bytes that are UTF-8, and of objects that are either.
    Raises UserError for anything else.
    """
    hint = "pass strings: a numpy array of them, or a list"
    array = value if isinstance(value, np.ndarray) else _objects(name, value, where)
    if array.dtype.kind not in "OUST":
        raise UserError(f"input {name} is {array.dtype}; the model takes strings", where=where, hint=hint)
    found: Array = np.empty(array.size, object)
    for position, item in enumerate(array.reshape(-1).tolist()):
        if not isinstance(item, (str, bytes)):
            raise UserError(f"element {position} of input {name} is of type {type(item).__name__}, not str", where=where, hint=hint)
        try:
            found[position] = item.encode() if isinstance(item, str) else item.decode().encode()
        except UnicodeError as error:
            what = f"element {position} of input {name} is no text: {error}"
            raise UserError(what, where=where, hint="pass text that Unicode has, bytes as UTF-8") from error
    return found.reshape(array.shape)


def _objects(name: str, value: Any, where: str) -> Array:
    """Lists as an array: not of numpy's own strings, which lose zeros at their end."""
    try:
        return np.array(value, object)
    except (ValueError, TypeError) as error:
        raise UserError(f"input {name} is no array: {error}", where=where, hint="pass a numpy array, or a list") from error


def decoded(places: Array, read: Callable[[int], bytes]) -> Array:
    """The strings at places as an array of objects; ``read`` gives the bytes of the record at a word."""
    found: Array = np.empty(places.size, object)
    texts = {place: read(place).decode() for place in set(places.reshape(-1).tolist())}
    found[:] = [texts[place] for place in places.reshape(-1).tolist()]
    return found.reshape(places.shape)
