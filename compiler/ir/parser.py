"""Reads the text that ``printer`` writes; comments run from ``//`` to the end of the line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NoReturn

import numpy as np

from compiler.errors import UserError
from compiler.ir.graph import Array, Attr, Constant, Graph, Node, Region, Value
from compiler.ir.intexpr import Dim, IntExpr, parse
from compiler.ir.printer import BARE_NAME
from compiler.ir.scalar import Arg, Call, Const, Scalar
from compiler.ir.types import DType, TensorType

_DTYPES = {dtype.value: dtype for dtype in DType}
_TYPE = rf"(?:{'|'.join(_DTYPES)})\[[^\]]*\](?:\{{\d+c\}})?"
_STRING = r'"(?:[^"\\]|\\.)*"'
_TOKENS = re.compile(
    "|".join(
        f"(?P<{kind}>{pattern})"
        for kind, pattern in (
            ("space", r"\s+|//[^\n]*"),
            ("type", _TYPE),
            ("string", _STRING),
            ("value", rf"%(?:{BARE_NAME}|{_STRING})"),
            ("at", rf"@(?:{BARE_NAME}|{_STRING})"),
            ("dim", r"<[^<>]*>"),
            ("arg", r"\$\d+"),
            ("shared", r"#\d+"),
            ("number", r"-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf\b|nan\b)"),
            ("word", r"[A-Za-z_][\w.]*"),
            ("mark", r"[(){}\[\]=:,]"),
        )
    )
)
_TYPE_PARTS = re.compile(r"(\w+)\[([^\]]*)\](?:\{(\d+)c\})?")


def parse_graph(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph that printed as text. ``constants`` gives the arrays of those it names by digest (``printer.constants_of``).

    Raises UserError, naming the line, where text is not a graph or an array is missing or of another type.
    """
    reader = _Reader(text, constants or {})
    graph = reader.graph("graph", {})
    if reader.kind != "end":
        reader.fail("nothing after the graph")
    return graph


def parse_type(text: str) -> TensorType:
    """The tensor type that ``str`` printed as text. Raises UserError where it is not one."""
    match = _TYPE_PARTS.fullmatch(text.strip())
    if match is None or match[1] not in _DTYPES:
        raise UserError(f"{text!r} is not a tensor type", where="IR text", hint="write it as f32[1, N, 8]")
    try:
        shape = tuple(_parse_dim(part) for part in _split_dims(match[2]))
    except ValueError as error:
        raise UserError(f"{text!r} is not a tensor type: {error}", where="IR text", hint="write dims as N or 2*N + 1") from error
    return TensorType(_DTYPES[match[1]], shape, int(match[3] or 1))


def unquoted(token: str) -> str:
    """A name as it was before ``printer.quoted``."""
    return str(json.loads(token)) if token.startswith('"') else token


@lru_cache(maxsize=4096)
def _parse_dim(text: str) -> Dim:
    return parse(text)


