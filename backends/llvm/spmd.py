"""What every image carries beside its kernels: the worker loop, job start, barrier and peak measurement, as LLVM text.

All workers run ``ts_main`` in step. Shared state is the pool block of runtime/pool.py; its two generation words are polled for a
bounded time and then slept on. Only ``ts_run`` of the thread that holds the pool writes the job; every worker takes part in every
job, and a barrier ends it, so a worker can never miss a generation.
"""

from __future__ import annotations

from dataclasses import dataclass

from compiler.target import Target
from runtime import pool

ENTRIES = ("ts_run", "ts_worker", "ts_stop", "ts_peak")
"""Functions the runtime calls."""

PEAK_CHAINS = 12
"""Independent multiply-add chains of ``ts_peak``: enough to cover latency × issue width, few enough for 16 registers."""

_MISSES_BORNE = 3
_PROBE_EVERY = 16

_WAIT, _WAKE = 128, 129
"""FUTEX_WAIT and FUTEX_WAKE with FUTEX_PRIVATE_FLAG (linux/futex.h)."""


@dataclass(frozen=True)
class _Isa:
    """What differs by instruction set: a spin-loop hint, and switching denormals off (``ts_flush``: old mode) and back."""

    pause: str
    functions: str


_PORTABLE = _Isa(
    "",
    """
define internal i32 @ts_flush() nounwind {
  ret i32 0
}
define internal void @ts_restore(i32 %mode) nounwind {
  ret void
}
""",
)

# MXCSR bits 15 (FTZ) and 6 (DAZ): Intel SDM volume 1, 10.2.3.
_X86 = _Isa(
    "call void @llvm.x86.sse2.pause()",
    """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)

define internal i32 @ts_flush() nounwind {
  %at = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %at)
  %old = load i32, ptr %at
  %new = or i32 %old, 32832
  store i32 %new, ptr %at
  call void @llvm.x86.sse.ldmxcsr(ptr %at)
  ret i32 %old
}
define internal void @ts_restore(i32 %mode) nounwind {
  %at = alloca i32
  store i32 %mode, ptr %at
  call void @llvm.x86.sse.ldmxcsr(ptr %at)
  ret void
}
""",
)


def text(target: Target) -> str:
    """LLVM text of the functions in ``ENTRIES`` and ``ts_barrier``; ``ts_main`` must be defined in the same module."""
    isa = _X86 if target.triple.startswith("x86_64") else _PORTABLE
    return isa.functions + _spmd(isa.pause) + _peak(target)


