"""Models of strings, and running one in every way there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

import tensorsmith
from backends.reference import run_program
from compiler.ir.interp import interpret
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

MACHINE_LEARNING = "ai.onnx.ml"

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.text("ab\0", max_size=20)
"""Any Unicode, and texts that are often equal, or that zeros alone tell apart."""


def strings(*texts: str) -> np.ndarray:
    """A vector of strings."""
    return np.array(texts, object)


def string_tensor(name: str, *texts: str) -> TensorProto:
    """A vector of strings, as an initializer."""
    return TensorProto(name=name, data_type=TensorProto.STRING, dims=[len(texts)], string_data=[text.encode() for text in texts])


def model_of(*nodes: onnx.NodeProto, opset: int = 21, ml_opset: int = 4, **inputs: Any) -> onnx.ModelProto:
    """A model whose inputs have the types and, of dims of their own, the ranks of the arrays given, and whose outputs are y, y0, y1, …"""
    infos = []
    for name, array in inputs.items():
        kind = TensorProto.STRING if array.dtype == object else helper.np_dtype_to_tensor_dtype(array.dtype)
        infos.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)]))
    outputs = [onnx.ValueInfoProto(name=name) for node in nodes for name in node.output if name.startswith("y")]
    graph = helper.make_graph(nodes, "strings", infos, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MACHINE_LEARNING, ml_opset)], ir_version=10)


def fixed(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model for inputs of these shapes."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            dim.dim_value = size
    return copy


def results(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, after checking that compiled code on 1 and 2 threads, for fixed and for symbolic dims, the interpreter and the reference
    backend agree, and that the program prints and parses."""
    graph = import_model(model)
    found = [list(interpret(graph, feeds).values())]
    target = resolve("native")
    program = lower(optimize(graph, target, 3, verify=True)[0], target, 2)
    assert print_program(parse_program(print_program(program), weights_of(program))) == print_program(program)
    found.append(list(run_program(program, feeds, workers=2).values()))
    for threads, proto in ((1, model), (2, fixed(model, feeds))):
        module = tensorsmith.compile(proto, threads=threads, cache=False)
        found += [list(module.run(feeds).values()) for _ in range(2)]
    for other in found[1:]:
        for got, first in zip(other, found[0], strict=True):
            assert_equal(got, first)
    return found[-1]


def assert_equal(got: np.ndarray, want: np.ndarray) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if got.dtype == object:
        assert got.tolist() == want.tolist()
    else:
        np.testing.assert_array_equal(got, want)


def check(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], wants: Sequence[np.ndarray]) -> None:
    """That every way of running a model gives these outputs."""
    for got, want in zip(results(model, feeds), wants, strict=True):
        assert_equal(got, want)
