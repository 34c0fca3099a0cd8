"""Whether texts are the same."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.ir.intexpr import Dim
from compiler.ir.loop import Buffer, Reg
from compiler.kernels.base import Workload, register_family
from compiler.kernels.texts import TextFunctionFamily, Texts


class EqualText(TextFunctionFamily):
    """The family: two string tensors that broadcast; output bool."""

    name = "equal_text"
    texts = 2

    def value(self, texts: Texts, places: Sequence[Dim], workload: Workload, tables: Sequence[Buffer]) -> Reg:
        return texts.equal(*places)


register_family(EqualText())
