"""Operators recovered from what exporters write out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compiler.ir.graph import Graph
from compiler.ir.verify import Stage
from passes.base import PassResult, register_pass
from passes.recovery import activations, attention, normalization, products, softmax, surroundings
from passes.rules import apply_rules

RULES = (*normalization.RULES, *softmax.RULES, *activations.RULES, *attention.RULES, *products.RULES, *surroundings.RULES)
"""All of them, in the order in which they are tried."""


@register_pass
@dataclass(frozen=True)
class RecoverOps:
    """Applies the rules of ``passes/recovery`` until none matches.

    ``%e = exp(%x); %s = reduce(%e) {kind = "sum", axes = [1], keepdims = true}; %y = div(%e, %s)`` becomes ``%y = softmax(%x) {axis = 1}``.
    """

    name: ClassVar[str] = "recover-ops"
    stage: ClassVar[Stage] = Stage.CANONICAL

    def run(self, graph: Graph) -> PassResult:
        return apply_rules(graph, RULES)
