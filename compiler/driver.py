"""compile(): a model through frontend, passes, kernels and backend to an artefact, and the artefact to a Module.

A model that is in the cache touches none of them: what is imported at the top of this file is all that such a call needs.
"""

from __future__ import annotations

import contextlib
import gc
import operator
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

from compiler import cache as compile_cache
from compiler.errors import ArtifactError, InternalError, UserError
from compiler.target import Target, resolve
from runtime import artifact
from runtime.cpus import available_cpus, cpu_flags
from runtime.module import Module, checked_threads, load
from runtime.texts import STRINGS

if TYPE_CHECKING:
    import onnx

    from compiler.ir.graph import Attr, Graph, Value
    from compiler.ir.intexpr import Dim
    from compiler.ir.program import Program
    from compiler.ir.types import DType
    from passes.base import PassReport

    Model = Union[str, os.PathLike[str], bytes, onnx.ModelProto]

OPT_LEVELS = range(4)

_KEPT_NOTES = 8
"""Notes of one pass that an artefact keeps."""


@dataclass(frozen=True)
class Options:
    """Checked options of a compilation. ``threads`` None: the CPUs available when it is compiled, and when it is loaded."""

    target: str | Target
    threads: int | None
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    opt_level: int
    memory_budget: int | None = None
    verify: bool = False

    @classmethod
    def checked(
        cls,
        target: str | Target,
        threads: int | None,
        input_shapes: Mapping[str, Sequence[int]] | None,
        opt_level: int,
        memory_budget: int | None = None,
        *,
        verify: bool = False,
    ) -> Options:
        """The options. Raises UserError for one that is not what ``compile`` takes."""
        if not isinstance(target, (str, Target)):
            raise UserError(f"target is a {type(target).__name__}", where="target", hint="give 'native', a preset's name or a Target")
        if target != "native":
            resolve(target)
        if isinstance(opt_level, bool) or opt_level not in OPT_LEVELS:
            raise UserError(f"opt_level is {opt_level!r}", where="opt_level", hint=f"give an integer from 0 to {OPT_LEVELS[-1]}")
        if memory_budget is not None and (isinstance(memory_budget, bool) or not isinstance(memory_budget, int) or memory_budget < 0):
            hint = "give a number of bytes, such as 1_500_000, or None for no limit"
            raise UserError(f"memory_budget is {memory_budget!r}", where="memory_budget", hint=hint)
        return cls(target, checked_threads(threads), _checked_shapes(input_shapes), int(opt_level), memory_budget, bool(verify))

    @property
    def workers(self) -> int:
        """The number of threads to compile for."""
        return self.threads or available_cpus()

    def fingerprint(self) -> str:
        """A text that differs when the compiled result may."""
        target = compile_cache.native_fingerprint() if self.target == "native" else repr(resolve(self.target))
        return repr((target, self.threads, self.workers, self.input_shapes, self.opt_level, self.memory_budget))


