"""Regular expressions of RE2's syntax, parsed: https://github.com/google/re2/wiki/Syntax. ``automaton`` makes tables of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import Union

from compiler.errors import UnsupportedForm

LAST = 0x10FFFF
_MOST_REPEATS = 1000
_DEEPEST = 100
_DOTLESS_I = 0x131
"""Its capital is I, but it is no case of i (https://www.unicode.org/Public/UNIDATA/CaseFolding.txt)."""

Ranges = tuple[tuple[int, int], ...]
"""Code points: the first and the last of each range, in order, apart from one another."""


@dataclass(frozen=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Following:
    """One part after another."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True)
class Choice:
    """One of some parts."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True)
class Repeated:
    """``least`` to ``most`` times, or as often as one likes (None)."""

    part: Regex
    least: int
    most: int | None


class Place(Enum):
    """Where in a text nothing is asked to stand."""

    BEGIN = "^"
    END = "$"
    EDGE_OF_WORD = "\\b"
    NO_EDGE_OF_WORD = "\\B"


@dataclass(frozen=True)
class Edge:
    """Nothing, at a place; words are of ASCII letters, digits and ``_``."""

    place: Place


Regex = Union[Chars, Following, Choice, Repeated, Edge]


@dataclass(frozen=True)
class _Flags:
    fold: bool = False
    dot_all: bool = False
    lines: bool = False


def united(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that touch joined."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _others(ranges: Ranges) -> Ranges:
    """Every code point that is in none of the ranges."""
    found, low = [], 0
    for first, last in ranges:
        if low < first:
            found.append((low, first - 1))
        low = last + 1
    return tuple([*found, (low, LAST)] if low <= LAST else found)


def _points(characters: str) -> Ranges:
    return united((ord(c), ord(c)) for c in characters)


_DIGITS: Ranges = ((0x30, 0x39),)
_UPPER, _LOWER = (0x41, 0x5A), (0x61, 0x7A)
_PERL = {"d": _DIGITS, "s": _points("\t\n\f\r "), "w": united([*_DIGITS, _UPPER, _LOWER, (0x5F, 0x5F)])}
WORD = _PERL["w"]
"""The characters of words."""

_POSIX = {
    "alnum": united([*_DIGITS, _UPPER, _LOWER]),
    "alpha": (_UPPER, _LOWER),
    "ascii": ((0, 0x7F),),
    "blank": _points("\t "),
    "cntrl": ((0, 0x1F), (0x7F, 0x7F)),
    "digit": _DIGITS,
    "graph": ((0x21, 0x7E),),
    "lower": (_LOWER,),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": _points("\t\n\v\f\r "),
    "upper": (_UPPER,),
    "word": _PERL["w"],
    "xdigit": united([*_DIGITS, (0x41, 0x46), (0x61, 0x66)]),
}
_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@cache
def _category(name: str) -> Ranges:
    """The code points of a general category, or of all whose names begin with a letter."""
    return united((code, code) for code in range(LAST + 1) if unicodedata.category(chr(code)).startswith(name))


@cache
def _cases() -> tuple[frozenset[int], ...]:
    """Sets of characters that differ in case alone."""
    found: dict[int, set[int]] = {}
    for code in {*range(LAST + 1)} - {_DOTLESS_I}:
        for other in {chr(code).lower(), chr(code).upper(), chr(code).title()} - {chr(code)}:
            if len(other) == 1:
                joined = found.get(code, {code}) | found.get(ord(other), {ord(other)})
                found.update(dict.fromkeys(joined, joined))
    return tuple({frozenset(group) for group in found.values()})


def _folded(ranges: Ranges) -> Ranges:
    groups = (group for group in _cases() if any(low <= code <= high for code in group for low, high in ranges))
    return united([*ranges, *((code, code) for group in groups for code in group)])


def parse_regex(pattern: str) -> Regex:
    """The expression that a pattern is. Raises UnsupportedForm for one that is malformed, or asks what no automaton can tell."""
    parser = _Parser(pattern)
    found = parser.choice(_Flags(), 0)
    if not parser.ended:
        raise parser.error("there is a ) too many")
    return found


_NOTHING = Following(())
_COUNTED = r"\{(\d+)(,?)(\d*)\}\??"
_STARRED = r"([*+?])\??"


def _following(parts: Sequence[Regex]) -> Regex:
    """One part after another, those that are nothing left out: what they would be repeated for adds nothing to an automaton."""
    found = tuple(part for part in parts if part != _NOTHING)
    return found[0] if len(found) == 1 else Following(found)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def error(self, what: str) -> UnsupportedForm:
        return UnsupportedForm(f"pattern {self._pattern!r:.200}, character {self._at}: {what}")

    @property
    def ended(self) -> bool:
        """Whether all is read."""
        return self._at == len(self._pattern)

    def _accept(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _match(self, pattern: str) -> re.Match[str] | None:
        found = re.compile(pattern).match(self._pattern, self._at)
        self._at = self._at if found is None else found.end()
        return found

    def _next(self) -> str:
        if self.ended:
            raise self.error("it ends too soon")
        self._at += 1
        return self._pattern[self._at - 1]

    def choice(self, flags: _Flags, depth: int) -> Regex:
        """Parts between bars, up to the end or a closing parenthesis."""
        if depth > _DEEPEST:
            raise self.error(f"more than {_DEEPEST} groups within each other")
        parts: list[list[Regex]] = [[]]
        while not self.ended and self._pattern[self._at] != ")":
            if self._accept("|"):
                parts.append([])
            elif (found := self._match(r"\(\?([imsU]*)(?:-([imsU]+))?\)")) is not None:
                flags = _with(flags, found)
            elif (found := self._match(r"(?s)\\Q(.*?)(?:\\E|\Z)")) is not None:
                quoted: list[Regex] = [Chars(_cased(_points(c), flags)) for c in found[1]]
                parts[-1] += [*quoted[:-1], *map(self._repeated, quoted[-1:])]
            else:
                parts[-1].append(self._repeated(self._atom(flags, depth)))
        choices = tuple(_following(part) for part in parts)
        return choices[0] if len(choices) == 1 else Choice(choices)

    def _repeated(self, part: Regex) -> Regex:
        most: int | None
        if (found := self._match(_COUNTED)) is not None:
            least = int(found[1])
            most = None if found[2] and not found[3] else int(found[3] or least) if found[2] else least
            if max(least, most or 0) > _MOST_REPEATS or (most is not None and most < least):
                raise self.error(f"a repetition of {found[0]}; at most {_MOST_REPEATS} are possible")
        elif (found := self._match(_STARRED)) is not None:
            least, most = int(found[1] == "+"), 1 if found[1] == "?" else None
        else:
            return part
        if self._match(_COUNTED) or self._match(_STARRED):
            raise self.error("a repetition of a repetition; put the inner one into a group")
        return _NOTHING if most == 0 or part == _NOTHING else Repeated(part, least, most)

    def _atom(self, flags: _Flags, depth: int) -> Regex:
        if self._match(r"\(\?(=|!|<=|<!)") is not None:
            raise self.error("looking ahead or behind is not regular")
        if self._accept("("):
            inner = flags
            if (found := self._match(r"\?([imsU]*)(?:-([imsU]+))?:")) is not None:
                inner = _with(flags, found)
            elif self._match(r"\?P?<\w+>") is None and self._accept("?"):
                raise self.error("a group of a kind that is not known")
            part = self.choice(inner, depth + 1)
            if not self._accept(")"):
                raise self.error("a ) is missing")
            return part
        if self._match(r"[*+?]") is not None:
            raise self.error("there is nothing to repeat")
        if (found := self._match(r"[$^]")) is not None:
            if flags.lines:
                raise self.error(f"{found[0]} for ends of lines, with (?m), is not supported")
            return Edge(Place(found[0]))
        if self._accept("."):
            return Chars(_others(() if flags.dot_all else _points("\n")))
        if self._accept("["):
            return Chars(self._class(flags))
        if (found := self._match(r"\\[AzbB]")) is not None:
            return Edge({"\\A": Place.BEGIN, "\\z": Place.END}.get(found[0]) or Place(found[0]))
        return Chars(_cased(self._escape() if self._accept("\\") else _points(self._next()), flags))

    def _escape(self) -> Ranges:
        """What stands behind a backslash, of characters and sets of them."""
        if (found := self._match(r"([pP])(?:\{(\^?)(\w+)\}|([A-Z]))")) is not None:
            name = found[3] or found[4]
            ranges = ((0, LAST),) if name == "Any" else _category(name)
            if not ranges:
                raise self.error(f"there is no general category {name!r}; scripts are not supported")
            return _others(ranges) if (found[1] == "P") != bool(found[2]) else ranges
        if (found := self._match(r"x(?:\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2}))")) is not None:
            code = int(found[1] or found[2], 16)
            if code > LAST:
                raise self.error(f"there is no character {found[0]}")
            return ((code, code),)
        if (found := self._match(r"0[0-7]{0,2}|[1-7][0-7]{2}")) is not None:
            return ((int(found[0], 8), int(found[0], 8)),)
        character = self._next()
        if character.lower() in _PERL:
            return _PERL[character] if character.islower() else _others(_PERL[character.lower()])
        if character in _ESCAPES:
            return _points(_ESCAPES[character])
        if character.isdigit():
            raise self.error("references to groups are not regular")
        if character.isascii() and character.isalpha():
            raise self.error(f"\\{character} is not known")
        return _points(character)

    def _class(self, flags: _Flags) -> Ranges:
        """What stands between brackets."""
        negated = self._accept("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self._accept("]"):
            first = False
            if (found := self._match(r"\[:(\^?)(\w+):\]")) is not None:
                if found[2] not in _POSIX:
                    raise self.error(f"there is no class {found[2]!r}")
                ranges += _others(_POSIX[found[2]]) if found[1] else _POSIX[found[2]]
                continue
            low = self._escape() if self._accept("\\") else _points(self._next())
            if self._match(r"-(?=[^\]])") is not None:
                high = self._escape() if self._accept("\\") else _points(self._next())
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                    raise self.error("a range has no such ends")
                low = ((low[0][0], high[0][0]),)
            ranges += low
        found_ranges = _cased(united(ranges), flags)
        return _others(found_ranges) if negated else found_ranges


def _with(flags: _Flags, found: re.Match[str]) -> _Flags:
    """Flags with those that a group switches on and off; U, which asks for short repetitions, means nothing where all must match."""
    names = {"i": "fold", "s": "dot_all", "m": "lines"}
    switched = {names[c]: True for c in found[1] if c in names} | {names[c]: False for c in found[2] or "" if c in names}
    return replace(flags, **switched)


def _cased(ranges: Ranges, flags: _Flags) -> Ranges:
    return _folded(ranges) if flags.fold else ranges
