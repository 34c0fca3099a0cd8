"""Scan: a loop over the elements of tensors along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from compiler.errors import UnsupportedForm
from compiler.ir.graph import Value
from compiler.ir.intexpr import Dim
from compiler.ops.support import normalize_axis
from frontend.onnx.control import Host, Iteration, import_body, repeat
from frontend.onnx.entries import Entry
from frontend.onnx.scope import Scope


def import_scan(host: Host, node: onnx.NodeProto, inputs: Sequence[Entry], attrs: Mapping[str, Any], opset: int, scope: Scope) -> list[Entry] | None:
    """https://onnx.ai/onnx/operators/onnx__Scan.html; before opset 9 all operands have a batch axis first, over which it loops as well."""
    name = node.name or next(iter(node.output), "")
    body, number = attrs["body"].g, int(attrs["num_scan_inputs"])
    batched = opset < 9
    if batched and inputs[0] is not None:
        raise UnsupportedForm("sequences of different lengths (sequence_lens) are not supported")
    values = [value for value in inputs[int(batched) :] if isinstance(value, Value)]
    if len(values) + batched < len(inputs) or not 1 <= number <= len(values) or len(body.input) != len(values):
        raise UnsupportedForm(f"its body has {len(body.input)} inputs, and the node {len(values)} tensors, {number} of which are to be scanned")
    states, scanned = values[: len(values) - number], values[len(values) - number :]
    scan = _Scan(host, name, body, attrs, len(states), batched=batched)
    return scan.batches(states, scanned, scope) if batched else scan.whole(states, scanned, scope)


class _Scan:
    def __init__(self, host: Host, name: str, body: onnx.GraphProto, attrs: Mapping[str, Any], states: int, *, batched: bool) -> None:
        self._host, self._name, self._body, self._attrs, self._states = host, name, body, attrs, states
        self._directions = "directions" if batched else "scan_input_directions"

    def _list(self, key: str, count: int) -> list[int]:
        found = [int(v) for v in self._attrs.get(key, (0,) * count)]
        if len(found) != count:
            raise UnsupportedForm(f"attribute {key} has {len(found)} numbers for {count} tensors")
        return found

    def batches(self, states: Sequence[Value], scanned: Sequence[Value], scope: Scope) -> list[Entry] | None:
        """Every element of the batch for itself."""

        def build(inner: Scope, number: Dim, carried: Sequence[Entry]) -> Iteration | None:
            first, second = ([_element(inner, inner.take_value(v), 0, number) for v in part] for part in (states, scanned))
            found = self.whole(first, second, inner)
            return None if found is None else Iteration(None, carried, [v for v in found if isinstance(v, Value)])

        found = repeat(self._host, scope, self._name, scanned[0].type.shape[0], None, (), build)
        return None if found is None else [*found[1]]

    def whole(self, states: Sequence[Value], scanned: Sequence[Value], scope: Scope) -> list[Entry] | None:
        """The loop over the scanned axes."""
        axes = [normalize_axis(axis, v.type.rank) for axis, v in zip(self._list("scan_input_axes", len(scanned)), scanned, strict=True)]
        backwards = self._list(self._directions, len(scanned))
        length = scanned[0].type.shape[axes[0]]
        for value, axis in zip(scanned, axes, strict=True):
            scope.builder.equal(value.type.shape[axis], length, self._name)

        def build(inner: Scope, number: Dim, carried: Sequence[Entry]) -> Iteration | None:
            places = [length - 1 - number if back else number for back in backwards]
            elements = [_element(inner, inner.take_value(v), axis, at) for v, axis, at in zip(scanned, axes, places, strict=True)]
            inner.values.update(zip((value.name for value in self._body.input), (*carried, *elements), strict=True))
            found = import_body(self._host, self._body, inner)
            if found is None:
                return None
            values = [value for value in found if isinstance(value, Value)]
            if len(values) < len(found):
                raise UnsupportedForm("its body gives sequences")
            return Iteration(None, values[: self._states], values[self._states :])

        result = repeat(self._host, scope, self._name, length, None, states, build)
        if result is None:
            return None
        last, scans = result
        turned = self._list("scan_output_directions", len(scans))
        put = self._list("scan_output_axes", len(scans))
        return [*last, *(_placed(scope, v, axis, back=bool(back)) for v, axis, back in zip(scans, put, turned, strict=True))]


def _element(scope: Scope, value: Value, axis: int, position: Dim) -> Value:
    """One element of value along an axis, which is dropped."""
    shape = value.type.shape
    starts = tuple(position if a == axis else 0 for a in range(len(shape)))
    sizes = (*shape[:axis], 1, *shape[axis + 1 :])
    part = scope.builder.emit("slice", value, starts=starts, sizes=sizes, steps=(1,) * len(shape))
    return scope.builder.emit("reshape", part, shape=(*shape[:axis], *shape[axis + 1 :]))


def _placed(scope: Scope, value: Value, axis: int, *, back: bool) -> Value:
    """A scan ``[count, …]`` with its first axis turned round and put where it belongs."""
    shape, rank = value.type.shape, value.type.rank
    if back:
        starts, steps = (shape[0] - 1, *(0,) * (rank - 1)), (-1, *(1,) * (rank - 1))
        value = scope.builder.emit("slice", value, starts=starts, sizes=shape, steps=steps)
    at = normalize_axis(axis, rank)
    return value if at == 0 else scope.builder.emit("transpose", value, perm=(*range(1, at + 1), 0, *range(at + 1, rank)))
