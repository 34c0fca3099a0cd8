from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
import toy
from onnx import numpy_helper, parser
from typer.testing import CliRunner

import tensorsmith as ts
from compiler import cache
from compiler.cli.bench import difference
from compiler.cli.bench_engine import save_arrays
from compiler.cli.main import app
from compiler.cli.run import file_name
from compiler.ir.graph import Constant
from compiler.ir.parser import parse_graph
from compiler.ir.printer import print_graph

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save(tmp_path_factory.mktemp("toy") / "toy.tsm")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(toy.small_model(), path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.getbasetemp() / "cli-cache"
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(path))
    monkeypatch.setenv("COLUMNS", "160")
    return path


def call(*arguments: object) -> str:
    """What a subcommand prints; its errors are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tensorsmith", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_run_writes_every_output(saved: Path, tmp_path: Path) -> None:
    x = toy.feeds()["x"]
    np.save(tmp_path / "x.npy", x)
    output = call("run", saved, "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", tmp_path / "out")
    assert output.startswith("y: float32[4, 24], from ")
    assert np.array_equal(np.load(tmp_path / "out" / "y.npy"), toy.expected(x))


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "float8_e5m2"])
def test_run_reads_and_writes_types_that_numpy_lacks(dtype: str, tmp_path: Path) -> None:
    x = np.arange(-4, 4).astype(np.dtype(getattr(ml_dtypes, dtype)))
    number = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    infos = [onnx.helper.make_tensor_value_info(name, number, [8]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "copy", infos[:1], infos[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]), tmp_path / "copy.onnx")
    np.save(tmp_path / "x.npy", x.view(f"V{x.itemsize}"))
    output = call("run", tmp_path / "copy.onnx", "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", tmp_path / "out")
    assert output.startswith(f"y: {dtype}[8], from -4 to 3")
    assert np.load(tmp_path / "out" / "y.npy").tobytes() == x.tobytes()


SEQUENCE = """<ir_version: 9, opset_import: ["" : 20]>
g (seq(float[N]) s, optional(float[M]) o, float[2] x) => (seq(float[]) y, optional(float[M]) z) { y = SequenceInsert (s, x) z = Identity (o) }
"""


def test_sequences_come_from_and_go_to_npz_files(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(SEQUENCE), tmp_path / "g.onnx")
    elements = [np.ones(3, np.float32), np.zeros(0, np.float32)]
    np.savez(tmp_path / "s.npz", *elements)
    np.save(tmp_path / "x.npy", np.float32([5, 7]))
    inputs = ("--input", f"s={tmp_path / 's.npz'}", "--input", f"x={tmp_path / 'x.npy'}")
    printed = call("run", tmp_path / "g.onnx", *inputs, "--output-dir", tmp_path)
    assert "y: seq(float32)[?], 3 elements\n  [3], from 1 to 1, mean 1\n  [0]\n  [2], from 5 to 7, mean 6\n" in printed
    assert "z: optional(float32)[M], absent" in printed
    assert not (tmp_path / "z.npy").exists()
    with np.load(tmp_path / "y.npz") as file:
        for name, wanted in zip(file.files, [*elements, np.float32([5, 7])], strict=True):
            np.testing.assert_array_equal(file[name], wanted)
    assert "tensorsmith" in call("bench", tmp_path / "g.onnx", *inputs, "--repeats", 1)
    with pytest.raises(ts.UserError, match=r"input s is a ndarray; the model takes seq\(float32\)"):
        call("run", tmp_path / "g.onnx", "--input", f"s={tmp_path / 'x.npy'}", "--input", f"x={tmp_path / 'x.npy'}")
    (tmp_path / "s.npz").write_bytes(b"PK no archive")
    with pytest.raises(ts.UserError, match="the file holds no array"):
        call("run", tmp_path / "g.onnx", *inputs)


def test_output_file_names_are_safe_and_distinct() -> None:
    assert file_name("probs", 0) == "probs.npy"
    names = ["a/b", "a_b", "../../x", "", "a:b", ".hidden"]
    files = [file_name(name, index) for index, name in enumerate(names)]
    assert len(set(files)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", file) for file in files)


def test_inspect_shows_tensors_memory_and_kernels(saved: Path) -> None:
    output = call("inspect", saved)
    for part in ("toy for native", "input   x: float32[4, 24]", "output  y: float32[4, 24]", "arena", "stage19", "Plain()"):
        assert part in output


def test_profile_has_a_line_per_kernel(saved: Path) -> None:
    output = call("profile", saved, "--repeats", 3, "--threads", 2)
    assert [line.split()[0] for line in output.splitlines()].count("stage3") == 1
    assert re.search(r"total [\d.]+ us with 2 threads; peak [\d.]+ GFLOP/s", output)


def test_bench_times_a_module(saved: Path) -> None:
    output = call("bench", saved, "--threads", 1, "--repeats", 5)
    assert re.search(r"tensorsmith\W+[\d.]+\W+[\d.]+", output)


def test_compile_then_run_gives_the_same_as_running_the_model(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    shape = ("--input-shape", "x=1x3x8x8")
    assert "MB" in call("compile", model, "-o", tmp_path / "small.tsm", "--threads", 1, *shape)
    call("run", tmp_path / "small.tsm", "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", tmp_path / "a")
    call("run", model, *shape, "--input", f"x={tmp_path / 'x.npy'}", "--output-dir", tmp_path / "b")
    assert np.array_equal(np.load(tmp_path / "a" / "y.npy"), np.load(tmp_path / "b" / "y.npy"))


def test_compile_within_a_budget_shows_the_memory(model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "small.tsm"
    call("compile", model, "-o", saved, "--threads", 1, "--input-shape", "x=1x3x8x8", "--memory-budget", "1.5MB")
    assert re.search(r"arena [\d.]+ MB \(bound [\d.]+ MB\)", call("inspect", saved))
    done = process("compile", model, "-o", saved, "--input-shape", "x=1x3x8x8", "--memory-budget", "1")
    assert done.returncode != 0
    assert "memory_budget is 1 bytes" in done.stderr


def test_bench_against_another_engine_agrees_with_it(model: Path) -> None:
    pytest.importorskip("onnxruntime")
    output = call("bench", model, "--threads", 1, "--repeats", 3, "--input-shape", "x=1x3x8x8", "--against", "onnxruntime")
    row = next(line for line in output.splitlines() if "onnxruntime" in line)
    assert float(re.findall(r"[\d.]+e[-+]\d+", row)[0]) < 1e-5


def test_bench_knows_strings(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(JOINED), tmp_path / "g.onnx")
    np.save(tmp_path / "x.npy", np.array(["a", "é😀", ""]))
    given = ("--input", f"x={tmp_path / 'x.npy'}", "--input", f"z={tmp_path / 'x.npy'}", "--repeats", 1)
    output = call("bench", tmp_path / "g.onnx", *given, "--against", "onnxruntime")
    row = next(line for line in output.splitlines() if "onnxruntime" in line)
    assert row.split()[-2] == "0.0e+00"


JOINED = """<ir_version: 9, opset_import: ["" : 20]>
g (string[N] x, string[N] z) => (string[N] y, string[N] w) { y = StringConcat (x, z) w = Identity (x) }
"""


def test_bench_finds_strings_that_differ(tmp_path: Path) -> None:
    save_arrays(tmp_path / "tensorsmith.npz", [np.array(["a", "b"], object), np.float32([1])])
    for other, wanted in ((["a", "b"], 0.0), (["a", "bc"], np.inf)):
        save_arrays(tmp_path / "other.npz", [np.array(other, object), np.float32([1])])
        assert difference(tmp_path, "other") == wanted


def test_bench_finds_numbers_that_are_none(tmp_path: Path) -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    save_arrays(tmp_path / "tensorsmith.npz", [np.float32([1]), np.float32([nan, inf, 2])])
    for other, wanted in (([nan, inf, 2], 0.0), ([nan, inf, 4], 0.5), ([1, inf, 2], np.inf), ([nan, -inf, 2], np.inf), ([nan, inf], np.inf)):
        save_arrays(tmp_path / "other.npz", [np.float32([1]), np.float32(other)])
        assert difference(tmp_path, "other") == wanted


SHAPE = ("--input-shape", "x=1x3x8x8")


def test_opt_prints_a_graph_that_reads_back(model: Path) -> None:
    weights = [Constant(numpy_helper.to_array(tensor)) for tensor in onnx.load(model).graph.initializer]
    arrays = {constant.digest: constant.array for constant in weights}
    for stage in ("imported", "canonical", "laid-out", "grouped", "planned"):
        text = call("opt", model, *SHAPE, "--stage", stage)
        assert print_graph(parse_graph(text, arrays)).strip() == text.strip()
    assert call("opt", model, *SHAPE) == text
    assert "= group(" not in call("opt", model, "--stage", "canonical")


def test_opt_prints_loops_and_llvm(model: Path) -> None:
    assert "for " in call("opt", model, *SHAPE, "--stage", "loops")
    assert "define void @ts_main(" in call("opt", model, *SHAPE, "--stage", "llvm")


def test_opt_prints_around_the_passes_that_are_named(model: Path) -> None:
    output = call("opt", model, *SHAPE, "--print-before", "group", "--print-after", "group", "--verify")
    assert re.findall("// .*", output) == ["// before group", "// after group"]
    names = re.findall("// after ([a-z-]+)", call("opt", model, *SHAPE, "--print-after", "all"))
    assert names[-4:] == ["join-in-place", "inline-groups", "merge-groups", "plan-memory"]
    assert re.findall("// .*", call("opt", model, "--passes", "simplify,eliminate-dead-code", "--print-after", "all")) != []


POOLED = """<ir_version: 9, opset_import: ["" : 20]>
g (float[1, 2, 32, 32] x) => (float[1, 2, 1, 1] y) {
  a = Relu (x)
  b = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)
  c = MaxPool <kernel_shape = [3, 3]> (b)
  y = GlobalAveragePool (c)
}
"""


def test_opt_keeps_to_a_budget(tmp_path: Path) -> None:
    onnx.save(parser.parse_model(POOLED), tmp_path / "g.onnx")

    def planned(*options: str) -> str:
        return call("opt", tmp_path / "g.onnx", "--threads", 1, "--print-after", "plan-memory", "--print-before", "patch-by-patch", *options)

    assert "// before patch-by-patch" in planned("--memory-budget", "4kB")
    (found,) = re.findall("arena_bytes = ([0-9]+)", planned("--memory-budget", "4kB"))
    assert int(found) <= 4000
    with pytest.raises(ts.UserError, match="no pass called patch-by-patch"):
        planned("--memory-budget", "1MB")


def test_inspect_shows_what_the_passes_did(model: Path, tmp_path: Path) -> None:
    call("compile", model, "-o", tmp_path / "small.tsm", *SHAPE)
    names = [line.split()[0] for line in call("inspect", tmp_path / "small.tsm", "--passes").splitlines()]
    assert names[-2:] == ["plan-memory", "total"]


def test_opt_explains_what_the_passes_did(model: Path) -> None:
    lines = call("opt", model, *SHAPE, "--explain").splitlines()
    assert any(re.fullmatch(r"group: \d+ groups", line) for line in lines)
    assert not any(line.startswith("graph") for line in lines)


def test_opt_explains_matches_and_near_misses(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[2, 3] w)
{
  s = Sigmoid(x)
  y = Mul(x, s)
  t = Sigmoid(z)
  w = Mul(x, t)
}
"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "gates.onnx")
    lines = call("opt", tmp_path / "gates.onnx", "--explain", "--passes", "recover-ops").splitlines()
    misses = ["  swish not at w: %z is not %x", "  scaled-swish not at w: %z is given, not made by mul"]
    assert lines == ["recover-ops: 1 swish", "  swish matched 1: y", *misses]


def test_opt_times_every_pass(model: Path) -> None:
    done = process("opt", model, *SHAPE, "--time-passes")
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split()[0] for line in done.stderr.splitlines()][-2:] == ["plan-memory", "total"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.onnx"], "cannot read the file"),
        (["run", "SAVED"], "inputs x are missing"),
        (["run", "SAVED", "--input", "x"], "cannot read 'x'"),
        (["run", "SAVED", "--input", "x=nowhere.npy"], "cannot read the array"),
        (["run", "SAVED", "--input", "x=pyproject.toml"], "holds no array"),
        (["compile", "."], "does not name a file"),
        (["compile", "MODEL", *SHAPE, "-o", "MODEL"], "would take the model's place"),
        (["run", "SAVED", "--input-shape", "x=4x24"], "fixed shapes"),
        (["run", "MODEL", "--input-shape", "x=4xn"], "cannot read 'x=4xn'"),
        (["compile", "MODEL", "--target", "z80"], "unknown target"),
        (["compile", "MODEL", "--opt-level", "9"], "opt_level is 9"),
        (["opt", "MODEL", "--print-after", "polish"], "no pass called polish"),
        (["opt", "MODEL", "--passes", "polish"], "no pass is called 'polish'"),
        (["opt", "MODEL", "--passes", "group(fuse=True)"], "cannot read 'group(fuse=True)' as a pass"),
        (["opt", "MODEL", "--passes", "group", "--memory-budget", "1MB"], "the passes are given, and a budget"),
        (["profile", "SAVED", "--repeats", "0"], "repeats is 0"),
        (["bench", "SAVED", "--against", "abacus"], "unknown engine 'abacus'"),
        (["bench", "SAVED", "--threads", "0"], "threads is 0"),
    ],
)
def test_mistakes_are_told_apart(saved: Path, model: Path, arguments: list[str], message: str) -> None:
    places = {"SAVED": str(saved), "MODEL": str(model)}
    with pytest.raises(ts.UserError, match=re.escape(message)) as caught:
        call(*[places.get(argument, argument) for argument in arguments])
    assert caught.value.hint


def test_a_mistake_is_one_message_without_a_traceback() -> None:
    done = process("run", "nowhere.onnx")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["error: nowhere.onnx: cannot read the file: No such file or directory", "  what to do: check the path"]


def test_help_lists_the_subcommands() -> None:
    done = process("--help")
    assert done.returncode == 0
    for name in ("compile", "run", "bench", "opt", "inspect", "profile"):
        assert re.search(rf"\b{name}\b", done.stdout)
    assert process("compile", "--unknown").returncode == 2
