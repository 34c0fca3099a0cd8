"""Regular expressions as deterministic automata over the bytes of UTF-8: one table lookup for a byte."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from compiler.errors import UnsupportedForm
from compiler.ir.regex import WORD, Chars, Choice, Edge, Following, Place, Ranges, Regex, Repeated, parse_regex

_MOST_PARTS = 50_000
_MOST_STATES = 4096


@dataclass(frozen=True)
class Automaton:
    """A match begins in state 0; ``table[state][classes[byte]]`` is the state after a byte, and ``accepts`` says whether a text may end there."""

    classes: tuple[int, ...]
    table: tuple[tuple[int, ...], ...]
    accepts: tuple[bool, ...]

    def matches(self, text: bytes) -> bool:
        """Whether all of a text matches."""
        state = 0
        for byte in text:
            state = self.table[state][self.classes[byte]]
        return self.accepts[state]


def automaton(pattern: str) -> Automaton:
    """The automaton of a pattern. Raises UnsupportedForm for one that ``parse_regex`` refuses, and for one that needs too large a table."""
    parts = _Parts()
    final = parts.new()
    begin = parts.add(parse_regex(pattern), final)
    return _determined(parts, begin, final)


class _Parts:
    """A nondeterministic automaton, built from its end: steps over bytes, over nothing, and over nothing at either end of a text."""

    def __init__(self) -> None:
        self.bytes: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []
        self.edges: list[list[tuple[Place, int]]] = []

    def new(self) -> int:
        if len(self.free) == _MOST_PARTS:
            raise UnsupportedForm(f"the pattern unfolds to more than {_MOST_PARTS} parts")
        self.bytes.append([])
        self.free.append([])
        self.edges.append([])
        return len(self.free) - 1

    def add(self, regex: Regex, to: int) -> int:
        """The part that a match of regex begins in, which ends in ``to``."""
        match regex:
            case Chars():
                begin = self.new()
                for sequence in _utf8(regex.ranges):
                    self._bytes(begin, sequence, to)
                return begin
            case Following():
                for part in reversed(regex.parts):
                    to = self.add(part, to)
                return to
            case Choice():
                begin = self.new()
                self.free[begin] = [self.add(part, to) for part in regex.parts]
                return begin
            case Edge():
                begin = self.new()
                self.edges[begin].append((regex.place, to))
                return begin
            case Repeated():
                return self._repeated(regex, to)

    def _repeated(self, regex: Repeated, to: int) -> int:
        if regex.most is None:
            around = self.new()
            self.free[around] = [self.add(regex.part, around), to]
            to = around
        else:
            end = to
            for _ in range(regex.most - regex.least):
                begin = self.new()
                self.free[begin] = [self.add(regex.part, to), end]
                to = begin
        for _ in range(regex.least):
            to = self.add(regex.part, to)
        return to

    def _bytes(self, begin: int, sequence: tuple[tuple[int, int], ...], to: int) -> None:
        for low, high in sequence[:-1]:
            following = self.new()
            self.bytes[begin].append((low, high, following))
            begin = following
        self.bytes[begin].append((*sequence[-1], to))

    def closure(self, parts: Iterable[int], places: Collection[Place] = ()) -> frozenset[int]:
        """All that is reached without a byte, at a position that is all of these places."""
        found, waiting = set(parts), list(parts)
        while waiting:
            part = waiting.pop()
            reached = [*self.free[part], *(to for place, to in self.edges[part] if place in places)]
            waiting += [to for to in reached if to not in found]
            found.update(reached)
        return frozenset(found)


def _utf8(ranges: Ranges) -> Iterator[tuple[tuple[int, int], ...]]:
    """Sequences of ranges of bytes that stand for all the characters of ranges, surrogates left out."""
    for low, high in ranges:
        for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)):
            if max(low, first) <= min(high, last):
                yield from _of_one_length(chr(max(low, first)).encode(), chr(min(high, last)).encode())


def _of_one_length(low: bytes, high: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    if len(low) == 1:
        yield ((low[0], high[0]),)
    elif low[0] == high[0]:
        yield from (((low[0], low[0]), *rest) for rest in _of_one_length(low[1:], high[1:]))
    else:
        least, most = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
        first, last = low[0] + (low[1:] != least), high[0] - (high[1:] != most)
        if low[1:] != least:
            yield from (((low[0], low[0]), *rest) for rest in _of_one_length(low[1:], most))
        if first <= last:
            yield ((first, last), *(((0x80, 0xBF),) * len(least)))
        if high[1:] != most:
            yield from (((high[0], high[0]), *rest) for rest in _of_one_length(least, high[1:]))


@dataclass(frozen=True)
class _State:
    """The parts a match may be in, before edges are looked at, and what these depend on: whether nothing or a word stands before."""

    parts: frozenset[int]
    begins: bool
    in_word: bool

    def places(self, *, before_word: bool) -> set[Place]:
        """What the position is, if a word goes on or begins there, or not."""
        edge = Place.EDGE_OF_WORD if self.in_word != before_word else Place.NO_EDGE_OF_WORD
        return {edge, Place.BEGIN} if self.begins else {edge}


def _determined(parts: _Parts, begin: int, final: int) -> Automaton:
    words = any(place in (Place.EDGE_OF_WORD, Place.NO_EDGE_OF_WORD) for edges in parts.edges for place, _ in edges)
    bounds = {bound for steps in parts.bytes for low, high, _ in steps for bound in (low, high + 1)}
    starts = sorted(({0} | bounds | ({bound for low, high in WORD for bound in (low, high + 1)} if words else set())) - {256})
    classes = tuple(sum(start <= byte for start in starts) - 1 for byte in range(256))
    states = [_State(parts.closure([begin]), True, False)]
    numbers, table, accepts = {states[0]: 0}, [], []
    for state in states:  # grows while it is walked
        here = {before: parts.closure(state.parts, state.places(before_word=before)) for before in (False, True)}
        row = []
        for byte in starts:
            in_word = words and any(low <= byte <= high for low, high in WORD)
            reached = parts.closure({to for part in here[in_word] for low, high, to in parts.bytes[part] if low <= byte <= high})
            following = _State(reached, False, in_word)
            if following not in numbers:
                if len(states) == _MOST_STATES:
                    raise UnsupportedForm(f"the pattern needs more than {_MOST_STATES} states")
                numbers[following] = len(states)
                states.append(following)
            row.append(numbers[following])
        table.append(tuple(row))
        accepts.append(final in parts.closure(state.parts, {*state.places(before_word=False), Place.END}))
    return Automaton(classes, tuple(table), tuple(accepts))