def _checked_shapes(input_shapes: Mapping[str, Sequence[int]] | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    hint = 'give a dict such as {"input": (1, 3, 224, 224)}'
    if not isinstance(input_shapes, Mapping | None):
        raise UserError(f"input_shapes is a {type(input_shapes).__name__}", where="input_shapes", hint=hint)
    shapes = []
    for name, dims in (input_shapes or {}).items():
        try:
            shape = tuple(operator.index(dim) for dim in dims)
        except TypeError:
            shape = (-1,)
        if not isinstance(name, str) or any(dim < 0 for dim in shape):
            raise UserError(f"the shape of {name!r} is {dims!r}", where="input_shapes", hint=hint)
        shapes.append((name, shape))
    return tuple(sorted(shapes))


def compile(  # noqa: A001 # the public name says what it does
    model: Model,
    target: str | Target = "native",
    *,
    threads: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    opt_level: int = 3,
    memory_budget: int | None = None,
    cache: bool = True,
    verify: bool = False,
) -> Module:
    """The model (path, bytes or ModelProto of an ONNX model) as a Module of native code.

    ``threads=None`` means the CPUs this process may use; ``input_shapes`` gives inputs with symbolic dims their shapes; ``opt_level`` is from
    0 (only what is needed to run) to 3; ``memory_budget`` is the most bytes a run may take beside weights, inputs and outputs, for which
    early values are computed patch by patch where that is needed; ``cache`` keeps the result on disk and finds it there;
    ``verify`` compiles anew, checks the graph after every pass, and computes every rewrite of linear regions before and after on random numbers.

    Raises UserError for a model or option that cannot be used and for a budget that nothing meets, UnsupportedError with all that is missing,
    ArtifactError when this machine cannot run code for ``target``, InternalError for a check that fails, which is an error of the compiler's.
    """
    options = Options.checked(target, threads, input_shapes, opt_level, memory_budget, verify=verify)
    data = _model_bytes(model)
    store = compile_cache.user_cache() if cache and data is not None else None
    if store is None or data is None:
        return _in_temporary_file(_build(model, options), options)
    folder = Path(model).parent if isinstance(model, (str, os.PathLike)) else Path()
    key = compile_cache.key(data, folder, options.fingerprint())
    found = None if verify else store.find(key)
    if found is not None:
        with contextlib.suppress(ArtifactError):  # damaged, or just removed by another process
            return load(found, threads=options.threads)
    built = _build(model, options)
    try:
        built.write(store.path(key))
        module = load(store.path(key), threads=options.threads)
    except UserError:  # a full disk, or another process has made room for its own: no reason to fail
        return _in_temporary_file(built, options)
    store.shrink(keep=key)
    return module


def compile_to(model: Model, output: str | os.PathLike[str], options: Options, *, cache: bool = True) -> None:
    """Write the model's artefact to a file; the target need not be this machine. Raises UserError as ``compile``."""
    if options.target == "native":
        shapes = dict(options.input_shapes)
        compile(
            model,
            threads=options.threads,
            input_shapes=shapes,
            opt_level=options.opt_level,
            memory_budget=options.memory_budget,
            cache=cache,
            verify=options.verify,
        ).save(output)
    else:
        _build(model, options).write(Path(output))


@dataclass(frozen=True)
class Built:
    """All that an artefact is made of."""

    manifest: artifact.Manifest
    code: bytes
    weights: tuple[tuple[int, artifact.Array], ...]
    weights_bytes: int

    def write(self, path: Path) -> None:
        artifact.write(path, self.manifest, self.code, self.weights, self.weights_bytes)


def _in_temporary_file(built: Built, options: Options) -> Module:
    with tempfile.TemporaryDirectory(prefix="tensorsmith-") as folder:
        path = Path(folder) / "module.tsm"
        built.write(path)
        return load(path, threads=options.threads)


def _model_bytes(model: Model) -> bytes | None:
    """What the cache's key is made from; None for a file that cannot be read, of which the import says more. Raises UserError for no model."""
    if isinstance(model, (str, os.PathLike)):
        try:
            return Path(model).read_bytes()
        except (OSError, ValueError):
            return None
    if isinstance(model, bytes):
        return model
    if hasattr(model, "SerializeToString"):
        try:
            return bytes(model.SerializeToString(deterministic=True))
        except ValueError:  # beyond protobuf's 2 GB
            return None
    raise UserError(f"the model is a {type(model).__name__}", where="model", hint="give a path, the bytes of an ONNX file or an onnx.ModelProto")


def _build(model: Model, options: Options) -> Built:
    from backends.llvm.codegen import check_target
    from frontend.onnx.importer import import_model

    check_target(resolve(options.target))
    try:
        return build(import_model(Path(model) if isinstance(model, os.PathLike) else model, dict(options.input_shapes)), options)
    except MemoryError as error:
        hint = "give the process more memory, or make the model's constants and shapes smaller"
        raise UserError(f"compilation needs more memory than there is ({error})", where="compile", hint=hint) from error


def build(graph: Graph, options: Options) -> Built:
    """An imported graph as all that an artefact is made of."""
    from backends.llvm import spmd
    from backends.llvm.engine import compile_program

    target = resolve(options.target)
    with _uncollected():
        planned, reports, program = lowered(graph, target, options)
        image = compile_program(program, target, available_cpus())
    manifest = artifact.Manifest(
        name=program.name,
        target=target.name,
        machine=target.triple.partition("-")[0],
        cpu_flags=cpu_flags(target.features),
        threads=options.threads,
        inputs=_described(graph, "input", program.inputs),
        outputs=_described(graph, "output", program.outputs),
        kernels=tuple(artifact.KernelInfo(c.name, c.family, c.schedule, _amount(c.flops), _amount(c.nbytes), c.divisions) for c in program.calls),
        arena_bytes=_fixed(program.arena_bytes),
        arena_bound_bytes=program.arena_bound_bytes,
        arena_peak=str(planned.attrs["arena_peak"]),
        scratch_bytes=_fixed(program.scratch_bytes),
        entries=image.entries,
        peak_flops=2 * spmd.PEAK_CHAINS * target.lanes,
        state=_state(program),
        dynamic=program.dynamic,
        results=program.results,
        checks=tuple(check.message for check in program.checks),
        passes=tuple(_pass_info(report) for report in reports),
        texts=None if program.texts is None else artifact.Texts(program.texts.buffer, program.texts.offset, program.texts.nbytes),
    )
    return Built(manifest, image.code, program.weights, program.weights_bytes)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles of garbage: IR is many small objects with hardly any, and looking at them again and again takes 40 % of lowering."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def lowered(graph: Graph, target: Target, options: Options) -> tuple[Graph, tuple[PassReport, ...], Program]:
    """The planned graph, what each pass did, and the program; within the budget, of which scratch is only known when there is a program:
    the first is made without one, the second, if that takes too much, as under one that has no limit."""
    from compiler.lowering import lower
    from compiler.memory_budget import MemoryBudget
    from compiler.pipeline import optimize

    limit = options.memory_budget
    budget: MemoryBudget | None = None
    while True:
        planned, reports = optimize(graph, target, options.opt_level, threads=options.workers, verify=options.verify, memory_budget=budget)
        program = lower(planned, target, options.workers)
        if limit is None:
            return planned, reports, program
        scratch = options.workers * (program.scratch_bytes if isinstance(program.scratch_bytes, int) else 0)
        if isinstance(program.arena_bytes, int) and program.arena_bytes + scratch <= limit:
            return planned, reports, program
        budget = MemoryBudget(sys.maxsize) if budget is None else MemoryBudget(limit, max(scratch, budget.scratch_bytes))


def _pass_info(report: PassReport) -> artifact.PassInfo:
    """A report as an artefact keeps it: of many notes the first ones."""
    kept, more = report.notes[:_KEPT_NOTES], len(report.notes) - _KEPT_NOTES
    notes = (*kept, f"and {more} more") if more > 0 else kept
    return artifact.PassInfo(report.name, round(report.seconds, 6), report.nodes_before, report.nodes_after, notes)


def _fixed(size: Dim) -> int | None:
    """A size that does not depend on the shapes of inputs."""
    return size if isinstance(size, int) else None


def _amount(amount: Dim) -> int | str:
    return amount if isinstance(amount, int) else str(amount)


def _state(program: Program) -> artifact.State:
    layout = program.state
    names = (*program.symbols, *(definition.symbol for definition in program.definitions))
    return artifact.State(layout.words, names, len(program.symbols), layout.arena, layout.scratch, layout.texts, layout.outputs)


def _dtype_name(dtype: DType) -> str:
    return STRINGS if dtype.value == STRINGS else dtype.numpy.name


def _described(graph: Graph, role: str, values: Sequence[Value]) -> tuple[artifact.TensorInfo, ...]:
    """The inputs or outputs as the model has them: tensors, and the sequences and optional values that several tensors stand for."""
    from compiler.ir.containers import containers

    found = list(_tensors(graph.attrs[f"{role}_names"], values))
    for part in reversed(list(containers(graph, role))):
        tensors = found[part.first : part.first + part.count]
        if not part.sequence:
            tensors[-1] = replace(tensors[-1], name=part.name)
        dtype = f"seq({tensors[part.optional].dtype})" if part.sequence else tensors[-1].dtype
        info = artifact.TensorInfo(part.name, f"optional({dtype})" if part.optional else dtype, part.dims, tuple(tensors))
        found[part.first : part.first + part.count] = [info]
    return tuple(found)


def _tensors(names: Attr, values: Sequence[Value]) -> tuple[artifact.TensorInfo, ...]:
    """Values under the model's own names, which the importer leaves in the graph's attributes."""
    if not isinstance(names, tuple) or len(names) != len(values):
        raise InternalError(f"{len(values)} values at the graph's boundary have the names {names!r}", where="compiler.driver")
    return tuple(
        artifact.TensorInfo(str(name), _dtype_name(value.type.dtype), tuple(dim if isinstance(dim, int) else str(dim) for dim in value.type.shape))
        for name, value in zip(names, values, strict=True)
    )
