"""What a pass is, the registry of passes by name, and the manager that runs a list of them.

A pass is a frozen dataclass: its fields are its options, its ``name`` is how ``--passes`` and reports call it, ``stage`` is the stage
(``compiler.ir.verify``) its result belongs to. Passes are stateless and build new graphs.
"""

from __future__ import annotations

import ast
import pkgutil
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeVar

from compiler.errors import InternalError, UserError
from compiler.ir.control import BRANCHING
from compiler.ir.graph import Graph
from compiler.ir.verify import Stage, verify_graph
from passes.claims import Claim


@dataclass(frozen=True)
class RuleEvent:
    """A rule at a node: it matched, or, where there is a ``reason``, it nearly did."""

    rule: str
    node: str
    reason: str | None = None


@dataclass(frozen=True)
class PassResult:
    """The new graph, whether it differs from the old one, what is worth knowing about it, what its rules did, and what numbers can check of it."""

    graph: Graph
    changed: bool
    notes: tuple[str, ...] = ()
    events: tuple[RuleEvent, ...] = ()
    claims: tuple[Claim, ...] = ()


class Pass(Protocol):
    """One step from graph to graph."""

    name: ClassVar[str]
    stage: ClassVar[Stage]

    def run(self, graph: Graph) -> PassResult:
        """The transformed graph; the given one stays as it is."""


@dataclass(frozen=True)
class PassReport:
    """What one pass did in one run: wall-clock ``seconds``, top-level nodes before and after."""

    step: Pass
    changed: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    notes: tuple[str, ...] = ()
    events: tuple[RuleEvent, ...] = ()

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.step.name


Observer = Callable[[Pass, Graph, PassReport], None]
"""Called after each pass with its result; printing IR and timing passes are observers."""


@dataclass(frozen=True)
class PassManager:
    """Runs ``passes`` in order; ``verify`` checks every result against the rules of its stage, and what passes claim on random inputs."""

    passes: tuple[Pass, ...]
    verify: bool = False
    observer: Observer | None = None

    def run(self, graph: Graph) -> tuple[Graph, tuple[PassReport, ...]]:
        """The graph after the last pass and one report for each. Raises InternalError, naming the pass, for a broken rule or a
        false claim."""
        reports = []
        for step in self.passes:
            begin = time.perf_counter()
            result = _run(step, graph)
            seconds = time.perf_counter() - begin
            report = PassReport(step, result.changed, seconds, len(graph.nodes), len(result.graph.nodes), result.notes, result.events)
            graph = result.graph
            if self.verify:
                _verify(step, result)
            if self.observer is not None:
                self.observer(step, graph, report)
            reports.append(report)
        return graph, tuple(reports)


def _run(step: Pass, graph: Graph) -> PassResult:
    """The pass on the regions of every ``if`` and ``loop``, innermost first, then on the graph; memory is planned for all at once."""
    if step.stage is Stage.PLANNED or not any(node.op in BRANCHING for node in graph.nodes):
        return step.run(graph)
    nodes, inside = [], []
    for node in graph.nodes:
        results = [_run(step, region) for region in node.regions] if node.op in BRANCHING else []
        inside += results
        nodes.append(replace(node, regions=tuple(result.graph for result in results)) if results else node)
    outside = step.run(graph.with_(nodes=tuple(nodes)))
    notes = (*outside.notes, *(f"in a region: {note}" for result in inside for note in result.notes))
    events = (*outside.events, *(event for result in inside for event in result.events))
    claims = (*outside.claims, *(claim for result in inside for claim in result.claims))
    return PassResult(outside.graph, outside.changed or any(result.changed for result in inside), notes, events, claims)


def _verify(step: Pass, result: PassResult) -> None:
    try:
        verify_graph(result.graph, step.stage)
        for claim in result.claims:
            claim.check()
    except InternalError as error:
        raise InternalError(error.what, where=f"after pass {step.name}: {error.where}", hint=error.hint) from error


_REGISTRY: dict[str, type[Any]] = {}
_PassType = TypeVar("_PassType", bound=type[Any])


def register_pass(cls: _PassType) -> _PassType:
    """Make a pass known by its name; used as a class decorator, above ``dataclass``."""
    if cls.name in _REGISTRY:
        raise InternalError(f"pass {cls.name} is registered twice", where="passes")
    _REGISTRY[cls.name] = cls
    return cls


def all_passes() -> dict[str, type[Any]]:
    """Every pass class by name."""
    import passes.graph

    for module in pkgutil.iter_modules(passes.graph.__path__):
        import_module(f"passes.graph.{module.name}")
    return dict(sorted(_REGISTRY.items()))


_CALL = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")
_FORM = "write passes as name or name{option=value, option=value}, with commas between them"


def parse_passes(text: str) -> tuple[Pass, ...]:
    """The passes that ``name,name{option=value,option=value}`` stands for. Raises UserError for an unknown name, option or bad value."""
    found: list[Pass] = []
    at = 0
    while not found or text[at - 1] == ",":
        match = _CALL.match(text, at)
        if match is None:
            raise UserError(f"cannot read {text[at:].strip()!r} as a pass", where="passes", hint=_FORM)
        found.append(_parse_pass(match[1], match[2] or ""))
        at = match.end()
    return tuple(found)


def _parse_pass(name: str, options_text: str) -> Pass:
    known = all_passes()
    cls = known.get(name)
    if cls is None:
        raise UserError(f"no pass is called {name!r}", where="passes", hint=f"use some of: {', '.join(known)}")
    options: dict[str, object] = {}
    legal = {field.name: field.type for field in fields(cls)}
    for part in filter(None, (p.strip() for p in options_text.split(","))):
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in legal:
            raise UserError(f"pass {cls.name} has no option {key!r}", where="passes", hint=f"its options are: {', '.join(legal) or 'none'}")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = None
        if type(options[key]).__name__ != legal[key]:
            raise UserError(f"option {key} of pass {cls.name} has value {value!r}", where="passes", hint=f"give it a value of type {legal[key]}")
    return _make(cls, options)


def _make(cls: type[Any], options: dict[str, object]) -> Pass:
    try:
        made: Pass = cls(**options)
    except TypeError as error:
        raise UserError(f"pass {cls.name}: {error}", where="passes", hint="give every option without a default") from error
    return made
