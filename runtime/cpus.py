"""The machine as the runtime sees it: CPUs this process may use, and the instruction sets a saved module may need."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

_SAME = ("avx", "avx2", "fma", "f16c", "bmi2", "popcnt", "movbe", "gfni")
_SAME_512 = ("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd", "avx512ifma", "avx512vbmi")
_FLAGS = {name: name for name in _SAME + _SAME_512} | {
    "bmi": "bmi1",
    "lzcnt": "abm",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
"""LLVM's name of each instruction set that generated code may use, and Linux's name of it in /proc/cpuinfo."""


def available_cpus() -> int:
    """CPUs this process may really use: the smaller of its affinity mask and its cgroup quota, at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cpus, int(quota))) if quota > 0 else cpus


def _cgroup_quota() -> float:
    """CPUs' worth of time the cgroup grants per period; 0 where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return 0.0 if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else 0.0
    except (OSError, ValueError):
        return 0.0


def cpu_flags(features: Iterable[str]) -> tuple[str, ...]:
    """The /proc/cpuinfo flags a CPU must have to run code generated with these LLVM features; the names, sorted."""
    return tuple(sorted({_FLAGS[feature] for feature in features if feature in _FLAGS}))


@cache
def cpu_description() -> dict[str, str]:
    """The first CPU's fields of /proc/cpuinfo; empty where there is no such file."""
    fields: dict[str, str] = {}
    try:
        with _CPUINFO.open() as lines:
            for line in lines:
                key, colon, value = line.partition(":")
                if not colon:
                    break
                fields[key.strip()] = value.strip()
    except OSError:
        return {}
    return fields


def missing_flags(needed: Iterable[str]) -> list[str]:
    """Those of the needed flags this machine's CPU does not have, sorted; none where the machine does not say."""
    fields = cpu_description()
    present = fields.get("flags") or fields.get("Features")
    return [] if present is None else sorted(set(needed) - set(present.split()))
