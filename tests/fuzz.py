"""Damaged models through the whole compiler: each is refused with a UserError, or compiled and run to what the interpreter computes.

    python tests/fuzz.py --seed 1 --count 5000

Workers run with bounded memory and a time limit for each model; one that dies names the model it died of. A model is told by seed and
number alone: ``--only N`` runs it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

ROOM_BYTES = 2 << 30
"""Memory for one model, beyond what the worker has when it starts."""
SECONDS = 10
"""Time for one model."""


@dataclass(frozen=True)
class Finding:
    """A model that was neither refused nor run as it should be."""

    number: int
    what: str


def fuzz(seed: int, count: int, workers: int = 2, seconds: float = SECONDS) -> tuple[Counter[str], list[Finding]]:
    """How often each outcome was met among ``count`` models, and what was found; ``seconds`` is the time for one."""
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    threads = [threading.Thread(target=_drive, args=(seed, range(k, count, workers), seconds, outcomes, findings)) for k in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, sorted(findings, key=lambda finding: finding.number)


def _drive(seed: int, numbers: range, seconds: float, outcomes: Counter[str], findings: list[Finding]) -> None:
    """Runs workers over numbers, a new one after the model that ends one."""
    while numbers:
        command = [
            sys.executable,
            __file__,
            "--worker",
            f"{numbers.start}:{numbers.stop}:{numbers.step}",
            "--seed",
            str(seed),
            "--seconds",
            str(seconds),
        ]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as worker,
        ):
            assert worker.stdout is not None
            current = None
            for line in worker.stdout:
                kind, number, rest = line.rstrip("\n").split(" ", 2)
                if kind == "begin":
                    current = int(number)
                    numbers = range(current + numbers.step, numbers.stop, numbers.step)
                    continue
                current = None
                outcomes[kind] += 1
                if kind == "found":
                    findings.append(Finding(int(number), rest.replace("\x1f", "\n")))
            status = worker.wait()
            errors.seek(0)
            tail = errors.read()[-4000:]
            if current is not None:
                outcomes["found"] += 1
                findings.append(Finding(current, f"the worker ended with status {status}\n{tail}"))
            elif status:
                findings.append(Finding(-1, f"a worker ended between models with status {status}\n{tail}"))
                return


def _work(seed: int, numbers: range, seconds: float) -> None:
    """Runs the models of these numbers in this process, under its limits; prints what became of each."""
    with tempfile.TemporaryDirectory(prefix="tensorsmith-fuzz-") as name:
        case = _Case(seed, Path(name).resolve())
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ROOM_BYTES, size + ROOM_BYTES))
        for number in numbers:
            print(f"begin {number} -")
            faulthandler.dump_traceback_later(seconds, exit=True)
            outcome, what = case.run(number)
            faulthandler.cancel_dump_traceback_later()
            print(f"{outcome} {number} {what}".replace("\n", "\x1f"))


class _Case:
    """Everything a worker needs to run one model after another in one folder."""

    def __init__(self, seed: int, folder: Path) -> None:
        from fuzz_mutations import surroundings

        self._seed = seed
        self._inside = surroundings(folder)
        self._opened: list[str] = []
        sys.addaudithook(self._watch)

    def _watch(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and Path(args[0]).name in ("secret", "link", "passwd", "zero", "fifo"):
            self._opened.append(args[0])

    def run(self, number: int) -> tuple[str, str]:
        """The outcome (refused, run, compiled, found) and what is to be said of it."""
        import fuzz_models
        import fuzz_mutations

        from compiler.errors import UserError

        rng = random.Random(f"{self._seed}/{number}")
        index = rng.randrange(fuzz_models.several() if rng.random() < 0.25 else len(fuzz_models.models()))
        name = fuzz_models.models()[index][0]
        data, done = fuzz_mutations.mutated(rng, fuzz_models.sound_model(index))
        path = self._inside / "model.onnx"
        path.write_bytes(data)
        self._opened.clear()
        begin = time.perf_counter()
        try:
            outcome = self._compile(path, rng)
        except UserError as error:
            outcome = "refused" if error.what and error.where and error.hint else f"an error without place or advice: {error}"
        except BaseException:  # noqa: BLE001 # whatever it is, it is what this looks for
            outcome = traceback.format_exc()
        if self._opened:
            outcome = f"opened {self._opened}"
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > ROOM_BYTES:
            outcome = "needs too much memory"
        good = outcome in ("refused", "run", "compiled")
        return ("found", f"{name}; {done}; {time.perf_counter() - begin:.1f} s\n{outcome}") if not good else (outcome, done)

    def _compile(self, path: Path, rng: random.Random) -> str:
        import numpy as np

        import tensorsmith
        from compiler.ir.interp import interpret
        from frontend.onnx.importer import import_model
        from runtime.containers import packed, unpacked
        from runtime.module import numpy_dtype

        shapes = _bound_dims(path) if rng.random() < 0.7 else {}
        module = tensorsmith.compile(path, threads=1, cache=False, input_shapes=shapes, opt_level=rng.choice((0, 1, 3)))
        if _runs_long(path):
            return "compiled"
        sizes = [[n if isinstance(n, int) else 3 for n in info.shape] for info in (*module.inputs, *module.outputs)]
        if sum(prod(max(1, n) for n in size) for size in sizes) > 1 << 22:
            return "compiled"
        random_array = np.random.default_rng(rng.randrange(1 << 30))
        arrays = [random_array.uniform(0, 3, size) for size in sizes[: len(module.inputs)]]
        feeds: dict[str, Any] = {}
        tensors: list[Any] = []
        for info, array in zip(module.inputs, arrays, strict=True):
            dtype = numpy_dtype(info.elements)
            feed = array.astype(dtype)
            absent = info.is_optional and rng.random() < 0.5
            feeds[info.name] = None if absent else [feed] * rng.randrange(4) if info.is_sequence else feed
            tensors += packed(info, dtype, feeds[info.name], {}, lambda _, x, __: x, "") if info.tensors else [feed]
        got = module.run(feeds)
        graph = import_model(path, shapes)
        try:
            want = iter(interpret(graph, {value.name: array for value, array in zip(graph.inputs, tensors, strict=True)}).values())
        except IndexError:  # an index of the data is out of range, which native code clamps
            return "compiled"
        for info in module.outputs:
            wanted = unpacked(info, [next(want) for _ in info.tensors]) if info.tensors else next(want)
            if wrong := _difference(got[info.name], wanted):
                return f"output {info.name}: {wrong}"
        return "run"


def _runs_long(path: Path) -> bool:
    """Whether a model may rightly loop for hours: it has a loop, and a number that tells it to go on."""
    import onnx
    from fuzz_mutations import nodes_of, tensors_of

    model = onnx.ModelProto.FromString(path.read_bytes())
    if not any(node.op_type == "Loop" for node in nodes_of(model)):
        return False
    counts = [t for t in tensors_of(model) if t.data_type == onnx.TensorProto.INT64]
    try:
        return any(t.data_location == onnx.TensorProto.EXTERNAL or onnx.numpy_helper.to_array(t).max(initial=0) > 10**6 for t in counts)
    except ValueError:  # a tensor that is not used, and cannot be
        return True


def _bound_dims(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes for the inputs of a model as far as it can be read: 3 for each dim that is not a number."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
        given = {t.name for t in model.graph.initializer}
        shapes = {
            v.name: tuple(d.dim_value if d.HasField("dim_value") else 3 for d in v.type.tensor_type.shape.dim)
            for v in model.graph.input
            if v.name not in given and v.type.HasField("tensor_type")
        }
    except Exception:  # noqa: BLE001 # a model that does not parse is given no shapes
        return {}
    return {name: shape for name, shape in shapes.items() if min(shape, default=0) >= 0}


def _difference(got: object, want: object) -> str:
    """How two arrays differ; nothing where they agree."""
    import numpy as np

    if isinstance(want, list) and isinstance(got, list):
        pairs = zip(got, want, strict=False)
        return f"{len(got)} elements for {len(want)}" if len(got) != len(want) else next(filter(None, (_difference(a, b) for a, b in pairs)), "")
    if got is None or want is None:
        return "" if got is want else "one is absent"
    found, wanted = np.asarray(got), np.asarray(want)
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return f"{found.dtype}{found.shape} for {wanted.dtype}{wanted.shape}"
    if wanted.dtype == object:
        return "" if np.array_equal(found, wanted) else f"{found} for {wanted}"
    left, right = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.abs(right[np.isfinite(right)])
    scale = float(finite.max(initial=0))
    tolerance = 1e-2 if wanted.dtype.itemsize <= 2 else 1e-4
    if wanted.dtype.kind in "iub":  # quantisation may round a tie of 8 bits either way
        bad = np.abs(left - right) > (1 if wanted.dtype in (np.uint8, np.int8) else 0)
    else:
        # kernels skip padding, where the interpreter multiplies it: a NaN of zero times infinity need not be met
        # and denormals are taken for zero.
        smallest = float(np.finfo(np.float32).tiny)
        bad = ~(np.isclose(left, right, rtol=tolerance, atol=max(smallest, tolerance * scale)) | np.isnan(right))
    if not bad.any():
        return ""
    at = tuple(map(int, np.argwhere(bad)[0]))
    return f"{int(bad.sum())} of {bad.size} elements differ, the first at {at}: {found[at]} for {wanted[at]}"


def main() -> int:
    """Status 0 where nothing is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--only", type=int)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.seed, range(*map(int, options.worker.split(":"))), options.seconds)
        return 0
    print(f"seed {options.seed}")
    begin = time.perf_counter()
    findings: list[Finding] = []
    if options.only is not None:
        _drive(options.seed, range(options.only, options.only + 1), options.seconds, Counter(), findings)
    else:
        outcomes, findings = fuzz(options.seed, options.count, options.workers, options.seconds)
        print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()), f"in {time.perf_counter() - begin:.0f} s")
    for finding in findings:
        print(f"\n== {finding.number}: {finding.what}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
