"""What this machine can do: float32 multiply-add peak and memory read bandwidth, for 1 to n threads.

    python -m benchmarks.peak [--threads 2]

Both loops are LLVM IR written here, apart from the compiler's own emitter, so that they judge it from outside.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import llvmlite.binding as llvm
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from compiler.target import Target, resolve
from runtime.cpus import available_cpus

_CHAINS = 10
"""Independent accumulators: two multiply-adds a cycle of latency 4 need 8."""
_ROUNDS = 12
_SECONDS = 0.04
_STREAM_BYTES = 256 << 20


class NativeLoops:
    """``fma(iterations)`` runs ``_CHAINS`` vector multiply-adds each iteration; ``read(address, vectors)`` sums vectors from memory."""

    def __init__(self, target: Target) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.lanes = target.lanes
        module = llvm.parse_assembly(_loop_text(target.lanes))
        module.verify()
        features = ",".join(f"+{feature}" for feature in target.features)
        machine = llvm.Target.from_default_triple().create_target_machine(cpu=target.cpu, features=features, opt=3)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        # A foreign call made through CFUNCTYPE releases the interpreter lock: threads run at once.
        self.fma: Callable[[int], float] = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(self._engine.get_function_address("fma"))
        self.read: Callable[[int, int], float] = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_void_p, ctypes.c_int64)(
            self._engine.get_function_address("read")
        )

    @property
    def flops(self) -> int:
        """Operations of one iteration of ``fma``."""
        return 2 * _CHAINS * self.lanes


def _loop_text(lanes: int) -> str:
    vector = f"<{lanes} x float>"
    chains = range(_CHAINS)
    factor = f"<{', '.join(['float 0.5'] * lanes)}>"
    fma = [f"  %n{c} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{c}, {vector} {factor}, {vector} {factor})" for c in chains]
    read = [
        line
        for c in chains
        for line in (
            f"  %p{c} = getelementptr {vector}, ptr %row, i64 {c}",
            f"  %x{c} = load {vector}, ptr %p{c}, align 4",
            f"  %n{c} = fadd {vector} %a{c}, %x{c}",
        )
    ]
    row = [f"  %at = mul i64 %i, {_CHAINS}", f"  %row = getelementptr {vector}, ptr %data, i64 %at"]
    return "\n".join(
        [
            f"declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})",
            _function("fma", "i64 %count", vector, fma),
            _function("read", "ptr %data, i64 %count", vector, row + read),
        ]
    )


def _function(name: str, parameters: str, vector: str, body: Sequence[str]) -> str:
    phis = [f"  %a{c} = phi {vector} [ zeroinitializer, %entry ], [ %n{c}, %loop ]" for c in range(_CHAINS)]
    sums = ["  %s0 = fadd " + f"{vector} %n0, %n1"]
    sums += [f"  %s{c - 1} = fadd {vector} %s{c - 2}, %n{c}" for c in range(2, _CHAINS)]
    return "\n".join(
        [
            f"define float @{name}({parameters}) {{",
            "entry:",
            "  br label %loop",
            "loop:",
            "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
            *phis,
            *body,
            "  %next = add i64 %i, 1",
            "  %more = icmp slt i64 %next, %count",
            "  br i1 %more, label %loop, label %exit",
            "exit:",
            *sums,
            f"  %result = extractelement {vector} %s{_CHAINS - 2}, i32 0",
            "  ret float %result",
            "}",
        ]
    )


def _together(work: Callable[[int], object], threads: int) -> float:
    """Seconds until ``work(0) … work(threads - 1)``, started together, have all ended."""
    barrier = threading.Barrier(threads)
    spans = [(0.0, 0.0)] * threads

    def run(number: int) -> None:
        barrier.wait()
        start = time.perf_counter()
        work(number)
        spans[number] = start, time.perf_counter()

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def fma_gflops(threads: int = 1, target: Target | None = None) -> float:
    """The best float32 multiply-add rate of ``threads`` threads, in GFLOP/s, a multiply-add counted as two."""
    loops = NativeLoops(target or resolve("native"))

    def seconds(iterations: int, threads: int) -> float:
        return _together(lambda _: loops.fma(iterations), threads)

    iterations = 1 << 16
    while seconds(iterations, 1) < _SECONDS:
        iterations *= 2
    best = min(seconds(iterations, threads) for _ in range(_ROUNDS))
    return threads * iterations * loops.flops / best / 1e9


def read_gbytes(threads: int = 1, target: Target | None = None) -> float:
    """The best rate of reading memory that is in no cache, in GB/s (10^9 bytes)."""
    loops = NativeLoops(target or resolve("native"))
    row_bytes = _CHAINS * loops.lanes * 4
    rows = _STREAM_BYTES // threads // row_bytes
    with mmap.mmap(-1, rows * threads * row_bytes) as memory:
        data = np.frombuffer(memory, np.float32)
        data.fill(1)
        address = data.ctypes.data
        best = min(_together(lambda number: loops.read(address + number * rows * row_bytes, rows), threads) for _ in range(_ROUNDS))
        del data
    return threads * rows * row_bytes / best / 1e9


def main(threads: Annotated[int, typer.Option(help="The most threads to try; default: the CPUs this process may use.")] = 0) -> None:
    """Print peak and bandwidth per thread count."""
    target = resolve("native")
    table = Table("threads", "GFLOP/s", "GB/s", title=f"{target.cpu}, {target.vector_bits}-bit vectors, float32")
    for count in range(1, (threads or available_cpus()) + 1):
        table.add_row(str(count), f"{fma_gflops(count, target):.1f}", f"{read_gbytes(count, target):.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
