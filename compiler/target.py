"""What we compile for: a frozen description of one CPU, presets, and detection of the machine we run on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import UserError

_VECTOR_BITS = (128, 256, 512, 1024)
_FEWEST_REGISTERS = 8


@dataclass(frozen=True)
class Target:
    """A CPU as code generation and the heuristics see it.

    ``vector_bits`` is the width kernels use (not always the widest the CPU has); ``vector_registers`` how many such registers there
    are; cache sizes are bytes of one core's share.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if self.vector_bits not in _VECTOR_BITS or self.vector_registers < _FEWEST_REGISTERS:
            raise UserError(
                f"{self.vector_registers} vector registers of {self.vector_bits} bits",
                where=f"target {self.name}",
                hint=f"give {_FEWEST_REGISTERS} or more, of {', '.join(map(str, _VECTOR_BITS))} bits",
            )

    @property
    def lanes(self) -> int:
        """float32 elements in one vector; also the channel block of blocked layouts."""
        return self.vector_bits // 32

    def has(self, feature: str) -> bool:
        """Whether the CPU has an LLVM feature (``avx512vnni``, ``fma``, …)."""
        return feature in self.features


_PRESETS = {
    "x86-64-v3": Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", ("avx", "avx2", "fma", "f16c", "bmi", "bmi2"), 256, 16),
    "x86-64-v4": Target(
        "x86-64-v4",
        "x86_64-unknown-linux-gnu",
        "x86-64-v4",
        ("avx", "avx2", "fma", "f16c", "bmi", "bmi2", "avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512cd"),
        512,
        32,
    ),
}


def resolve(target: str | Target) -> Target:
    """The target a user named: ``native``, a preset's name, or a Target as it is. Raises UserError for anything else."""
    if isinstance(target, Target):
        return target
    if target == "native":
        return native()
    preset = _PRESETS.get(target)
    if preset is None:
        raise UserError(f"unknown target {target!r}", where="target", hint=f"use 'native' or one of {', '.join(sorted(_PRESETS))}")
    return preset


def native() -> Target:
    """The machine this process runs on. Raises UserError where it is not one we generate code for."""
    import llvmlite.binding as llvm

    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64") or platform.system() != "Linux":
        raise UserError(
            f"native code for {platform.system()} on {machine} is not supported yet",
            where="target",
            hint="run on Linux on x86-64, or compile for a preset: " + ", ".join(sorted(_PRESETS)),
        )
    features = tuple(sorted(name for name, has in llvm.get_host_cpu_features().items() if has))
    cpu = llvm.get_host_cpu_name()
    if "avx2" not in features or "fma" not in features:
        raise UserError(
            f"this CPU ({cpu}) has no AVX2 and FMA",
            where="target",
            hint="run on a CPU of 2013 (Haswell, Zen) or newer",
        )
    wide = "avx512vl" in features
    # Zen 4 executes a 512-bit operation in two halves: 256-bit code has the same peak and wastes fewer padding lanes.
    bits = 512 if wide and not cpu.startswith("znver") else 256
    l1, l2, l3 = (_cache_bytes(index) for index in ("index0", "index2", "index3"))
    return Target("native", llvm.get_process_triple(), cpu, features, bits, 32 if wide else 16, l1 or 32 << 10, l2 or 512 << 10, l3 or 8 << 20)


def _cache_bytes(index: str) -> int:
    path = Path("/sys/devices/system/cpu/cpu0/cache") / index / "size"
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    digits = text.rstrip("KM")
    return int(digits) * scale if digits.isdigit() else 0
