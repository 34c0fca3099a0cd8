"""Perfect hash tables of texts: at most one slot can hold a text, so that finding one takes one comparison.

The first hash of a text picks a *displacement*, which together with the hash picks the slot (hash and displace; Belazzougui, Botelho and
Dietzfelbinger, 2009). The hash goes over the words of a record (``runtime/texts.py``) and is what ``kernels/find_text.py`` computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.errors import UnsupportedForm

MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Odd numbers of 64 bits (those of SplitMix64; Steele, Lea and Flood, 2014): for every word, and for the end."""

FINISH = ((30, 1), (27, 2), (31, None))
"""What a hash goes through at the end, so that all its bits depend on all it was made of: how far it is shifted to be added to itself, and the
number of the multiplier that follows."""

MIX_BITS = 29
"""How far a product of a word is shifted and added to itself."""

_MASK = (1 << 64) - 1
_SEEDS = 8
_TRIES = 1 << 12
"""Displacements that are tried for a bucket before another seed is taken: with good hashes a few are enough."""
_WORD = 8


def text_hash(text: bytes, seed: int) -> int:
    """The hash of a text, of 64 bits: of its length and its words, the last one filled with zeros."""
    value = _mixed(seed ^ len(text))
    for start in range(0, len(text), _WORD):
        value = _mixed(value ^ int.from_bytes(text[start : start + _WORD], "little"))
    for shift, multiplier in FINISH:
        value ^= value >> shift
        value = value if multiplier is None else value * MULTIPLIERS[multiplier] & _MASK
    return value


def _mixed(value: int) -> int:
    product = value * MULTIPLIERS[0] & _MASK
    return product ^ product >> MIX_BITS


def slot_of(value: int, displacement: int, bits: int) -> int:
    """The slot, of ``1 << bits``, that a hash and a displacement pick."""
    return ((value ^ displacement) * MULTIPLIERS[1] & _MASK) >> 64 - bits


@dataclass(frozen=True)
class TextTable:
    """``displacements``, a power of two of them, and for each of ``1 << bits`` slots the number of the key in it, or None."""

    seed: int
    bits: int
    displacements: tuple[int, ...]
    slots: tuple[int | None, ...]


def text_table(keys: Sequence[str]) -> TextTable:
    """The table of keys, which are different. Raises UnsupportedForm where their hashes are no good, as they can be made to be."""
    for seed in range(_SEEDS):
        found = _table([text_hash(key.encode(), seed) for key in keys], seed)
        if found is not None:
            return found
    raise UnsupportedForm("its keys are made to have equal hashes")


def _table(hashes: Sequence[int], seed: int) -> TextTable | None:
    bits = max(1, (2 * len(hashes) - 1).bit_length())
    buckets: list[list[int]] = [[] for _ in range(1 << max(0, bits - 3))]
    for number, value in enumerate(hashes):
        buckets[value & len(buckets) - 1].append(number)
    slots: list[int | None] = [None] * (1 << bits)
    displacements = [0] * len(buckets)
    for bucket in sorted(range(len(buckets)), key=lambda b: -len(buckets[b])):
        for attempt in range(_TRIES):
            displacement = attempt * MULTIPLIERS[0] & _MASK
            places = [slot_of(hashes[number], displacement, bits) for number in buckets[bucket]]
            if len(set(places)) == len(places) and all(slots[place] is None for place in places):
                break
        else:
            return None
        displacements[bucket] = displacement
        for place, number in zip(places, buckets[bucket], strict=True):
            slots[place] = number
    return TextTable(seed, bits, tuple(displacements), tuple(slots))