def _spmd(pause: str) -> str:
    """Jobs and barriers. ``%word`` is a futex word and ``%sleepers`` the number of threads asleep on it.

    A waiter counts itself before it sleeps and the kernel compares the word again; a signaller changes the word before it looks
    for sleepers, both sequentially consistent: one of the two always sees the other.

    Polling is vain while the worker waited for shares this one's CPU (another process has the rest of them): after some waits in a row
    that polled in vain, only one in ``_PROBE_EVERY`` polls for long, until polling helps again. Measured with two workers on one CPU: a
    barrier takes 0.5 ms when every wait polls 20,000 times first. Yielding instead is worse: it gives other processes whole time slices.
    """
    return f"""
define internal void @ts_signal(ptr %pool, ptr %word, ptr %sleepers) nounwind noinline {{
entry:
  %old = atomicrmw add ptr %word, i32 1 seq_cst
  %asleep = load atomic i32, ptr %sleepers seq_cst, align 4
  %nobody = icmp eq i32 %asleep, 0
  br i1 %nobody, label %done, label %wake
wake:
  call void @ts_futex(ptr %pool, ptr %word, i64 {_WAKE}, i64 2147483647)
  br label %done
done:
  ret void
}}

define internal void @ts_await(ptr %pool, ptr %word, ptr %sleepers, i32 %old) nounwind noinline {{
entry:
  %limit.at = getelementptr i8, ptr %pool, i64 {pool.SPIN_LIMIT}
  %limit = load i64, ptr %limit.at
  %misses.at = getelementptr i8, ptr %sleepers, i64 {pool.MISSES}
  %misses = load atomic i32, ptr %misses.at monotonic, align 4
  %few = icmp ult i32 %misses, {_MISSES_BORNE}
  %phase = urem i32 %misses, {_PROBE_EVERY}
  %probe = icmp eq i32 %phase, 0
  %hopeful = or i1 %few, %probe
  %patience = select i1 %hopeful, i64 %limit, i64 {pool.SPIN_OVERSUBSCRIBED}
  br label %poll
poll:
  %count = phi i64 [0, %entry], [%counted, %again]
  %polled = load atomic i32, ptr %word acquire, align 4
  %same = icmp eq i32 %polled, %old
  br i1 %same, label %again, label %hit
hit:
  %missed = icmp ne i32 %misses, 0
  br i1 %missed, label %forget, label %done
forget:
  store atomic i32 0, ptr %misses.at monotonic, align 4
  br label %done
again:
  {pause}
  %counted = add i64 %count, 1
  %more = icmp ult i64 %counted, %patience
  br i1 %more, label %poll, label %miss
miss:
  %counted.misses = atomicrmw add ptr %misses.at, i32 1 monotonic
  br label %sleep
sleep:
  %expected = zext i32 %old to i64
  %before = atomicrmw add ptr %sleepers, i32 1 seq_cst
  call void @ts_futex(ptr %pool, ptr %word, i64 {_WAIT}, i64 %expected)
  %after = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  %now = load atomic i32, ptr %word acquire, align 4
  %still = icmp eq i32 %now, %old
  br i1 %still, label %sleep, label %done
done:
  ret void
}}

define internal void @ts_futex(ptr %pool, ptr %word, i64 %operation, i64 %value) nounwind noinline {{
  %syscall.at = getelementptr i8, ptr %pool, i64 {pool.SYSCALL}
  %syscall = load ptr, ptr %syscall.at
  %number.at = getelementptr i8, ptr %pool, i64 {pool.FUTEX_NUMBER}
  %number = load i64, ptr %number.at
  %result = call i64 (i64, ...) %syscall(i64 %number, ptr %word, i64 %operation, i64 %value, ptr null, ptr null, i64 0)
  ret void
}}

define void @ts_barrier(ptr %pool, i64 %workers) nounwind {{
entry:
  %alone = icmp eq i64 %workers, 1
  br i1 %alone, label %done, label %arrive
arrive:
  %word = getelementptr i8, ptr %pool, i64 {pool.BARRIER_GENERATION}
  %sleepers = getelementptr i8, ptr %pool, i64 {pool.BARRIER_SLEEPERS}
  %arrivals = getelementptr i8, ptr %pool, i64 {pool.BARRIER_ARRIVALS}
  %generation = load atomic i32, ptr %word acquire, align 4
  %earlier = atomicrmw add ptr %arrivals, i32 1 acq_rel
  %all = trunc i64 %workers to i32
  %present = add i32 %earlier, 1
  %last = icmp eq i32 %present, %all
  br i1 %last, label %release, label %wait
release:
  store atomic i32 0, ptr %arrivals monotonic, align 4
  call void @ts_signal(ptr %pool, ptr %word, ptr %sleepers)
  br label %done
wait:
  call void @ts_await(ptr %pool, ptr %word, ptr %sleepers, i32 %generation)
  br label %done
done:
  ret void
}}

define internal void @ts_job(ptr %slots, i64 %worker, i64 %workers, ptr %pool, ptr %stamps) nounwind {{
  %mode = call i32 @ts_flush()
  call void @ts_main(ptr %slots, i64 %worker, i64 %workers, ptr %pool, ptr %stamps)
  call void @ts_restore(i32 %mode)
  ret void
}}

define void @ts_run(ptr %pool, ptr %slots, i64 %workers, ptr %stamps) nounwind {{
entry:
  %alone = icmp eq i64 %workers, 1
  br i1 %alone, label %work, label %publish
publish:
  %function.at = getelementptr i8, ptr %pool, i64 {pool.JOB_FUNCTION}
  store ptr @ts_job, ptr %function.at
  %slots.at = getelementptr i8, ptr %pool, i64 {pool.JOB_SLOTS}
  store ptr %slots, ptr %slots.at
  %workers.at = getelementptr i8, ptr %pool, i64 {pool.JOB_WORKERS}
  store i64 %workers, ptr %workers.at
  %stamps.at = getelementptr i8, ptr %pool, i64 {pool.JOB_STAMPS}
  store ptr %stamps, ptr %stamps.at
  %word = getelementptr i8, ptr %pool, i64 {pool.JOB_GENERATION}
  %sleepers = getelementptr i8, ptr %pool, i64 {pool.JOB_SLEEPERS}
  call void @ts_signal(ptr %pool, ptr %word, ptr %sleepers)
  br label %work
work:
  call void @ts_job(ptr %slots, i64 0, i64 %workers, ptr %pool, ptr %stamps)
  call void @ts_barrier(ptr %pool, i64 %workers)
  ret void
}}

define void @ts_worker(ptr %pool, i64 %worker) nounwind {{
entry:
  %word = getelementptr i8, ptr %pool, i64 {pool.JOB_GENERATION}
  %sleepers = getelementptr i8, ptr %pool, i64 {pool.JOB_SLEEPERS}
  %function.at = getelementptr i8, ptr %pool, i64 {pool.JOB_FUNCTION}
  %slots.at = getelementptr i8, ptr %pool, i64 {pool.JOB_SLOTS}
  %workers.at = getelementptr i8, ptr %pool, i64 {pool.JOB_WORKERS}
  %stamps.at = getelementptr i8, ptr %pool, i64 {pool.JOB_STAMPS}
  br label %next
next:
  %seen = phi i32 [0, %entry], [%done, %work]
  call void @ts_await(ptr %pool, ptr %word, ptr %sleepers, i32 %seen)
  %done = add i32 %seen, 1
  %function = load ptr, ptr %function.at
  %stop = icmp eq ptr %function, null
  br i1 %stop, label %return, label %work
work:
  %slots = load ptr, ptr %slots.at
  %workers = load i64, ptr %workers.at
  %stamps = load ptr, ptr %stamps.at
  call void %function(ptr %slots, i64 %worker, i64 %workers, ptr %pool, ptr %stamps)
  call void @ts_barrier(ptr %pool, i64 %workers)
  br label %next
return:
  ret void
}}

define void @ts_stop(ptr %pool) nounwind {{
  %function.at = getelementptr i8, ptr %pool, i64 {pool.JOB_FUNCTION}
  store ptr null, ptr %function.at
  %word = getelementptr i8, ptr %pool, i64 {pool.JOB_GENERATION}
  %sleepers = getelementptr i8, ptr %pool, i64 {pool.JOB_SLEEPERS}
  call void @ts_signal(ptr %pool, ptr %word, ptr %sleepers)
  ret void
}}
"""


