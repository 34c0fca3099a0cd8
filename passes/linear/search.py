"""The search for the cheapest equal forms of all linear values of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from compiler.ir.graph import Graph, Value, reads
from passes.linear.cost import Costs, rearranges
from passes.linear.forms import Domain, Form, InsertionError, insert, merged
from passes.linear.readers import linear_forms

_LEAST = 1e-9
"""The part of a cost that a change must save: less is rounding of the sum."""


@dataclass(frozen=True)
class _Move:
    """New forms for some values, the values inserted into them, and the multiply-adds that computing the weights takes."""

    forms: Mapping[Value, Form]
    inserted: tuple[Value, ...]
    work: int = 0


@dataclass(frozen=True)
class Component:
    """Values whose forms changed together: the new forms of those that are left, and the old ones of all."""

    forms: dict[Value, Form] = field(default_factory=dict)
    before: dict[Value, Form] = field(default_factory=dict)


class Search:
    """Inserts linear values into the ones that read them and adds up maps of one operand, as long as that makes the whole cheaper.

    ``work_left``: multiply-adds that computing new weights may still take. ``nodes`` are those that are linear.
    """

    def __init__(self, graph: Graph, domain: Domain, work_left: int) -> None:
        self._domain, self.work_left = domain, work_left
        self._readers: dict[Value, dict[Value, None]] = {}
        self._forms: dict[Value, Form] = {}
        self._order = linear_forms(graph, domain)
        for value, form in self._order.items():
            self._set(value, form)
        self.nodes = frozenset(node for form in self._order.values() for node in form.kept)
        self._outside = set(graph.outputs) | {v for node in graph.nodes if node not in self.nodes for v in reads(node)}
        self._costs = Costs(graph, self._is_own)
        self._leader = {value: value for value in self._order}
        self._blocked: dict[tuple[Value, Value], str] = {}

    def run(self) -> list[Component]:
        """What is worth changing."""
        for value in self._order:
            self._absorb(value)
        baseline = {value: self._forms[value] for value in self._order if value in self._forms}
        for value, form in baseline.items():  # before any move, which would otherwise be paid for by sums that its reader can do alone
            self._set(value, self._merged(form, value))
        for copies in (False, True):  # copies last: what they save may be nothing once values have gone into the one that reads them
            while sum(self._improve(value, copies=copies) for value in self._order if value in self._forms):
                pass
        return self._components(baseline)

    def blocked(self) -> list[tuple[tuple[Value, Value], str]]:
        """The insertions, between values that are both still there, which were not possible, and why."""
        return [((operand, value), why) for (operand, value), why in self._blocked.items() if operand in self._forms and value in self._forms]

    def _absorb(self, value: Value) -> None:
        """Insert what is only multiplied by factors and read by value alone: the same kernels, said at once."""
        form = self._forms[value]
        while not rearranges(form):
            under = {term.operand for term in form.terms if not term.map.is_diagonal}
            own = (v for v in (t.operand for t in form.terms) if v in self._forms and v not in under and self._is_own(v))
            operand = next((v for v in own if not rearranges(self._forms[v])), None)
            if operand is None:
                return
            inner = self._forms[operand]
            kept = inner.kept + form.kept if inner.kept and form.kept else ()
            form = replace(insert(form, value, operand, inner, self._domain)[0], kept=kept)
            self._apply(_Move({value: form}, (operand,)))

    def _improve(self, value: Value, *, copies: bool) -> bool:
        """Make the best of the moves around value that make the whole cheaper; without ``copies``, of those after which what is inserted is gone."""
        self._absorb(value)
        self._set(value, self._merged(self._forms[value], value))
        moves = [move for move in self._moves(value) if move.work <= self.work_left and (copies or self._is_last(move))]
        gains = [(self._gain(move), move) for move in moves]
        gain, best = max(gains, key=lambda pair: pair[0], default=(0.0, None))
        if best is None or gain <= 0:
            return False
        self.work_left -= best.work
        self._apply(best)
        return True

    def _moves(self, value: Value) -> list[_Move]:
        """value inserted into some or all of its readers, and all its linear operands into it."""
        found = [self._insertion(reader, (value,)) for reader in self._readers.get(value, ())]
        moves = [move for move in found if move is not None]
        if len(found) == len(moves) > 1:
            moves.append(_joined(moves))
        operands = tuple(dict.fromkeys(t.operand for t in self._forms[value].terms if t.operand in self._forms))
        whole = self._insertion(value, operands) if len(operands) > 1 else None
        return moves if whole is None else [*moves, whole]

    def _insertion(self, value: Value, operands: Sequence[Value]) -> _Move | None:
        """``operands`` inserted into value; None where that is not possible."""
        form, total = self._forms[value], 0
        for operand in operands:
            try:
                form, work = insert(form, value, operand, self._forms[operand], self._domain)
            except InsertionError as reason:
                self._blocked[operand, value] = str(reason)
                return None
            total += work
        return _Move({value: self._merged(form, value)}, tuple(operands), total)

    def _merged(self, form: Form, value: Value) -> Form:
        """form with terms of one operand added up as long as that costs nothing, the best first; itself where that makes nothing cheaper."""
        best = form if rearranges(form) else replace(form, kept=())
        while True:
            options = filter(None, (merged(best, a, b) for a, b in combinations(best.terms, 2) if a.operand is b.operand))
            option = min(options, key=lambda option: self._costs.form(option, value), default=None)
            if option is None or self._costs.form(option, value) > self._costs.form(best, value) * (1 + _LEAST):
                break
            best = option
        return best if not form.kept or self._costs.form(best, value) < self._costs.form(form, value) * (1 - _LEAST) else form

    def _gain(self, move: _Move) -> float:
        """What the move makes the whole cheaper by; 0 where that is less than sums are rounded by."""
        touched = [*move.forms, *move.inserted]
        old = {value: self._forms[value] for value in touched}
        operands = {term.operand for form in (*old.values(), *move.forms.values()) for term in form.terms}
        around = dict.fromkeys([*touched, *(reader for operand in operands for reader in self._readers.get(operand, ()))])
        before = self._total(around)
        self._try(move)
        after = self._total(around)
        for value, form in old.items():
            self._set(value, form)
        return before - after if after < before * (1 - _LEAST) else 0

    def _total(self, values: Iterable[Value]) -> float:
        return sum(self._costs.form(self._forms[value], value) for value in values if value in self._forms)

    def _apply(self, move: _Move) -> None:
        self._try(move)
        for changed in move.forms:
            for operand in move.inserted:
                self._leader[self._find(operand)] = self._find(changed)

    def _try(self, move: _Move) -> None:
        for value, form in move.forms.items():
            self._set(value, form)
        for operand in move.inserted:
            if not self._readers[operand] and operand not in self._outside:
                self._set(operand, None)

    def _set(self, value: Value, form: Form | None) -> None:
        """Give value this form, or take it away."""
        old = self._forms.pop(value, None)
        for term in old.terms if old is not None else ():
            self._readers[term.operand].pop(value, None)
        if form is not None:
            self._forms[value] = form
            for term in form.terms:
                self._readers.setdefault(term.operand, {})[value] = None

    def _is_last(self, move: _Move) -> bool:
        """Whether no one reads what a move inserts after it."""
        return all(operand not in self._outside and self._readers[operand].keys() <= move.forms.keys() for operand in move.inserted)

    def _is_own(self, operand: Value) -> bool:
        """Whether one linear value alone reads operand."""
        return operand not in self._outside and len(self._readers.get(operand, ())) == 1

    def _find(self, value: Value) -> Value:
        while self._leader[value] is not value:
            value = self._leader[value]
        return value

    def _components(self, baseline: Mapping[Value, Form]) -> list[Component]:
        found: dict[Value, Component] = {}
        for value, old in baseline.items():
            form = self._forms.get(value)
            if form is not old:
                component = found.setdefault(self._find(value), Component())
                component.before[value] = old
                component.forms.update({} if form is None else {value: form})
        return list(found.values())


def _joined(moves: Sequence[_Move]) -> _Move:
    """Moves on different values as one."""
    forms = {value: form for move in moves for value, form in move.forms.items()}
    return _Move(forms, moves[0].inserted, sum(move.work for move in moves))
