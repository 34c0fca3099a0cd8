"""Forms as nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.ir.builder import GraphBuilder
from compiler.ir.graph import Array, Value
from passes.linear.forms import Domain, Form, Term
from passes.linear.maps import LinearMap, regrouped


@dataclass(frozen=True, eq=False)
class Emitter:
    """A form with its weights, one array for each term, and its bias, in the type they are stored in."""

    form: Form
    domain: Domain
    weights: tuple[Array, ...]
    bias: Array | None

    @classmethod
    def of(cls, form: Form, value: Value, domain: Domain) -> Emitter | None:
        """For the form of value; None where its weights are not all finite."""
        dtype = value.type.dtype.numpy
        shape = [1] * value.type.rank
        shape[domain.channel_axis(value.type)] = -1
        vector = form.bias.vector()
        bias = vector if vector is not None and np.any(vector) else None
        rounded = [np.ascontiguousarray(_stored(term.map, domain, shape, dtype)) for term in form.terms]
        if bias is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                rounded.append(bias.reshape(shape).astype(dtype))
        if not all(np.isfinite(array).all() for array in rounded):
            return None
        return cls(form, domain, tuple(rounded[: len(form.terms)]), None if bias is None else rounded[-1])

    def emit(self, builder: GraphBuilder, now: Mapping[Value, Value], name: str) -> Value:
        """The nodes; ``now`` gives operands that were replaced, ``name`` is that of the node that made the value."""
        terms = [(term, now.get(term.operand, term.operand), weights) for term, weights in zip(self.form.terms, self.weights, strict=True)]
        value: Value | None = None
        bias = self.bias
        for term, x, weights in terms:
            if not term.map.is_diagonal:
                product = self._product(builder, term, x, weights)
                value = product if value is None else builder.emit("add", value, product, name=name)
        if value is not None and bias is not None:
            value, bias = builder.emit("add", value, builder.constant(bias), name=name), None
        for term, x, weights in sorted((t for t in terms if t[0].map.is_diagonal), key=lambda t: t[0].map.factor == -1):
            if term.map.factor == -1:
                minuend = value if value is not None else None if bias is None else builder.constant(bias)
                value = builder.emit("neg", x, name=name) if minuend is None else builder.emit("sub", minuend, x, name=name)
                bias = None if minuend is not None else bias
                continue
            part = x if term.map.factor == 1 else builder.emit("mul", x, builder.constant(weights), name=term.name)
            value = part if value is None else builder.emit("add", value, part, name=name)
        assert value is not None
        return value if bias is None else builder.emit("add", value, builder.constant(bias), name=name)

    def _product(self, builder: GraphBuilder, term: Term, x: Value, weights: Array) -> Value:
        if not self.domain.windowed:
            return builder.emit("matmul", x, builder.constant(weights), name=term.name)
        windows = term.map.windows
        return builder.emit(
            "conv",
            x,
            builder.constant(weights),
            name=term.name,
            strides=tuple(window.stride for window in windows),
            pads=(*(-window.low for window in windows), *(window.end_pad for window in windows)),
            dilations=tuple(window.step for window in windows),
            group=term.map.group,
        )


def _stored(map_: LinearMap, domain: Domain, shape: list[int], dtype: np.dtype[Any]) -> Array:
    """The weights as the node takes them; ``shape`` lays factors along the channels."""
    if not domain.windowed and map_.group != 1 and not map_.is_diagonal:
        with np.errstate(over="ignore", invalid="ignore"):
            return regrouped(map_, 1).T.astype(dtype)
    weights = map_.rounded(dtype)
    return weights.reshape(shape) if map_.is_diagonal else weights if domain.windowed else weights.T