def _split_dims(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char in "()":
            depth += 1 if char == "(" else -1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    last = text[start:]
    return [*parts, last] if last.strip() or parts else []


class _Reader:
    """A recursive-descent reader; ``kind`` and ``token`` are the token at hand."""

    def __init__(self, text: str, constants: Mapping[str, Array]) -> None:
        self._constants = constants
        self._tokens: list[tuple[str, str, int]] = []
        position, line = 0, 1
        while position < len(text):
            match = _TOKENS.match(text, position)
            if match is None:
                raise _error(line, f"a token cannot begin with {text[position : position + 10]!r}")
            if match.lastgroup is not None and match.lastgroup != "space":
                self._tokens.append((match.lastgroup, match.group(), line))
            line += match.group().count("\n")
            position = match.end()
        self._tokens += [("end", "the end of the text", line)] * 2
        self._shared: dict[str, Scalar] = {}
        self._at = 0
        self.kind, self.token, self._line = self._tokens[0]

    # -- tokens -------------------------------------------------------------------------------------------------

    def fail(self, expected: str) -> NoReturn:
        """Raise: something else stands where ``expected`` should."""
        raise _error(self._line, f"expected {expected}, found {self.token!r}")

    def _next(self) -> str:
        taken = self.token
        if self.kind != "end":
            self._at += 1
        self.kind, self.token, self._line = self._tokens[self._at]
        return taken

    def _take(self, kind: str, what: str) -> str:
        if self.kind != kind:
            self.fail(what)
        return self._next()

    def _accept(self, token: str) -> bool:
        if self.token != token or self.kind not in ("mark", "word"):
            return False
        self._next()
        return True

    def _expect(self, token: str) -> None:
        if not self._accept(token):
            self.fail(repr(token))

    # -- graphs -------------------------------------------------------------------------------------------------

    def graph(self, word: str, outer: Mapping[str, Value]) -> Graph:
        """One graph or region; ``outer`` are the values it may read from around it."""
        self._expect(word)
        name = unquoted(self._take("at", "the graph's @name")[1:])
        attrs = self._attrs("(", ")")
        scope = dict(outer)
        inputs: list[Value] = []
        constants: dict[Value, Constant] = {}
        nodes: list[Node] = []
        self._expect("{")
        while self._accept("input"):
            inputs.append(self._definition(scope))
        while self._accept("const"):
            line = self._line
            value = self._definition(scope)
            self._expect("=")
            constants[value] = Constant(self._data(value.type, line))
        while not self._accept("return"):
            nodes.append(self._node(scope))
        outputs = tuple(self._values(scope)) if self.kind == "value" else ()
        self._expect("}")
        return Graph(name, tuple(inputs), tuple(v for v in outputs if v is not None), tuple(nodes), constants, attrs)

    def _definition(self, scope: dict[str, Value]) -> Value:
        name = unquoted(self._take("value", "a %value")[1:])
        self._expect(":")
        line = self._line
        text = self._take("type", "a tensor type")
        try:
            value = Value(name, parse_type(text))
        except UserError as error:
            raise _error(line, error.what) from error
        scope[name] = value
        return value

    def _values(self, scope: Mapping[str, Value]) -> list[Value | None]:
        found: list[Value | None] = []
        while True:
            if self._accept("none"):
                found.append(None)
            else:
                name = unquoted(self._take("value", "a %value")[1:])
                if name not in scope:
                    raise _error(self._line, f"%{name} is read before it is defined")
                found.append(scope[name])
            if not self._accept(","):
                return found

    def _node(self, scope: dict[str, Value]) -> Node:
        outputs: list[Value] = []
        defined: dict[str, Value] = {}
        while self.kind == "value":
            outputs.append(self._definition(defined))
            if not self._accept(","):
                break
        if outputs:
            self._expect("=")
        op = self._take("word", "an op")
        self._expect("(")
        inputs = [] if self.token == ")" else self._values(scope)
        self._expect(")")
        attrs = self._attrs("{", "}")
        name = str(json.loads(self._next())) if self.kind == "string" else ""
        regions = []
        while self.kind == "word" and self.token == "region":
            regions.append(self.graph("region", scope))
        scope.update(defined)
        return Node(op, tuple(inputs), tuple(outputs), attrs, tuple(regions), name)

    def _data(self, type_: TensorType, line: int) -> Array:
        if not type_.is_static:
            raise _error(line, f"a constant cannot be of type {type_}")
        dtype, shape = type_.dtype.numpy, type_.static_shape
        if self.kind == "at":
            digest = self._next()[1:]
            array = self._constants.get(digest)
            if array is None:
                raise _error(line, f"the array @{digest} was not given")
            if array.dtype != dtype or array.shape != shape:
                raise _error(line, f"the array @{digest} is {array.dtype}{list(array.shape)}, not {type_}")
            return array
        try:
            if self._accept("bytes"):
                flat = np.frombuffer(bytes.fromhex(json.loads(self._take("string", "bytes in hexadecimal"))), dtype)
            else:
                flat = np.array(self._attr(), dtype)
            return flat.reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise _error(line, f"not the data of a {type_}: {error}") from error

    # -- attributes ---------------------------------------------------------------------------------------------

    def _attrs(self, begin: str, end: str) -> dict[str, Attr]:
        attrs: dict[str, Attr] = {}
        if not self._accept(begin):
            return attrs
        while True:
            key = json.loads(self._next()) if self.kind == "string" else self._take("word", "an attribute's name")
            self._expect("=")
            attrs[key] = self._attr()
            if not self._accept(","):
                break
        self._expect(end)
        return attrs

    def _attr(self) -> Attr:
        if self._accept("["):
            items: list[Attr] = []
            while not self._accept("]"):
                items.append(self._attr())
                if self.token != "]":
                    self._expect(",")
            return tuple(items)
        following = self._tokens[min(self._at + 1, len(self._tokens) - 1)][1]
        if self.kind in ("arg", "shared") or following == ":":
            return self._scalar()
        if self.kind == "number":
            return _number(self._next())
        if self.kind == "string":
            return str(json.loads(self._next()))
        if self.kind == "dim":
            return self._dim()
        if self.token == "box" and following == "(":
            return self._region()
        if self.token not in _WORDS:
            self.fail("an attribute's value")
        return _WORDS[self._next()]

    def _dim(self) -> Dim:
        try:
            return _parse_dim(self.token[1:-1])
        except ValueError as error:
            raise _error(self._line, str(error)) from error
        finally:
            self._next()

    def _scalar(self) -> Scalar:
        kind, token = self.kind, self._next()
        if kind == "shared":
            if self._accept("="):
                self._shared[token] = self._scalar()
            if token not in self._shared:
                self.fail(f"{token} = and what it stands for before")
            return self._shared[token]
        self._expect(":")
        dtype = _DTYPES.get(self.token)
        if dtype is None:
            self.fail("an element type")
        self._next()
        if kind == "arg":
            return Arg(int(token[1:]), dtype)
        if kind == "number":
            return Const(_number(token), dtype)
        if token in ("true", "false"):
            return Const(token == "true", dtype)
        self._expect("(")
        args = []
        while not self._accept(")"):
            args.append(self._scalar())
            if self.token != ")":
                self._expect(",")
        return Call(token, tuple(args), dtype)

    def _region(self) -> Region:
        self._next()
        line = self._line
        parts = self._attrs("(", ")")
        offset, extent, index = (parts.get(key, ()) for key in ("offset", "extent", "index"))
        source, fill = parts.get("source"), parts.get("fill", 0)
        if not isinstance(source, int | None) or not isinstance(fill, int | float):
            raise _error(line, "a box's source is an input's number, its fill a number")
        return Region(_dims(offset, line), _dims(extent, line), source, _dims(index, line), fill)


_WORDS: dict[str, Attr] = {"none": None, "true": True, "false": False, **_DTYPES}


def _number(token: str) -> int | float:
    return int(token) if token.lstrip("-").isdigit() else float(token)


def _dims(attr: Attr, line: int) -> tuple[Dim, ...]:
    dims = tuple(d for d in attr if isinstance(d, int | IntExpr)) if isinstance(attr, tuple) else ()
    if not isinstance(attr, tuple) or len(dims) != len(attr):
        raise _error(line, "a box's offset, extent and index are lists of integers and <dims>")
    return dims


def _error(line: int, what: str) -> UserError:
    return UserError(what, where=f"IR text, line {line}", hint="compare with the form described in compiler/ir/printer.py")
