"""Offsets in one arena for memory that is needed for a while."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from passes.analysis.liveness import Interval, aligned, max_live_bytes


def place(intervals: Sequence[Interval], effort: int) -> tuple[list[int], int]:
    """Offsets, multiples of 64, such that intervals that overlap in time do not in memory; and the bytes of arena that takes.

    First-fit in several orders, then in changes of the best one, then a sweep through time that goes back where it is stuck, until no arena
    of whole alignment units can be smaller or ``effort`` comparisons are spent (the result does not depend on the clock).
    """
    if not intervals:
        return [], 0
    units = [replace(interval, nbytes=aligned(interval.nbytes)) for interval in intervals]
    target = max_live_bytes(units)
    offsets = _by_first_fit(units, target, effort)
    if _arena(units, offsets) > target:
        offsets = _by_sweep(units, target, effort // 8) or offsets
    return offsets, _arena(units, offsets)


def _by_first_fit(intervals: Sequence[Interval], target: int, effort: int) -> list[int]:
    """Offsets by first-fit in the best order found.

    A change of an order places what lies too high, or something needed at the same time, just before another such interval: all places
    between are alike. What counts is how much lies above the target in all, so that mending one of many equal layers is progress
    (Joslin and Clements: Squeaky wheel optimization, 1999).
    """
    neighbours = [[j for j, other in enumerate(intervals) if j != i and other.overlaps(one)] for i, one in enumerate(intervals)]
    orders = [sorted(range(len(intervals)), key=lambda i: key(intervals[i])) for key in _ORDERS]
    tried = [(_first_fit(intervals, neighbours, order), order) for order in orders]
    best = min((offsets for offsets, _ in tried), key=lambda offsets: _arena(intervals, offsets))
    offsets, order = min(tried, key=lambda found: sum(_excess(intervals, found[0], target).values()))
    rng = random.Random(0)
    for _ in range(effort // (1 + sum(map(len, neighbours)))):
        excess = _excess(intervals, offsets, target)
        if not excess:
            break
        changed = _changed(order, neighbours, rng.choice(list(excess)), rng)
        trial = _first_fit(intervals, neighbours, changed)
        if sum(_excess(intervals, trial, target).values()) <= sum(excess.values()):
            offsets, order = trial, changed
            best = min(best, offsets, key=lambda found: _arena(intervals, found))
    return best


def _changed(order: Sequence[int], neighbours: Sequence[Sequence[int]], high: int, rng: random.Random) -> list[int]:
    """The order with ``high``, or one of its neighbours, just before one of its own neighbours."""
    moved = rng.choice((high, high, *neighbours[high]))
    changed = [number for number in order if number != moved]
    changed.insert(changed.index(rng.choice(neighbours[moved])), moved)
    return changed


def _excess(intervals: Sequence[Interval], offsets: Sequence[int], target: int) -> dict[int, int]:
    """The bytes by which intervals end above target, of those that do."""
    ends = (offset + interval.nbytes for offset, interval in zip(offsets, intervals, strict=True))
    return {number: end - target for number, end in enumerate(ends) if end > target}


_Live = tuple[tuple[int, int, int], ...]
"""What lives at a time, from the bottom up: where it begins and ends, and the last time it is needed."""


def _by_sweep(intervals: Sequence[Interval], arena: int, steps: int) -> list[int] | None:
    """Offsets within ``arena``; None where ``steps`` placements find none.

    Each interval, in the order in which they begin, goes to the bottom or the top of a gap, tightest first. What is possible from there on depends
    on what lives and where alone, so a state that led nowhere is not entered again: equal layers after each other cost their sum, not their product.
    """
    order = sorted(range(len(intervals)), key=lambda i: (intervals[i].first, -intervals[i].nbytes, intervals[i].last))
    offsets = [0] * len(intervals)
    hopeless: set[tuple[int, _Live]] = set()
    stack: list[tuple[_Live, list[int]]] = [((), _gaps((), intervals[order[0]], arena))]
    for _ in range(steps):
        while stack and not stack[-1][1]:
            hopeless.add((len(stack), stack.pop()[0]))
        if not stack:
            return None
        live, gaps = stack[-1]
        interval, offset = intervals[order[len(stack) - 1]], gaps.pop(0)
        offsets[order[len(stack) - 1]] = offset
        if len(stack) == len(order):
            return offsets
        following = intervals[order[len(stack)]]
        placed = (*live, (offset, offset + interval.nbytes, interval.last))
        still = tuple(sorted(entry for entry in placed if entry[2] >= following.first))
        if (len(stack) + 1, still) not in hopeless:
            stack.append((still, _gaps(still, following, arena)))
    return None


def _gaps(live: _Live, interval: Interval, arena: int) -> list[int]:
    """The bottom and the top of each gap that an interval fits into, the tightest gap first."""
    found = []
    below = 0
    for begin, end, _ in (*live, (arena, arena, 0)):
        room = begin - below - interval.nbytes
        if room >= 0:
            found += [(room, below), (room, below + room)][: 1 + (room > 0)]
        below = max(below, end)
    return [offset for _, offset in sorted(found)]


_ORDERS: tuple[Callable[[Interval], tuple[int, ...]], ...] = (
    lambda i: (-i.nbytes, i.first),
    lambda i: (i.first - i.last, -i.nbytes),
    lambda i: (-i.nbytes * (i.last - i.first + 1), i.first),
    lambda i: (i.first, -i.nbytes),
    lambda i: (-i.last, -i.nbytes),
)


def _first_fit(intervals: Sequence[Interval], neighbours: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    offsets = [-1] * len(intervals)
    for i in order:
        size, at = intervals[i].nbytes, 0
        taken = sorted((offsets[j], offsets[j] + intervals[j].nbytes) for j in neighbours[i] if offsets[j] >= 0)
        for begin, end in taken:
            if at + size <= begin:
                break
            at = max(at, aligned(end))
        offsets[i] = at
    return offsets


def _arena(intervals: Sequence[Interval], offsets: Sequence[int]) -> int:
    """The end of the last value, whole alignment units."""
    return aligned(max(offset + interval.nbytes for offset, interval in zip(offsets, intervals, strict=True)))
