"""The step of a recurrent cell as data: what one time step computes for one hidden unit.

A step is a list of stages. Each multiplies one row of state with the recurrent weights of some gates, then computes new elements from
these sums and from elements read at the same unit. The rows of a step, each of ``hidden_size`` elements:

- ``hidden``: the hidden state before the step; no stage writes it, and after the last stage it becomes ``out``
- ``out``: the hidden state after the step
- ``scratch``: a second row that is kept from step to step (the cell state of an LSTM)
- ``quantized``: ``hidden`` as the whole numbers from -255 to 255 that dynamic quantisation to eight bits of its own range gives, its zero
  point subtracted; read only as a source, whose sums are then multiplied by the row's scale and the weights' ``scales``

Besides rows, stages read ``projection`` (the gate's input product), ``bias``, ``peepholes`` and ``scales``, which have several elements
for each unit, told apart by an index.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import InternalError
from compiler.ir.graph import Attr
from compiler.ir.scalar import Arg, Call, Const, Scalar

Read = tuple[str, int]
"""What is read (a row, ``projection``, ``bias`` or ``peepholes``) and which of its elements for the unit (0 for a row)."""

ROWS = ("hidden", "scratch", "out", "quantized")
QUANTIZED_STEPS = 255
"""Steps between the least and the greatest element of a quantised row."""


@dataclass(frozen=True)
class Stage:
    """``sum[i] = starts[i] + source · weights[gates[i]]``, then each of ``writes`` in turn: the row and the new element.

    The operands of their expressions are the sums, the ``reads``, then the elements written before, in order.
    """

    source: str
    gates: tuple[int, ...]
    starts: tuple[Read, ...]
    reads: tuple[Read, ...]
    writes: tuple[tuple[str, Scalar], ...]

    def as_attr(self) -> Attr:
        """The stage as an attribute's value."""
        return (self.source, self.gates, self.starts, self.reads, self.writes)


def stages_from(attr: Attr) -> tuple[Stage, ...]:
    """The stages that an attribute made of ``Stage.as_attr`` holds. Raises InternalError for anything else."""
    return tuple(_stage(item) for item in _tuple(attr))


def state_rows(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """The rows that outlive a stage besides ``out``, in the order in which they are kept."""
    used = {row for stage in stages for row in (stage.source, *(written for written, _ in stage.writes))}
    return ("hidden", *(row for row in ("scratch", "quantized") if row in used))


def _stage(attr: Attr) -> Stage:
    source, gates, starts, reads, writes = _tuple(attr)
    stage = Stage(
        str(source),
        tuple(_int(gate) for gate in _tuple(gates)),
        tuple(_read(read) for read in _tuple(starts)),
        tuple(_read(read) for read in _tuple(reads)),
        tuple(_write(write) for write in _tuple(writes)),
    )
    if stage.source not in ROWS or any(row not in ("out", "scratch") or row == stage.source for row, _ in stage.writes):
        raise InternalError(f"{attr!r} is not a stage: it reads or writes rows it must not", where="compiler.ir.recurrence")
    return stage


def _read(attr: Attr) -> Read:
    name, index = _tuple(attr)
    return str(name), _int(index)


def _write(attr: Attr) -> tuple[str, Scalar]:
    row, expr = _tuple(attr)
    if not isinstance(expr, Arg | Call | Const):
        raise InternalError(f"{expr!r} is not a scalar expression", where="compiler.ir.recurrence")
    return str(row), expr


def _tuple(attr: Attr) -> tuple[Attr, ...]:
    if not isinstance(attr, tuple):
        raise InternalError(f"{attr!r} is not a list", where="compiler.ir.recurrence")
    return attr


def _int(attr: Attr) -> int:
    if not isinstance(attr, int):
        raise InternalError(f"{attr!r} is not an integer", where="compiler.ir.recurrence")
    return attr
