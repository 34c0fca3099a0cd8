"""LLVM IR text to object code, in this process or in helper processes (LLVM serialises threads of one process)."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

import llvmlite.binding as llvm

from compiler.errors import InternalError, UserError
from compiler.target import Target

_PARALLEL_LINES = 40000
"""Lines of IR from which a second process pays for its start (0.3 s; 50 000 lines a second are generated on one Zen 4 core)."""
_REQUIRED = ("avx2", "fma")
"""LLVM features that generated code cannot do without."""

# Loop strength reduction takes four fifths of the time of code generation (ResNet-18: 7.4 s with it, 1.3 s without) and gains nothing,
# since the emitter has already reduced every address to an outer pointer plus a constant. LLVM has this as a process-wide option only.
llvm.set_option("tensorsmith", "-disable-lsr")

# Scheduling again after register allocation puts every operation of a tile's epilogue before the first of its stores, which costs short
# sums 3 to 12 % (16 to 96 channels at 112 x 112: 86 % of the peak instead of 97 % with tiles of 8 x 2; AMD EPYC, Zen 4).
llvm.set_option("tensorsmith", "-post-RA-scheduler=false")


def object_code(text: str, target: Target) -> bytes:
    """The relocatable object of one LLVM module. No IR passes run: loops come tiled and unrolled as they should be."""
    _initialize()
    try:
        module = llvm.parse_assembly(f'target triple = "{target.triple}"\n{text}')
        module.verify()
    except RuntimeError as error:
        raise InternalError(f"LLVM rejects the generated IR: {error}", where="backends.llvm") from error
    machine = _machine(target)
    module.data_layout = str(machine.target_data)
    return bytes(machine.emit_object(module))


def assembly(text: str, target: Target) -> str:
    """The assembly of one LLVM module, for people and for tests of register pressure."""
    _initialize()
    module = llvm.parse_assembly(f'target triple = "{target.triple}"\n{text}')
    return str(_machine(target).emit_assembly(module))


def check_target(target: Target) -> None:
    """Raises UserError for a target that no code can be generated for."""
    machine, _, system = target.triple.partition("-")
    if machine != "x86_64" or "linux" not in system:
        raise UserError(f"no code can be made for {target.triple!r}", where=f"target {target.name}", hint="give x86_64-unknown-linux-gnu")
    missing = [feature for feature in _REQUIRED if not target.has(feature)]
    if missing:
        raise UserError(f"the CPU has no {' and no '.join(missing)}", where=f"target {target.name}", hint="name a CPU and features that include them")


def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # for inline assembly


def _machine(target: Target) -> llvm.TargetMachine:
    features = [f"+{f}" for f in target.features]
    if target.triple.startswith("x86_64"):
        features.append("+64bit")  # LLVM ends the process where a CPU that it does not know is to run 64-bit code
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(cpu=target.cpu, features=",".join(features), opt=3, reloc="pic", codemodel="default")


def objects(texts: Sequence[str], target: Target, processes: int) -> list[bytes]:
    """The object of each module; shared between ``processes`` processes when there is enough to generate."""
    lines = [text.count("\n") for text in texts]
    processes = min(processes, 1 + sum(lines) // _PARALLEL_LINES, len(texts))
    if processes <= 1:
        return [object_code(text, target) for text in texts]
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for index in sorted(range(len(texts)), key=lambda i: -lines[i]):
        lightest = loads.index(min(loads))
        shares[lightest].append(index)
        loads[lightest] += lines[index]
    helpers = [_start_helper() for _ in shares[1:]]
    try:
        for share, helper in zip(shares[1:], helpers, strict=True):
            _send([texts[i] for i in share], target, helper)
        done = {index: object_code(texts[index], target) for index in shares[0]}
        for share, helper in zip(shares[1:], helpers, strict=True):
            out, _ = helper.communicate()
            if helper.returncode != 0:
                raise InternalError("a code generation process failed (its message stands above)", where="backends.llvm")
            done.update(zip(share, pickle.loads(out), strict=True))  # our own child process wrote it
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
    return [done[index] for index in range(len(texts))]


def _start_helper() -> subprocess.Popen[bytes]:
    """A process that runs ``serve``, in a group of its own: an interrupt from the keyboard reaches this process alone, which ends it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", "from backends.llvm.codegen import serve; serve()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0)


def _send(texts: list[str], target: Target, helper: subprocess.Popen[bytes]) -> None:
    if helper.stdin is not None:
        with contextlib.suppress(BrokenPipeError), helper.stdin as pipe:  # one that has ended already says so by its exit status
            pipe.write(pickle.dumps((texts, target)))
        helper.stdin = None


def serve() -> None:
    """A helper process: reads (texts, target) from standard input, writes the objects to standard output."""
    texts, target = pickle.load(sys.stdin.buffer)  # our own parent process wrote it
    sys.stdout.buffer.write(pickle.dumps([object_code(text, target) for text in texts]))
