"""Small things to test with: an ONNX model, and a module written by hand.

The module has STAGES kernels that reverse, scale and shift 96 numbers, split among the workers. Every kernel reads what others wrote."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from backends.llvm import spmd
from backends.llvm.codegen import object_code
from backends.llvm.engine import ENTRIES
from backends.llvm.image import Image, link
from compiler.target import native
from runtime.artifact import KernelInfo, Manifest, State, TensorInfo, write
from runtime.cpus import cpu_flags
from runtime.module import Module, load

SIZE = 96
STAGES = 20
WEIGHTS = np.linspace(-1, 1, SIZE, dtype=np.float32)

_MAIN = """
declare i64 @llvm.readcyclecounter()

define internal void @stage(ptr %from, ptr %to, ptr %weights, i64 %tid, i64 %n) nounwind {
entry:
  br label %test
test:
  %i = phi i64 [%tid, %entry], [%next, %body]
  %more = icmp slt i64 %i, 96
  br i1 %more, label %body, label %done
body:
  %j = sub i64 95, %i
  %pa = getelementptr float, ptr %from, i64 %j
  %a = load float, ptr %pa
  %pw = getelementptr float, ptr %weights, i64 %i
  %w = load float, ptr %pw
  %m = fmul float %a, 7.5e-1
  %y = fadd float %m, %w
  %py = getelementptr float, ptr %to, i64 %i
  store float %y, ptr %py
  %next = add i64 %i, %n
  br label %test
done:
  ret void
}

define void @ts_prepare(ptr %state) nounwind {
  %n.at = getelementptr i64, ptr %state, i64 4
  %n = load i64, ptr %n.at
  %arena.at = getelementptr i64, ptr %state, i64 5
  store i64 768, ptr %arena.at
  %scratch.at = getelementptr i64, ptr %state, i64 6
  store i64 0, ptr %scratch.at
  %rows.at = getelementptr i64, ptr %state, i64 7
  store i64 %n, ptr %rows.at
  %columns.at = getelementptr i64, ptr %state, i64 8
  store i64 24, ptr %columns.at
  ret void
}

define void @ts_main(ptr %slots, i64 %tid, i64 %n, ptr %pool, ptr %stamps) nounwind {
  %even = load ptr, ptr %slots
  %odd = getelementptr i8, ptr %even, i64 384
  %s1 = getelementptr ptr, ptr %slots, i64 1
  %weights = load ptr, ptr %s1
  %s5 = getelementptr ptr, ptr %slots, i64 5
  %in = load ptr, ptr %s5
  %s6 = getelementptr ptr, ptr %slots, i64 6
  %out = load ptr, ptr %s6
  %first = icmp eq i64 %tid, 0
  %wanted = icmp ne ptr %stamps, null
  %stamping = and i1 %first, %wanted
  %now = alloca i64
"""


def _stamp(number: int) -> str:
    """The cycle count to words 0 and 1 for numbers 0 and 1, and the cycles since the last stamp to any other."""
    before = f"""
  %begin{number} = load i64, ptr %now
  %took{number} = sub i64 %cycles{number}, %begin{number}"""
    return f"""
  br i1 %stamping, label %stamp{number}, label %go{number}
stamp{number}:
  %cycles{number} = call i64 @llvm.readcyclecounter()
  %at{number} = getelementptr i64, ptr %stamps, i64 {number}{before if number > 1 else ""}
  store i64 {f"%took{number}" if number > 1 else f"%cycles{number}"}, ptr %at{number}
  store i64 %cycles{number}, ptr %now
  br label %go{number}
go{number}:
"""


@cache
def image() -> Image:
    """The code of the toy."""
    lines = [_MAIN, _stamp(0)]
    for stage in range(STAGES):
        source = "%in" if stage == 0 else ("%even", "%odd")[stage % 2]
        sink = "%out" if stage == STAGES - 1 else ("%odd", "%even")[stage % 2]
        lines.append(f"  call void @stage(ptr {source}, ptr {sink}, ptr %weights, i64 %tid, i64 %n)")
        lines.append("  call void @ts_barrier(ptr %pool, i64 %n)")
        lines.append(_stamp(stage + 2))
    lines.append(_stamp(1) + "  ret void\n}\n")
    target = native()
    return link([object_code("\n".join(lines) + spmd.text(target), target)], ENTRIES)


def manifest() -> Manifest:
    """The toy's manifest."""
    target = native()
    return Manifest(
        name="toy",
        target=target.name,
        machine="x86_64",
        cpu_flags=cpu_flags(target.features),
        threads=1,
        inputs=(TensorInfo("x", "float32", (4, 24)),),
        outputs=(TensorInfo("y", "float32", (4, 24)),),
        kernels=tuple(KernelInfo(f"stage{i}", "toy", "Plain()", 2 * SIZE, 12 * SIZE) for i in range(STAGES)),
        arena_bytes=8 * SIZE,
        arena_bound_bytes=8 * SIZE,
        arena_peak="stage0",
        scratch_bytes=0,
        entries=image().entries,
        peak_flops=2 * spmd.PEAK_CHAINS * target.lanes,
        state=State(10, (), 0, 5, 6, 9, (7,)),
    )


def save(path: Path, **changes: object) -> Path:
    """The toy as an artefact, with some fields of its manifest changed."""
    write(path, replace(manifest(), **changes), image().code, [(0, WEIGHTS)], WEIGHTS.nbytes)
    return path


def module(folder: Path, threads: int = 1, **changes: object) -> Module:
    """The toy, loaded."""
    return load(save(folder / "toy.tsm", **changes), threads=threads)


def feeds(seed: int = 0) -> dict[str, np.ndarray]:
    """A random input."""
    return {"x": np.random.default_rng(seed).standard_normal((4, 24)).astype(np.float32)}


def expected(x: np.ndarray) -> np.ndarray:
    """What the toy computes, in numpy."""
    values = x.reshape(-1)
    for _ in range(STAGES):
        values = values[::-1] * np.float32(0.75) + WEIGHTS
    return values.reshape(x.shape)


def small_model() -> onnx.ModelProto:
    """Conv, Relu, GlobalAveragePool, Flatten, Gemm: x [n, 3, 8, 8] to y [n, 5]."""
    random = np.random.default_rng(1)
    weights = {"w": random.standard_normal((6, 3, 3, 3)), "b": random.standard_normal(6), "g": random.standard_normal((6, 5))}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "g"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
