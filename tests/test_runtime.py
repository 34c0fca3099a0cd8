from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import ArtifactError, UserError
from runtime import artifact
from runtime.cpus import available_cpus
from runtime.module import Module, load

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save(tmp_path_factory.mktemp("toy") / "toy.tsm")


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_number_of_workers_gives_the_exact_result(saved: Path, threads: int) -> None:
    module = load(saved, threads=threads)
    for seed in range(20):
        feeds = toy.feeds(seed)
        assert np.array_equal(module.run(feeds)["y"], toy.expected(feeds["x"]))


def test_positional_call_and_description(saved: Path) -> None:
    module = load(saved)
    x = toy.feeds()["x"]
    (y,) = module(x)
    assert np.array_equal(y, toy.expected(x))
    assert [str(info) for info in module.inputs] == ["x: float32[4, 24]"]
    assert module.outputs[0].shape == (4, 24)
    assert module.threads == 1
    assert module.memory().weights == toy.WEIGHTS.nbytes
    with pytest.raises(UserError, match="2 inputs were given"):
        module(x, x)


def test_inputs_in_any_memory_order_are_taken(saved: Path) -> None:
    module = load(saved)
    x = toy.feeds()["x"]
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], memoryview(x)):
        assert np.array_equal(module.run({"x": view})["y"], toy.expected(x))
    odd = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    odd[...] = x
    assert np.array_equal(module.run({"x": odd})["y"], toy.expected(x))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "inputs x are missing"),
        ({"z": toy.feeds()["x"]}, "x are missing; the model has no inputs called z"),
        ({**toy.feeds(), "z": 1}, "no inputs called z"),
        ({"x": np.zeros((4, 24))}, "is float64; the model takes float32"),
        ({"x": np.zeros((4, 24), ">f4")}, "is >f4; the model takes float32"),
        ({"x": [[1.0], [1.0, 2.0]]}, "is no array"),
        ({"x": np.zeros((24, 4), np.float32)}, r"has shape \[24, 4\]; the model takes \[4, 24\]"),
        ({"x": np.zeros(96, np.float32)}, r"has shape \[96\]; the model takes \[4, 24\]"),
        ([1], "feeds is a list"),
    ],
)
def test_feeds_that_do_not_fit_are_named(saved: Path, feeds: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(saved).run(feeds)
    assert caught.value.hint
    assert caught.value.where == "toy"


def test_symbolic_dims_are_bound_by_name(tmp_path: Path) -> None:
    info = artifact.TensorInfo
    shape = ("n", 24)
    state = artifact.State(10, ("n",), 1, 5, 6, 9, (7,))
    module = toy.module(tmp_path, inputs=(info("x", "float32", shape),), outputs=(info("y", "float32", shape),), state=state, arena_bytes=None)
    x = toy.feeds()["x"]
    assert np.array_equal(module.run({"x": x})["y"], toy.expected(x))
    with pytest.raises(UserError, match=r"takes \[n, 24\]"):
        module.run({"x": x[:, :23]})
    square = toy.module(tmp_path, inputs=(info("x", "float32", ("n", "n")),))
    with pytest.raises(UserError, match="where n = 4"):
        square.run({"x": x})


def test_denormals_are_flushed_only_while_the_model_runs(tmp_path: Path) -> None:
    module = toy.module(tmp_path)
    tiny = np.full((4, 24), 1e-38, np.float32)
    y = module.run({"x": tiny})["y"]
    assert np.array_equal(y, toy.expected(np.zeros_like(tiny)))
    assert tiny[0, 0] * np.float32(0.5) != 0


def test_threads_are_checked(saved: Path) -> None:
    for threads in (0, -1, 1025, 1.5, True, "2"):
        with pytest.raises(UserError, match="threads is"):
            load(saved, threads=threads)
    assert toy.module(saved.parent, threads=None).threads == 1
    assert load(saved, threads=np.int64(2)).threads == 2


def test_threads_default_to_the_available_cpus(tmp_path: Path) -> None:
    assert load(toy.save(tmp_path / "m.tsm", threads=None)).threads == available_cpus()


def test_many_python_threads_run_one_module(saved: Path) -> None:
    module = load(saved, threads=2)
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        feeds = toy.feeds(seed)
        want = toy.expected(feeds["x"])
        start.wait()
        return all(np.array_equal(module.run(feeds)["y"], want) for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


def test_two_modules_share_a_pool_and_survive_each_other(tmp_path: Path) -> None:
    first, second = toy.module(tmp_path, threads=2), toy.module(tmp_path, threads=2)
    feeds = toy.feeds()
    for _ in range(50):
        assert np.array_equal(first.run(feeds)["y"], second.run(feeds)["y"])
    del first
    assert np.array_equal(second.run(feeds)["y"], toy.expected(feeds["x"]))


def test_oversubscription_degrades_but_does_not_collapse(saved: Path) -> None:
    feeds = toy.feeds()

    def seconds(threads: int) -> float:
        module = load(saved, threads=threads)
        module.run(feeds)
        start = time.perf_counter()
        for _ in range(20):
            module.run(feeds)
        return (time.perf_counter() - start) / 20

    # STAGES + 1 barriers with nothing between them: the cost of sleeping and waking alone.
    assert seconds(2 * available_cpus()) < 0.05


def _child(module: Module, feeds: dict[str, np.ndarray], queue: object) -> None:
    queue.put(module.run(feeds)["y"])


def test_a_forked_child_makes_its_own_pool(saved: Path) -> None:
    module = load(saved, threads=2)
    feeds = toy.feeds()
    want = module.run(feeds)["y"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(module, feeds, queue))
    child.start()
    assert np.array_equal(queue.get(timeout=20), want)
    child.join(20)
    assert child.exitcode == 0
    assert np.array_equal(module.run(feeds)["y"], want)


_STILL_RUNNING = "threading.Thread(target=forever, daemon=True).start(); time.sleep(0.05)"


@pytest.mark.parametrize("ending", ["pass", "import sys; sys.exit(3)", "module = None", _STILL_RUNNING])
def test_a_process_with_a_pool_ends_cleanly_without_compiler_or_onnx(saved: Path, ending: str) -> None:
    program = f"""
import sys
for name in ("onnx", "llvmlite", "networkx", "typer", "rich", "platformdirs", "ml_dtypes"):
    sys.modules[name] = None
import threading, time
import numpy as np
from runtime.module import load
module = load({str(saved)!r}, threads=2)
x = np.ones((4, 24), np.float32)
def forever():
    while True:
        module.run({{"x": x}})
print(module.run({{"x": x}})["y"].sum())
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (3 if "exit" in ending else 0, "")
    assert float(done.stdout) == pytest.approx(float(toy.expected(np.ones((4, 24), np.float32)).sum()))


def test_a_call_costs_less_than_15_microseconds_beside_the_kernels(saved: Path) -> None:
    module, feeds = load(saved), toy.feeds()
    times = []
    for _ in range(2000):
        start = time.perf_counter_ns()
        module.run(feeds)
        times.append(time.perf_counter_ns() - start)
    assert min(times) / 1e3 < 15 + STAGE_US * toy.STAGES


STAGE_US = 0.2
"""96 scalar steps of about 4 cycles of load, multiply, add and store."""


@pytest.mark.parametrize("threads", [1, 2])
def test_profile_has_a_row_per_kernel_that_add_up(saved: Path, threads: int) -> None:
    profile = load(saved, threads=threads).profile(toy.feeds(), repeats=30)
    assert [row.name for row in profile.rows] == [f"stage{i}" for i in range(toy.STAGES)]
    assert all(row.us > 0 for row in profile.rows)
    if threads == 1:  # with two, another process's load makes times that have no one median
        assert 0.5 < sum(row.us for row in profile.rows) / profile.total_us < 1.5
    assert 1 < profile.peak_gflops < 1e5
    assert "stage7" in str(profile)
    given_peak = load(saved, threads=threads).profile(toy.feeds(), repeats=3, peak_gflops=10.0)
    assert given_peak.peak_gflops == 10.0 * threads
    for repeats in (0, 2.5, "9"):
        with pytest.raises(UserError, match="repeats is"):
            load(saved).profile(toy.feeds(), repeats=repeats)


def test_save_writes_the_same_file_whole(saved: Path, tmp_path: Path) -> None:
    load(saved).save(tmp_path / "copy.tsm")
    assert (tmp_path / "copy.tsm").read_bytes() == saved.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["copy.tsm"]
    with pytest.raises(UserError, match="cannot write"):
        load(saved).save(tmp_path / "nowhere" / "copy.tsm")


@pytest.mark.parametrize("path", [None, 3, b"m.tsm", ["m.tsm"], "", ".", "a\0b"])
def test_what_names_no_file_is_refused(saved: Path, path: object) -> None:
    for action in (load, load(saved).save):
        with pytest.raises(UserError, match=r"path: ") as caught:
            action(path)
        assert caught.value.hint


def test_save_says_why_it_cannot(saved: Path, tmp_path: Path) -> None:
    module = load(saved)
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "file" / "m.tsm", "Not a directory"), (tmp_path / ("y" * 300), "too long"), (tmp_path, "not a file")):
        with pytest.raises(UserError, match=reason):
            module.save(path)
    with pytest.raises(UserError, match="not a file"):
        module.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    module.save(tmp_path / ("y" * 255))
    assert len(list(tmp_path.iterdir())) == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found(saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    sections = [(0, 64), (64, artifact.PAGE), (artifact.PAGE, len(whole) - toy.WEIGHTS.nbytes), (len(whole) - toy.WEIGHTS.nbytes, len(whole))]
    low, high = data.draw(st.sampled_from(sections))
    at, bit = data.draw(st.integers(low, high - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << bit
    path = tmp_path_factory.mktemp("damaged") / "toy.tsm"
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError) as caught:
        load(path)
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 10, 64, 1000, -1])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.tsm"
    path.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"cut off|too few"):
        load(path)


def test_a_longer_file_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.tsm"
    path.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="where its header says"):
        load(path)


def test_another_format_version_is_named(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[8:12] = struct.pack("<I", 99)
    (tmp_path / "new.tsm").write_bytes(data)
    with pytest.raises(ArtifactError, match="format version 99"):
        load(tmp_path / "new.tsm")


def test_files_that_are_no_artefacts(tmp_path: Path) -> None:
    (tmp_path / "text.tsm").write_bytes(b"hello" * 100)
    with pytest.raises(ArtifactError, match="not a compiled model"):
        load(tmp_path / "text.tsm")
    with pytest.raises(ArtifactError, match="No such file"):
        load(tmp_path / "none.tsm")
    with pytest.raises(ArtifactError, match="Is a directory"):
        load(tmp_path)


def test_another_cpu_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no avx1024"):
        toy.module(tmp_path, cpu_flags=("avx2", "avx1024"))
    with pytest.raises(ArtifactError, match="riscv64"):
        toy.module(tmp_path, machine="riscv64")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["manifest"].pop("kernels"),
        lambda m: m["manifest"].update(surprise=1),
        lambda m: m["sections"]["weights"].update(size=1 << 40),
        lambda m: m["sections"]["weights"].update(size="x"),
        lambda m: m["sections"]["code"].update(sha256="zz"),
        lambda m: m["manifest"]["entries"].update(ts_run=1 << 30),
        lambda m: m["manifest"]["entries"].pop("ts_run"),
    ],
)
def test_a_well_summed_but_wrong_manifest_is_refused(saved: Path, tmp_path: Path, change: object) -> None:
    whole = saved.read_bytes()
    size = struct.unpack_from("<Q", whole, 16)[0]
    document = json.loads(whole[64 : 64 + size])
    change(document)
    text = json.dumps(document).encode().ljust(2 * artifact.PAGE - 64)
    rest = whole[64 + size :]
    total, digest = 64 + len(text) + len(rest), hashlib.sha256(text).digest()
    header = struct.pack("<8sIIQQ32s", artifact.MAGIC, artifact.FORMAT_VERSION, 0, len(text), total, digest)
    (tmp_path / "wrong.tsm").write_bytes(header + text + rest)
    with pytest.raises(ArtifactError):
        load(tmp_path / "wrong.tsm")


def test_code_runs_from_a_file_system_that_forbids_execution(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = artifact.mmap.mmap

    def refusing(descriptor: int, *args: object, **options: int) -> object:
        if descriptor != -1 and options.get("prot", 0) & artifact.mmap.PROT_EXEC:
            raise PermissionError(1, "Operation not permitted")
        return real(descriptor, *args, **options)

    monkeypatch.setattr(artifact.mmap, "mmap", refusing)
    feeds = toy.feeds()
    assert np.array_equal(load(saved).run(feeds)["y"], toy.expected(feeds["x"]))


def test_available_cpus_respects_affinity() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, mask)
