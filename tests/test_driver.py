from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
from onnx import TensorProto, helper, numpy_helper

import tensorsmith as ts
from compiler import cache, driver
from compiler.pipeline import passes_for
from compiler.target import resolve
from passes.base import PassReport
from passes.graph.dead_code import EliminateDeadCode
from runtime.artifact import TEMPORARY_SUFFIX, Manifest, PassInfo

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(path))
    return path


class Builds:
    """Stands in for the compiler: every model becomes the toy; counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: object, options: driver.Options) -> driver.Built:
        self.count += 1
        fields = toy.manifest().__dict__ | {"threads": options.threads}
        return driver.Built(Manifest(**fields), toy.image().code, ((0, toy.WEIGHTS),), toy.WEIGHTS.nbytes)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    counted = Builds()
    monkeypatch.setattr(driver, "_build", counted)
    return counted


def _works(module: ts.Module) -> bool:
    feeds = toy.feeds()
    return np.array_equal(module.run(feeds)["y"], toy.expected(feeds["x"]))


def test_what_was_compiled_is_found_again(folder: Path, builds: Builds) -> None:
    assert _works(ts.compile(b"model"))
    assert _works(ts.compile(b"model"))
    assert builds.count == 1
    assert len(list(folder.iterdir())) == 1
    assert _works(ts.compile(b"model", cache=False))
    assert builds.count == 2


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (b"other", {}),
        (b"model", {"threads": 1}),
        (b"model", {"threads": 3}),
        (b"model", {"opt_level": 1}),
        (b"model", {"input_shapes": {"x": (4, 24)}}),
        (b"model", {"target": "x86-64-v3"}),
    ],
)
def test_another_model_or_option_is_another_entry(folder: Path, builds: Builds, model: bytes, options: dict[str, object]) -> None:
    ts.compile(b"model")
    ts.compile(model, **options)
    assert builds.count == 2


def test_a_path_and_its_bytes_are_one_entry(folder: Path, builds: Builds, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"model")
    ts.compile(tmp_path / "m.onnx")
    ts.compile(str(tmp_path / "m.onnx"))
    ts.compile(b"model")
    assert builds.count == 1


def test_external_data_is_part_of_the_key(folder: Path, builds: Builds, tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    graph = helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    for content in (b"12345678", b"12345678", b"12345679"):
        (tmp_path / "weights.bin").write_bytes(content)
        ts.compile(tmp_path / "m.onnx")
    assert builds.count == 2


def test_a_damaged_entry_is_compiled_again(folder: Path, builds: Builds) -> None:
    ts.compile(b"model")
    (entry,) = folder.iterdir()
    damaged = bytearray(entry.read_bytes())
    damaged[-1] ^= 1
    entry.write_bytes(damaged)
    assert _works(ts.compile(b"model"))
    assert builds.count == 2
    entry.write_bytes(damaged[:100])
    assert _works(ts.compile(b"model"))
    assert _works(ts.compile(b"model"))
    assert builds.count == 3


def test_without_a_writable_folder_nothing_is_kept(builds: Builds, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file" / "cache"))
    assert _works(ts.compile(b"model"))
    assert _works(ts.compile(b"model"))
    assert builds.count == 2


def test_the_least_recently_used_entries_go(tmp_path: Path) -> None:
    store = cache.Cache(tmp_path, limit_bytes=250)
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        path = store.path(name)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    assert store.find("old") is not None
    store.shrink(keep="oldest")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["old", "oldest"]
    assert store.find("new") is None


def test_what_killed_writers_left_goes_in_time(tmp_path: Path) -> None:
    old, recent = (tmp_path / f".{name}{TEMPORARY_SUFFIX}" for name in ("old", "recent"))
    for path in (old, recent):
        path.write_bytes(b"")
    os.utime(old, (1000, 1000))
    cache.Cache(tmp_path).shrink(keep="any")
    assert list(tmp_path.iterdir()) == [recent]


def _compile_many(folder: str, queue: object) -> None:
    os.environ[cache.FOLDER_VARIABLE] = folder
    driver._build = Builds()
    queue.put(all(_works(ts.compile(bytes([number % 3]))) for number in range(30)))


def test_processes_share_the_cache(folder: Path) -> None:
    toy.image()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_compile_many, args=(str(folder), queue)) for _ in range(4)]
    for child in children:
        child.start()
    assert [queue.get(timeout=30) for _ in children] == [True] * 4
    for child in children:
        child.join(10)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "z80"}, "unknown target 'z80'"),
        ({"target": 5}, "target is a int"),
        ({"threads": 0}, "threads is 0"),
        ({"opt_level": 4}, "opt_level is 4"),
        ({"opt_level": True}, "opt_level is True"),
        ({"opt_level": "3"}, "opt_level is '3'"),
        ({"input_shapes": [1, 2]}, "input_shapes is a list"),
        ({"input_shapes": {"x": (1, "n")}}, "shape of 'x'"),
        ({"input_shapes": {"x": (1, -1)}}, "shape of 'x'"),
        ({"input_shapes": {"x": 3}}, "shape of 'x'"),
        ({"input_shapes": {3: (1,)}}, "shape of 3"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ts.UserError, match=message) as caught:
        ts.compile(b"model", **options)
    assert caught.value.hint


def test_what_is_no_model_is_named(folder: Path) -> None:
    with pytest.raises(ts.UserError, match="the model is a int"):
        ts.compile(42)
    for path, reason in (("nowhere/model.onnx", "does not exist"), (folder.parent, "is a folder"), ("a\0b", "null byte"), ("x" * 300, "too long")):
        with pytest.raises(ts.UserError, match=reason):
            ts.compile(path)


def test_sizes_that_no_address_reaches_are_refused() -> None:
    for batch in (1 << 40, 1 << 62, 10**30):
        with pytest.raises(ts.UserError, match=r"x needs .* bytes"):
            ts.compile(toy.small_model(), input_shapes={"x": (batch, 3, 8, 8)}, cache=False)


def test_a_run_that_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ts.compile(toy.small_model(), input_shapes={"x": (1, 3, 8, 8)}, cache=False)

    def full(*_: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(module, "_execute", full)  # asking a machine that overcommits for terabytes would bring it down
    with pytest.raises(ts.UserError, match="more memory than there is"):
        module.run({info.name: np.zeros(info.shape, info.dtype) for info in module.inputs})


def test_targets_that_no_code_can_be_made_for_are_refused() -> None:
    shapes = {"x": (1, 3, 8, 8)}
    linux = "x86_64-unknown-linux-gnu"
    for triple, features, reason in (
        ("nonsense", ("avx2", "fma"), "nonsense"),
        ("x86_64-pc-windows-msvc", ("avx2", "fma"), "windows"),
        (linux, ("avx2",), "no fma"),
    ):
        with pytest.raises(ts.UserError, match=reason):
            ts.compile(toy.small_model(), ts.Target("odd", triple, "", features, 256, 16), input_shapes=shapes, cache=False)
    unknown_cpu = ts.Target("odd", linux, "no-such-cpu", ("avx2", "fma"), 256, 16)
    assert ts.compile(toy.small_model(), unknown_cpu, threads=1, input_shapes=shapes, cache=False).target == "odd"
    for registers, bits in ((16, 100), (16, 0), (16, -256), (0, 256)):
        with pytest.raises(ts.UserError, match=r"target odd: .* vector registers"):
            ts.Target("odd", linux, "", (), bits, registers)


def test_what_is_compiled_for_one_worker_is_run_by_several(folder: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        sums (float[1, 64, 40, 40] x) => (float[1, 64, 40, 40] y) <float[64, 64, 1, 1] w>
        {
            a = Tanh(x)
            b = Conv(a, w)
            c = Tanh(b)
            d = Conv(c, w)
            e = Tanh(d)
            f = Add(a, e)
            y = Conv(f, w)
        }""")
    rng = np.random.default_rng(0)
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(0, 0.1, (64, 64, 1, 1)).astype(np.float32), "w"))
    x = rng.standard_normal((1, 64, 40, 40)).astype(np.float32)
    module = ts.compile(model, threads=1)
    module.save(tmp_path / "sums.tsm")
    for threads in (2, 3):
        loaded = ts.load(tmp_path / "sums.tsm", threads=threads)
        for _ in range(3):
            assert np.array_equal(loaded.run({"x": x})["y"], module.run({"x": x})["y"])


