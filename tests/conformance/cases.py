"""The test cases that the onnx package carries, and what running one says."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

import tensorsmith as ts

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
PASSED = "passed"
_PROTOS = {"tensor_type": onnx.TensorProto, "sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}


class Case:
    """One model with its inputs and expected outputs."""

    def __init__(self, source: TestCase) -> None:
        self.name: str = source.name
        self._source = source

    @cached_property
    def model(self) -> onnx.ModelProto:
        if isinstance(self._source.model, onnx.ModelProto):
            return self._source.model
        return onnx.load(Path(self._source.model_dir) / "model.onnx")

    def data_sets(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Inputs and expected outputs of each run, in the order of the graph's."""
        if self._source.data_sets is not None:
            for inputs, outputs in self._source.data_sets:
                yield [_array(x) for x in inputs], [_array(x) for x in outputs]
            return
        for folder in sorted(Path(self._source.model_dir).glob("test_data_set_*")):
            yield tuple(
                [_read(folder / f"{stem}_{index}.pb", value) for index, value in enumerate(values) if (folder / f"{stem}_{index}.pb").exists()]
                for stem, values in (("input", self.model.graph.input), ("output", self.model.graph.output))
            )

    def run(self) -> str:
        """``PASSED``, or in one line why not: what was refused, or how the outputs differ.

        Outputs are compared as onnx's own runner does, within the tolerances of the case, which hold for bfloat16 too. Errors other than the
        compiler's refusals are raised.
        """
        runs = 0
        for inputs, expected in self.data_sets():
            feeds = {value.name: x for value, x in zip(self.model.graph.input, inputs, strict=False) if x is not None}
            try:
                got = ts.compile(self.model, threads=1, cache=False).run(feeds)
            except ts.UserError as error:
                reasons = error.items if isinstance(error, ts.UnsupportedError) and error.items else (error.what,)
                return f"refused: {_line('; '.join(reasons))}"
            outputs = [got[value.name] for value in self.model.graph.output]
            try:
                for view in (list, _without_bfloat16):
                    Runner.assert_similar_outputs(view(_leaves(expected)), view(_leaves(outputs)), self._source.rtol, self._source.atol)
            except AssertionError as error:
                return f"differs: {_line(str(error))}"
            runs += 1
        return PASSED if runs else "differs: the case has no data"


def all_cases() -> dict[str, Case]:
    """Every case by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {source.name: Case(source) for kind in KINDS for source in load_model_tests(kind=kind)}


def share(names: list[str], parts: int) -> list[str]:
    """One of ``parts`` equal parts of the cases, the same ones each time, chosen by their names."""
    return [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % parts == 0]


def _leaves(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    """The arrays in values, with the length of each sequence before its elements, and -1 for None: the runner takes no scalars in sequences."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += [np.array(len(value)), *_leaves(value)]
        else:
            found.append(np.array(-1) if value is None else value)
    return found


def _without_bfloat16(arrays: list[Any]) -> list[Any]:
    """Arrays with bfloat16 as float32, for which the runner widens no tolerance."""
    return [x.astype(np.float32) if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16" else x for x in arrays]


def _line(text: str) -> str:
    return " ".join(text.split())


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    proto = _PROTOS[value.type.WhichOneof("value")]()
    proto.ParseFromString(path.read_bytes())
    return _array(proto)
