"""What computing a form takes, in multiply-adds of a dense product: the measure by which the search chooses among equal forms.

It knows nothing of a machine; its constants are ratios that differ little between the CPUs we compile for.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from compiler.ir.graph import Graph, Node, Value
from compiler.ir.intexpr import Dim, evaluate, symbols
from compiler.ir.op import lookup
from compiler.ir.types import TensorType
from compiler.ir.verify import is_elementwise, is_view
from passes.linear.forms import Form, Term

_PER_BYTE = 2
"""Multiply-adds in the time of a byte read or written: some 40 G of them a second and core against 20 GB."""

_PER_KERNEL = 20_000
"""Multiply-adds in the time of a barrier and of getting a kernel under way: half a microsecond."""

_LANES = 8
"""Output channels that are computed together: a few of them cost as much as that."""

_DEPTHWISE = 2
"""What a multiply-add costs whose input is used for one output channel only."""

_TYPICAL = 16
"""What a size is taken for that only a run knows."""

_REARRANGING = frozenset({"concat", "slice", "pad", "reshape", "shuffle_channels", "pool"})
"""Linear ops with kernels of their own that are no convolutions."""

_PRODUCTS = frozenset({"conv", "matmul"})
"""Ops whose nodes are kernels even where they do no more than multiply each channel by a factor."""


class Costs:
    """The costs of forms of one graph's values. ``is_own`` says whether one linear value alone reads a value."""

    def __init__(self, graph: Graph, is_own: Callable[[Value], bool]) -> None:
        self._is_own = is_own
        self._takes_epilogue = {v for node in graph.nodes for v in node.outputs if not is_view(node) and lookup(node.op).takes_epilogue}

    def form(self, form: Form, value: Value) -> float:
        """Of computing value from the form's operands, all of which are there."""
        out = value.type
        if rearranges(form):
            return self._copy(form, out)
        heavy = [term for term in form.terms if not term.map.is_diagonal]
        light = [term for term in form.terms if term.map.is_diagonal]
        total = sum(self._heavy(term, out) for term in heavy) + max(0, len(heavy) - 1) * _PER_BYTE * _nbytes(out)
        factors = sum(node.op in _PRODUCTS for node in form.kept) - len(heavy) if form.kept else 0
        total += factors * (_PER_KERNEL + 2 * _PER_BYTE * _nbytes(out))
        read = [term.operand for term in light]
        if not heavy:
            fused = next((v for v in read if v in self._takes_epilogue and self._is_own(v)), None)
            if fused is None:
                total += _PER_BYTE * _nbytes(out) + _PER_KERNEL
            read = [v for v in read if v is not fused]
        total += _PER_BYTE * sum(_nbytes(v.type) for v in read)
        return total + _number(out.elements) * self._steps(form, light)

    @staticmethod
    def _steps(form: Form, light: list[Term]) -> int:
        """Elementwise nodes."""
        if form.kept:
            return sum(is_elementwise(node) and node.op != "identity" for node in form.kept)
        factors = [term.map.factor for term in light]
        negated = len(light) == len(form.terms) and all(factor == -1 for factor in factors) and not form.bias.parts
        return sum(factor not in (1, -1) for factor in factors) + len(form.terms) + bool(form.bias.parts) - 1 + negated

    def _copy(self, form: Form, out: TensorType) -> float:
        """Of nodes that rearrange. Slices, often views, and concatenations made in place are free: no product is split for them."""
        last = form.kept[-1]
        if last.op == "slice" or (last.op == "concat" and self._is_join(last)):
            return 0
        taps = max(term.map.taps for term in form.terms)
        read = sum(_nbytes(value.type) for value in {term.operand for term in form.terms})
        return _PER_BYTE * (read + _nbytes(out)) + _PER_KERNEL + _number(out.elements) * (taps - 1)

    def _is_join(self, node: Node) -> bool:
        """Whether the operands of a concatenation can be made where they lie in it: by kernels, for it alone, in whole vectors of channels."""
        values = node.present_inputs
        apart = node.attrs["axis"] == 1 and any(_number(v.type.shape[1]) % _LANES for v in values[:-1])
        return not apart and all(v in self._takes_epilogue and self._is_own(v) for v in values)

    @staticmethod
    def _heavy(term: Term, out: TensorType) -> float:
        map_ = term.map
        rows, columns = map_.outputs // map_.group, map_.inputs // map_.group
        positions = _number(out.elements) / map_.outputs
        if columns == 1 and map_.group > 1:
            macs = _DEPTHWISE * positions * map_.outputs * map_.taps
        else:
            macs = positions * map_.group * -(-rows // _LANES) * _LANES * columns * map_.taps
        weights = map_.outputs * columns * map_.taps * out.dtype.itemsize
        return macs + _PER_BYTE * (_nbytes(term.operand.type) + _nbytes(out) + weights) + _PER_KERNEL


def rearranges(form: Form) -> bool:
    """Whether the form is that of nodes that do no arithmetic, or of a pool."""
    return bool(form.kept) and form.kept[-1].op in _REARRANGING


def _nbytes(type_: TensorType) -> int:
    return prod(_number(dim) for dim in type_.shape) * type_.dtype.itemsize


def _number(dim: Dim) -> int:
    return dim if isinstance(dim, int) else max(1, evaluate(dim, dict.fromkeys(symbols(dim), _TYPICAL)))