def _peak(target: Target) -> str:
    """``float ts_peak(i64 rounds)``: ``rounds`` times ``PEAK_CHAINS`` vector multiply-adds that do not wait for each other."""
    lanes = target.lanes
    vector, madd = f"<{lanes} x float>", f"@llvm.fmuladd.v{lanes}f32"
    half, one = f"splat (float 0x{0x3FE0 << 48:016X})", f"splat (float 0x{0x3FF0 << 48:016X})"
    chains = range(PEAK_CHAINS)
    phis = "\n".join(f"  %a{i} = phi {vector} [zeroinitializer, %entry], [%b{i}, %loop]" for i in chains)
    madds = "\n".join(f"  %b{i} = call {vector} {madd}({vector} %a{i}, {vector} {half}, {vector} {one})" for i in chains)
    sums = "\n".join(f"  %s{i} = fadd {vector} {f'%s{i - 1}' if i > 1 else '%b0'}, %b{i}" for i in chains if i)
    return f"""
declare {vector} {madd}({vector}, {vector}, {vector})

define float @ts_peak(i64 %rounds) nounwind {{
entry:
  br label %loop
loop:
  %left = phi i64 [%rounds, %entry], [%fewer, %loop]
{phis}
{madds}
  %fewer = sub i64 %left, 1
  %more = icmp ne i64 %fewer, 0
  br i1 %more, label %loop, label %end
end:
{sums}
  %result = extractelement {vector} %s{PEAK_CHAINS - 1}, i64 0
  ret float %result
}}
"""
