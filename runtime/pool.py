"""Worker threads that run compiled programs in step, and the memory block they share with generated code.

A pool of n has n - 1 Python daemon threads inside ``ts_worker`` (backends/llvm/spmd.py); the caller is worker 0. The block's layout
is fixed below and part of the artefact format: code of any module must work with threads that run another module's ``ts_worker``.
The block and the code the threads run are never freed, so threads that are still inside at interpreter exit stay on firm ground.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import threading
from dataclasses import dataclass

from runtime.cpus import available_cpus

SYSCALL = 0
"""The address of libc's ``syscall``: generated code has no external symbols."""
FUTEX_NUMBER = 8
"""i64: the number of the futex system call on this machine."""
SPIN_LIMIT = 16
"""i64: polls of a word before a waiting thread sleeps on it."""
JOB_GENERATION = 64
"""i32, a futex word: one more per job."""
JOB_FUNCTION = 128
"""The job, a function pointer: (slots, worker number, workers, pool, stamps). Null asks the threads to return."""
JOB_SLOTS = 136
JOB_WORKERS = 144
JOB_STAMPS = 152
BARRIER_ARRIVALS = 192
"""i32: workers that reached the current barrier."""
BARRIER_GENERATION = 256
"""i32, a futex word: one more per barrier passed."""
JOB_SLEEPERS = 320
"""i32: threads asleep on the job word, or about to be."""
BARRIER_SLEEPERS = 324
"""i32: threads asleep on the barrier word, or about to be."""
MISSES = 8
"""Bytes from either count of sleepers to an i32: waits in a row that ended in sleep."""
POOL_BYTES = 384

SPIN = 20_000
"""Polls before sleeping when every worker has a CPU: about 0.5 ms, longer than a kernel's load imbalance or a caller's pause."""
SPIN_OVERSUBSCRIBED = 16
"""Polls when there are more workers than CPUs: spinning would keep the worker that is waited for from running."""

_FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_JOIN_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerCode:
    """The addresses of ``ts_worker`` and ``ts_stop``, and the object that keeps them mapped."""

    worker: int
    stop: int
    keep: object


class WorkerPool:
    """``workers - 1`` threads waiting for jobs; whoever holds ``free`` may run one. ``block`` is the address of the shared memory."""

    def __init__(self, workers: int, code: WorkerCode) -> None:
        self.free = threading.Lock()
        self.block = _new_block(workers)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(code.keep))
        self._stop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.stop)
        enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.worker)
        self._threads = [
            threading.Thread(target=enter, args=(self.block, worker), name=f"tensorsmith-worker-{worker}", daemon=True)
            for worker in range(1, workers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads return, unless a job is running; the pool cannot be used afterwards."""
        if not self.free.acquire(blocking=False):
            return
        self._stop(self.block)
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)


def _new_block(workers: int) -> int:
    """The address of a pool's memory, 64-byte aligned and never freed."""
    libc = ctypes.CDLL(None)
    libc.aligned_alloc.restype = ctypes.c_void_p
    libc.aligned_alloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    block = libc.aligned_alloc(64, POOL_BYTES)
    if not block:
        raise MemoryError(f"no memory for a pool of {workers} workers")
    ctypes.memset(block, 0, POOL_BYTES)
    syscall = ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0
    spin = SPIN if workers <= available_cpus() else SPIN_OVERSUBSCRIBED
    for offset, value in ((SYSCALL, syscall), (FUTEX_NUMBER, _FUTEX_NUMBERS[platform.machine()]), (SPIN_LIMIT, spin)):
        ctypes.c_uint64.from_address(block + offset).value = value
    return int(block)


_pools: dict[int, WorkerPool] = {}
_making = threading.Lock()


def pool(workers: int, code: WorkerCode) -> WorkerPool:
    """This process's pool of that many workers, started with ``code`` when there is none yet."""
    found = _pools.get(workers)
    if found is None:
        with _making:
            found = _pools.get(workers)
            if found is None:
                found = _pools[workers] = WorkerPool(workers, code)
    return found


def _stop_all() -> None:
    for started in _pools.values():
        started.stop()
    _pools.clear()


def _forget_all() -> None:
    """In a forked child the threads do not exist, and another thread may have held the lock."""
    global _making
    _pools.clear()
    _making = threading.Lock()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)