@pytest.mark.parametrize("opt_level", [0, 3])
def test_a_model_compiles_runs_saves_and_loads(folder: Path, tmp_path: Path, opt_level: int) -> None:
    from onnx.reference import ReferenceEvaluator

    model = toy.small_model()
    module = ts.compile(model, threads=2, input_shapes={"x": (2, 3, 8, 8)}, opt_level=opt_level)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    (got,) = module(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    module.save(tmp_path / "small.tsm")
    loaded = ts.load(tmp_path / "small.tsm")
    assert loaded.threads == 2
    assert [each.name for each in loaded.report()] == [each.name for each in passes_for(resolve("native"), opt_level)]
    assert loaded.report() == module.report()
    assert loaded.report()[0].nodes_before > 0
    assert all(each.seconds > 0 for each in loaded.report())
    assert np.array_equal(loaded.run({"x": x})["y"], got)
    assert np.array_equal(ts.compile(model.SerializeToString(), threads=1, input_shapes={"x": (2, 3, 8, 8)}, opt_level=opt_level)(x)[0], got)


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    """Under two names, transposed, and in kernels that differ: what the kernels read is the same."""
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    stored = {"w": weights, "again": weights.copy(), "turned": np.ascontiguousarray(weights.T)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "again"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "turned"], ["e"], transB=1),
        helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "back"], ["y"]),
    ]
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (8, 256))] for name in "xy"]
    graph = helper.make_graph(nodes, "tied", *sides, [numpy_helper.from_array(array, name) for name, array in stored.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    module = ts.compile(model, threads=1, cache=False)
    path = tmp_path / "tied.tsm"
    module.save(path)
    assert weights.nbytes <= path.stat().st_size <= 1.2 * weights.nbytes
    x = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32) / 16
    want = np.maximum(1 / (1 + np.exp(-(np.tanh(x @ weights) @ weights))) @ weights, 0) @ weights
    np.testing.assert_allclose(ts.load(path).run({"x": x})["y"], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("collected", [True, False])
def test_garbage_is_collected_afterwards_as_before(collected: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if collected else gc.disable)()
        ts.compile(toy.small_model(), threads=1, input_shapes={"x": (1, 3, 8, 8)}, cache=False)
        assert gc.isenabled() == collected
        with pytest.raises(ts.UserError):
            ts.compile(toy.small_model(), threads=1, memory_budget=1, input_shapes={"x": (1, 3, 8, 8)}, cache=False)
        assert gc.isenabled() == collected
    finally:
        (gc.enable if was else gc.disable)()


def test_a_report_keeps_the_first_notes() -> None:
    notes = tuple(map(str, range(20)))
    kept = driver._pass_info(PassReport(EliminateDeadCode(), True, 0.25, 3, 2, notes))
    assert kept == PassInfo("eliminate-dead-code", 0.25, 3, 2, (*notes[:8], "and 12 more"))


def test_a_hit_needs_neither_onnx_nor_llvm_and_is_quick(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(toy.small_model(), path)
    ts.compile(path, threads=1, input_shapes={"x": (1, 3, 8, 8)})
    program = f"""
import sys
import tensorsmith
tensorsmith.compile({str(path)!r}, threads=1, input_shapes={{"x": (1, 3, 8, 8)}})
print(sorted({{"onnx", "llvmlite", "networkx"}} & set(sys.modules)))
"""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.strip() == "[]"
    assert min(seconds) < 0.6
