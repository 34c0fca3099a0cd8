"""Module: a compiled model, ready to run."""

from __future__ import annotations

import ctypes
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from compiler.errors import CALL_BITS, DIVISION, UserError, division_error, index_error
from runtime import profile
from runtime.artifact import Artifact, PassInfo, TensorInfo, file_path, tensors_of
from runtime.containers import packed, unpacked
from runtime.context import FIRST_TENSOR, OUT_OF_MEMORY, Context
from runtime.cpus import available_cpus
from runtime.pool import WorkerCode, WorkerPool, pool
from runtime.texts import STRINGS, encoded

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes: ``weights`` and ``code`` are mapped once and shared; each concurrent run has an ``arena``, which is at least ``bound``,
    the most bytes that live at the same time, which they do while the kernel ``peak`` runs, and each of its workers has ``scratch``.
    None: that depends on the shapes of the inputs."""

    weights: int
    code: int
    arena: int | None
    bound: int | None
    scratch: int | None
    peak: str


class Module:
    """A compiled model. Safe to run from many Python threads at once; results do not depend on how many or on ``threads``.

    A run uses ``threads`` workers when no other run has them, else only the calling thread.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        manifest = artifact.manifest
        self.name = manifest.name
        self.target = manifest.target
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.kernels = manifest.kernels
        self.threads = checked_threads(threads) or manifest.threads or available_cpus()
        self._artifact = artifact
        self._in = [(info.name, numpy_dtype(info.dtype), info.shape) for info in tensors_of(manifest.inputs)]
        self._out = [(info.name, numpy_dtype(info.dtype), info.shape) for info in tensors_of(manifest.outputs)]
        self._takes_containers = any(info.tensors for info in manifest.inputs)
        self._sizes = manifest.state.symbols[: manifest.state.inputs]
        self._results = manifest.results or (None,) * len(self._out)
        self._contexts: list[Context] = []
        self._code = WorkerCode(artifact.entry("ts_worker"), artifact.entry("ts_stop"), artifact.code)
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._entry = ctypes.CFUNCTYPE(None, pointer, pointer, number, pointer)(artifact.entry("ts_run"))
        self._peak = ctypes.CFUNCTYPE(ctypes.c_float, number)(artifact.entry("ts_peak"))
        self._prepare = ctypes.CFUNCTYPE(None, pointer)(artifact.entry("ts_prepare"))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, in the model's order, as fresh arrays. A sequence is a list of arrays; an optional value that is absent is None
        (or left out of ``feeds``). Raises UserError for feeds that do not fit ``inputs``."""
        try:
            arrays, sizes = self._inputs(feeds)
            outputs, _ = self._execute(arrays, sizes)
        except MemoryError as error:
            arena = self._artifact.manifest.arena_bytes
            known = "" if arena is None else f"{arena} bytes for activations, and the outputs "
            what = f"a run needs more memory than there is: {known}({error})"
            raise UserError(what, where=self.name, hint="give smaller inputs, or compile for them: see input_shapes") from error
        rest = iter(outputs)
        return {info.name: unpacked(info, list(islice(rest, len(info.tensors)))) if info.tensors else next(rest) for info in self.outputs}

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        """The outputs for inputs given in the model's order. Raises UserError for inputs that do not fit."""
        if len(args) != len(self.inputs):
            what = f"{len(args)} inputs were given; the model has {len(self.inputs)}: {_listing(self.inputs)}"
            raise UserError(what, where=self.name, hint="pass one array per input")
        return tuple(self.run({info.name: arg for info, arg in zip(self.inputs, args, strict=True)}).values())

    def profile(self, feeds: Mapping[str, Any], repeats: int = 50, peak_gflops: float | None = None) -> profile.Profile:
        """Time per kernel over that many runs. ``peak_gflops`` is one core's multiply-add peak, measured when not given.

        Raises UserError as ``run``, and for a number of repeats below 1.
        """
        if _integer(repeats) < 1:
            raise UserError(f"repeats is {repeats!r}", where="profile", hint="give an integer of at least 1")
        arrays, sizes = self._inputs(feeds)
        each, total = profile.measure(lambda stamps: self._execute(arrays, sizes, stamps, wait=True), len(self.kernels), repeats)
        _, amounts = self._execute(arrays, sizes, wait=True)
        peak = (peak_gflops or profile.peak_gflops(self._peak, self._artifact.manifest.peak_flops)) * self.threads
        rows = []
        for kernel, us in zip(self.kernels, each, strict=True):
            flops, nbytes = (amounts[amount] if isinstance(amount, str) else amount for amount in (kernel.flops, kernel.nbytes))
            gflops = flops / us / 1e3 if us > 0 else 0.0
            rows.append(profile.KernelProfile(kernel.name, kernel.family, kernel.schedule, us, gflops, 100 * gflops / peak, flops, nbytes))
        return profile.Profile(tuple(rows), total, self.threads, peak)

    def report(self) -> tuple[PassInfo, ...]:
        """What each pass of the compiler did to this model, in order: its time in seconds, nodes before and after, and notes."""
        return self._artifact.manifest.passes

    def memory(self) -> MemoryUse:
        """What a run of it needs, in bytes."""
        artifact, manifest = self._artifact, self._artifact.manifest
        sizes = (manifest.arena_bytes, manifest.arena_bound_bytes, manifest.scratch_bytes)
        return MemoryUse(artifact.weights_bytes, artifact.code_bytes, *sizes, manifest.arena_peak)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artefact, for ``load``. Raises UserError where the file cannot be written."""
        self._artifact.save(file_path(path))

    def __repr__(self) -> str:
        return f"<Module {self.name}: ({_listing(self.inputs)}) -> ({_listing(self.outputs)}), {self.threads} threads>"

    def _inputs(self, feeds: Mapping[str, Any]) -> tuple[list[Array], tuple[int, ...]]:
        """Checked inputs in order, and the sizes that they give."""
        if not isinstance(feeds, Mapping):
            raise UserError(f"feeds is a {type(feeds).__name__}", where=self.name, hint="pass a dict of input name to array")
        values = self._unfolded(feeds) if self._takes_containers else map(feeds.get, (name for name, _, _ in self._in))
        arrays = []
        dims: dict[str, int] = {}
        for (name, dtype, shape), value in zip(self._in, values, strict=True):
            if value is None:
                raise self._feeds_error(feeds)
            array = value if isinstance(value, np.ndarray) and dtype.kind != "O" else self._array(name, value, dtype)
            if array.dtype != dtype:
                what = f"input {name} is {array.dtype}; the model takes {dtype}"
                raise UserError(what, where=self.name, hint=f"convert it: array.astype('{dtype}')")
            if array.shape != shape:
                self._bind(name, array.shape, shape, dims)
            flags = array.flags
            arrays.append(array if flags.c_contiguous and flags.aligned else np.array(array, order="C"))
        if len(feeds) != len(self.inputs) and not self._takes_containers:
            raise self._feeds_error(feeds)
        return arrays, tuple([dims[name] for name in self._sizes])

    def _unfolded(self, feeds: Mapping[str, Any]) -> Iterator[Any]:
        """What is given for each tensor: sequences and optional values as those that stand for them."""
        if any(self._unfit(feeds)):
            raise self._feeds_error(feeds)
        dims: dict[str, int] = {}
        for info in self.inputs:
            if not info.is_sequence and feeds.get(info.name) is not None:
                shape = np.shape(self._array(info.name, feeds[info.name], numpy_dtype(info.elements)))
                dims.update((dim, size) for dim, size in zip(info.shape, shape, strict=False) if isinstance(dim, str))
        for info in self.inputs:
            value = feeds.get(info.name)
            if info.tensors:
                yield from packed(info, numpy_dtype(info.elements), value, dims, self._array, self.name)
            else:
                yield value

    def _array(self, name: str, value: Any, dtype: np.dtype[Any]) -> Array:
        """What is given for input ``name`` as an array, of strings where dtype is that of objects; other types stay what they are."""
        if dtype.kind == "O":
            return encoded(name, value, self.name)
        try:
            return np.asarray(value)
        except (ValueError, TypeError) as error:
            raise UserError(f"input {name} is no array: {error}", where=self.name, hint="pass a numpy array") from error

    def _bind(self, name: str, given: tuple[int, ...], expected: tuple[int | str, ...], dims: dict[str, int]) -> None:
        """Give symbolic dims their values. Raises UserError where the shapes differ otherwise, or a dim already has another value."""
        fits = len(given) == len(expected) and all(
            dims.setdefault(want, have) == have if isinstance(want, str) else want == have for want, have in zip(expected, given, strict=True)
        )
        if not fits:
            known = "".join(f", where {dim} = {size}" for dim, size in dims.items() if dim in expected)
            raise UserError(
                f"input {name} has shape {_shape(given)}; the model takes {_shape(expected)}{known}",
                where=self.name,
                hint="reshape the input, or compile the model for this shape with input_shapes",
            )

    def _feeds_error(self, feeds: Mapping[str, Any]) -> UserError:
        missing, unknown = self._unfit(feeds)
        parts = [f"inputs {', '.join(missing)} are missing"] if missing else []
        parts += [f"the model has no inputs called {', '.join(unknown)}"] if unknown else []
        return UserError("; ".join(parts), where=self.name, hint=f"the model's inputs are {_listing(self.inputs)}")

    def _unfit(self, feeds: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The names of inputs that are missing, and those that are no inputs."""
        names = {info.name for info in self.inputs}
        missing = [info.name for info in self.inputs if feeds.get(info.name) is None and not info.is_optional]
        return missing, [str(name) for name in feeds if name not in names]

    def _execute(
        self, inputs: list[Array], sizes: tuple[int, ...], stamps: int | None = None, wait: bool = False
    ) -> tuple[list[Array], dict[str, int]]:
        """Run the code; with ``wait``, on all workers even if that means waiting for them. Gives the outputs and every size by name."""
        try:
            context = self._contexts.pop()
        except IndexError:
            context = Context(self._artifact, self.threads, self._prepare)
        if sizes:
            context.resize(sizes)
        outputs = [self._output(context, number) for number in range(len(self._out))]
        slots = context.slots
        placed = context.place(inputs)
        for slot, array in enumerate(placed + outputs, FIRST_TENSOR):
            slots[slot] = array.__array_interface__["data"][0]
        team = self._team(wait)
        if team is None:
            self._entry(None, context.address, 1, stamps)
        else:
            try:
                self._entry(team.block, context.address, self.threads, stamps)
            finally:
                team.free.release()
        try:
            if context.status:
                self._failed(context)
            for number, buffer in enumerate(self._results):
                shape = self._shape(context, number)
                if any(dim < 0 for dim in shape):
                    what = f"output {self._out[number][0]} would have shape {_shape(shape)}"
                    raise UserError(what, where=self.name, hint="give inputs large enough for what the model does with them")
                if buffer is not None:
                    outputs[number] = context.result(buffer, shape, _in_memory(self._out[number][1]))
                if self._out[number][1].kind == "O":
                    outputs[number] = context.texts(outputs[number])
            return outputs, context.amounts if stamps is None and wait else {}
        finally:
            self._contexts.append(context)

    def _output(self, context: Context, number: int) -> Array:
        """Memory for an output; none where its shape is only known when the run ends. Raises MemoryError for more than there is."""
        shape = self._shape(context, number) if self._results[number] is None else (0,)
        try:
            return np.empty([max(0, dim) for dim in shape], _in_memory(self._out[number][1]))
        except ValueError as error:  # more bytes than numpy can count
            raise MemoryError(str(error)) from error

    def _shape(self, context: Context, number: int) -> tuple[int, ...]:
        """The shape of an output, once it is known."""
        shape = tuple(dim for dim in self._out[number][2] if isinstance(dim, int))
        rank = len(self._out[number][2])
        return shape if len(shape) == rank else context.shape(number, rank)

    def _failed(self, context: Context) -> None:
        """Raises UserError for what a run reported; the context can be used again."""
        status, low, value, high = context.take_status()
        if status == OUT_OF_MEMORY:
            raise MemoryError(f"{low} bytes for one value")
        if status < 0:
            message = self._artifact.manifest.checks[-1 - status].format(low=low, value=value, high=high)
            raise UserError(message, where=self.name, hint="give inputs that the model is made for")
        kernel, what = self.kernels[status >> CALL_BITS], status & (1 << CALL_BITS) - 1
        if what >= DIVISION:
            raise division_error(f"{self.name}, node {kernel.divisions[what - DIVISION]}")
        raise index_error(low, high, value, f"{self.name}, node {kernel.name}")

    def _team(self, wait: bool) -> WorkerPool | None:
        """The workers, with ``free`` taken; None for a run on the calling thread alone."""
        if self.threads == 1:
            return None
        team = pool(self.threads, self._code)
        return team if team.free.acquire(blocking=wait) else None


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Module:
    """The module saved at path. ``threads=None``: what it was compiled with. Raises ArtifactError for a file that cannot be used here."""
    return Module(Artifact(path), threads)


def checked_threads(threads: int | None) -> int | None:
    """threads as it is. Raises UserError for what is not None or an integer from 1 to 1024."""
    if threads is None:
        return None
    count = _integer(threads)
    if not 1 <= count <= 1024:
        raise UserError(f"threads is {threads!r}", where="threads", hint="give an integer from 1 to 1024, or None for the CPUs available")
    return count


def _integer(value: Any) -> int:
    """value as an int; -1 for what is no integer, truth values included."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def _in_memory(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What elements are to code: strings are 64-bit integers."""
    return np.dtype(np.int64) if dtype.kind == "O" else dtype


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name, objects for strings; ml_dtypes is imported for those numpy does not have itself (``bfloat16``, ``int4``, …)."""
    if name == STRINGS:
        return np.dtype(np.object_)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def _shape(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _listing(infos: tuple[TensorInfo, ...]) -> str:
    return ", ".join(map(str, infos))
