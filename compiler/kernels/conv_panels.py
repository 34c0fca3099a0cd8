"""Which output channels of a convolution are computed together: vectors of one group side by side, or one vector of several groups.

Where groups are not whole blocks of channels, the way in which they lie in blocks repeats after a few of them, a *period*. A kernel is
written for the vectors of one period and loops over all that are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from math import gcd

import numpy as np

from compiler.ir.scalar import Array
from compiler.kernels.tiles import sections


@dataclass(frozen=True)
class Panels:
    """``count`` panels of ``size`` vectors each, from vector ``start`` of a period on.

    ``groups[lane]`` is the group, counted within the period, whose channels a lane of these vectors is computed from.
    """

    start: int
    count: int
    size: int
    groups: tuple[int, ...]

    @property
    def mixed(self) -> bool:
        """Whether the lanes of a vector belong to several groups."""
        return len(set(self.groups)) > 1


@dataclass(frozen=True)
class Periods:
    """``count`` periods alike from number ``first`` on, and the panels of each."""

    first: int
    count: int
    panels: tuple[Panels, ...]


@dataclass(frozen=True)
class Grouping:
    """``group`` groups of ``filters`` output channels each from ``channels`` input channels, in vectors of ``lanes`` output channels.

    ``period`` groups fill whole vectors of the output; where ``aligned``, they read whole blocks of the input too.
    """

    group: int
    filters: int
    channels: int
    lanes: int
    aligned: bool

    @property
    def period(self) -> int:
        """Groups after which their places in vectors repeat."""
        if self.group == 1:
            return 1
        filled = self.lanes // gcd(self.filters, self.lanes)
        return max(filled, self.lanes // gcd(self.channels, self.lanes)) if self.aligned else filled

    @property
    def vectors(self) -> int:
        """Vectors of a whole period, or of all groups where these are fewer."""
        return -(-min(self.period, self.group) * self.filters // self.lanes)

    @property
    def total(self) -> int:
        """Vectors of all groups."""
        return -(-self.group * self.filters // self.lanes)

    def periods(self, largest: int) -> tuple[Periods, ...]:
        """All vectors, as panels of at most ``largest``: whole periods, then what is left."""
        whole, rest = divmod(self.group, self.period)
        found = [Periods(0, whole, self._panels(self.period, largest))] if whole else []
        return (*found, Periods(whole, 1, self._panels(rest, largest))) if rest else tuple(found)

    def _panels(self, groups: int, largest: int) -> tuple[Panels, ...]:
        """The panels of a period of so many groups. The lanes behind the last group count as its own."""
        owners = [min(channel // self.filters, groups - 1) for channel in range(-(-groups * self.filters // self.lanes) * self.lanes)]
        vectors = [tuple(owners[at : at + self.lanes]) for at in range(0, len(owners), self.lanes)]
        found: list[Panels] = []
        start = 0
        for lanes, run in groupby(vectors):
            length = len(list(run))
            alike = sections(length, 1 if len(set(lanes)) > 1 else largest)
            found += [Panels(start + section.start, section.count, section.size, lanes) for section in alike]
            start += length
        return tuple(found)

    def pack(self, weights: Array, largest: int) -> Array:
        """Weights ``[filters of all groups, channels, taps]`` panel by panel, ``[taps][channels][the panel's filters]`` each."""
        padded = np.zeros((self.total * self.lanes, *weights.shape[1:]), weights.dtype)
        padded[: weights.shape[0]] = weights
        parts = [np.zeros(0, weights.dtype)]
        for periods in self.periods(largest):
            for number in range(periods.first, periods.first + periods.count):
                for panels in periods.panels:
                    for tile in range(panels.count):
                        first = (number * self.vectors + panels.start + tile * panels.size) * self.lanes
                        parts.append(padded[first : first + panels.size * self.lanes].transpose(2, 1, 0).reshape(-1))
        return np.concatenate(parts)
