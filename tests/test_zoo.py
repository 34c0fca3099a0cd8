"""Whole models: every stage's text reads back as the same program, and the compiled module agrees with ONNX Runtime."""

from __future__ import annotations

import pytest
from zoo_models import load, needs_zoo, onnxruntime_outputs, relative_difference

import tensorsmith as ts
from compiler.ir.loop import Access, For, If, LoopKind, Stmt, Store
from compiler.ir.parser import parse_graph
from compiler.ir.printer import constants_of, equal_graphs, print_graph
from compiler.ir.program_text import parse_program, print_program, weights_of
from compiler.lowering import lower
from compiler.pipeline import optimize
from compiler.target import native
from frontend.onnx.importer import import_model

MODELS = [
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv2_100_dynamo",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mnasnet_100",
    "spnasnet_100",
    "squeezenet1_1",
    "resnet18",
    "resnet50",
    "efficientnet_lite0",
    "mobileone_s0_train",
    "mobileone_s0_fused",
    "vit_tiny",
    "vit_tiny_legacy",
    "lcnet_100",
    "unet_small",
    "espcn_x3",
    "ds_cnn_kws",
    "real/face_slim_320",
]


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_model_agrees_with_onnxruntime(name: str) -> None:
    model, feeds = load(name)
    module = ts.compile(model, threads=2, cache=False)
    got = module.run(feeds)
    want = onnxruntime_outputs(model, feeds)
    assert list(got) == [o.name for o in model.graph.output]
    for output, expected in zip(got.values(), want, strict=True):
        assert output.shape == expected.shape
        assert output.dtype == expected.dtype
        assert relative_difference(output, expected) <= 5e-5


@needs_zoo
@pytest.mark.parametrize("name", MODELS)
def test_every_stage_prints_and_parses_back(name: str) -> None:
    model, _ = load(name)
    target = native()
    graph = import_model(model)
    stages = [graph]
    planned, _ = optimize(graph, target, verify=True, observer=lambda step, result, report: stages.append(result))
    for stage in stages:
        assert equal_graphs(parse_graph(print_graph(stage), constants_of(stage)), stage)
    program = lower(planned, target, 2)
    for function in program.functions:
        own = {buffer.name for buffer in function.buffers if buffer.access is Access.SCRATCH}
        assert not any(stores_alone(stmt, own) for stmt in function.body), function.name
    text = print_program(program)
    assert print_program(parse_program(text, weights_of(program))) == text


def stores_alone(stmt: Stmt, own: set[str]) -> bool:
    """Whether a top-level statement writes memory outside parallel loops that is not a worker's own: an in-place kernel would apply twice."""
    match stmt:
        case For():
            return stmt.kind is not LoopKind.PARALLEL and any(stores_alone(inner, own) for inner in stmt.body)
        case If():
            return any(stores_alone(inner, own) for inner in (*stmt.then, *stmt.orelse))
        case _:
            return isinstance(stmt, Store) and stmt.buffer not in own
