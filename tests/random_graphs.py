"""Random models of many operators, against ONNX's reference evaluator.

    python tests/random_graphs.py --seed 1 --count 2000

A model grows node by node, and the oracle runs each node as it is added, three times: on the exact operands, and on two copies that
carry small relative errors, which every operator that rounds adds to. Where the copies stand after the last node says how far rounding may
move each output; a node whose integers or booleans differ between the copies, or that is no longer determined at all, is not added.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import random_nodes
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import tensorsmith
from compiler.errors import UnsupportedError
from compiler.ir.interp import interpret
from compiler.pipeline import optimize
from compiler.target import resolve
from frontend.onnx.importer import import_model

Array = np.ndarray[Any, Any]

OPSET = 20
EXACT = frozenset(random_nodes.EXACT)
NOISE = {np.dtype(np.float64): 1e-14, np.dtype(np.float32): 5e-7, np.dtype(np.float16): 2e-3}
"""Relative error of one operation, generously: results in half precision may be rounded at other places."""
TOLERANCE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-5, np.dtype(np.float16): 4e-3}
"""Of an output's scale, beside what the copies say."""
LARGEST = 1e4
"""Values stay below, so that no result is far from its operands' scale."""
SMALLEST = 1e-12
"""What is all smaller may have come through denormals, which have few digits."""
MOST_ELEMENTS = 20_000


class UnfitError(Exception):
    """A node that is not added."""


@dataclass(repr=False)
class GraphMaker:
    """The model so far. ``values`` holds, for each name, the exact array and its copies with errors."""

    rng: random.Random
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: dict[str, tuple[Array, ...]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    read_outputs: list[str] = field(default_factory=list)
    symbolic: bool = False

    def __repr__(self) -> str:
        return f"a graph of {len(self.nodes)} nodes"

    def array(self, shape: Sequence[int], dtype: Any, low: float = -2, high: float = 2) -> Array:
        """Random numbers; integers are drawn from the same range."""
        draw = np.random.default_rng(self.rng.getrandbits(24))
        kind = np.dtype(dtype).kind
        if kind == "b":
            return draw.integers(0, 2, shape).astype(bool)
        if kind in "iu":
            return draw.integers(int(max(low, 0 if kind == "u" else low)), int(high) + 1, shape).astype(dtype)
        return draw.uniform(low, high, shape).astype(dtype)

    def known(self, array: Array, *, constant: bool | None = None) -> str:
        """A new graph input or initializer."""
        constant = self.rng.random() < 0.5 if constant is None else constant
        name = f"{'c' if constant else 'x'}{len(self.values)}"
        self.values[name] = (array,) * 3
        (self.constants if constant else self.inputs).append(name)
        return name

    def ints(self, *values: int) -> str:
        """Integers that are known when the model is compiled."""
        return self.known(np.array(values, np.int64), constant=True)

    def exact(self, name: str) -> Array:
        return self.values[name][0]

    def pick(self, fits: Callable[[Array], bool]) -> str:
        """A value that fits, late ones more often. Raises UnfitError where there is none."""
        found = [name for name, arrays in self.values.items() if fits(arrays[0]) and name not in self.constants]
        if not found:
            raise UnfitError
        return found[max(self.rng.randrange(len(found)), self.rng.randrange(len(found)))]

    def node(self, op: str, operands: Sequence[str], results: int = 1, **attrs: Any) -> list[str]:
        """Add a node; its results' names. Raises UnfitError where the oracle refuses it or its results cannot be compared."""
        names = [f"v{len(self.values) + k}" for k in range(results)]
        node = helper.make_node(op, list(operands), names, **attrs)
        copies = [self._copy(op, [self.values[name][k] if name else None for name in operands], k) for k in range(3)]
        try:
            runs = [_reference(node, copy) for copy in copies]
        except Exception as error:  # the reference refuses in many ways
            raise UnfitError from error
        results_of = [tuple(self._noisy(op, run[at], k) for k, run in enumerate(runs)) for at in range(results)]
        if not all(map(_fit, results_of)):
            raise UnfitError
        self.nodes.append(node)
        self.values.update(zip(names, results_of, strict=True))
        self.read_outputs += [name for name in names if self.rng.random() < 0.1]
        return names

    def _copy(self, op: str, arrays: list[Array | None], copy: int) -> list[Array | None]:
        return [None if a is None else self._noisy(op, a, copy) for a in arrays]

    @staticmethod
    def _noisy(op: str, array: Array, copy: int) -> Array:
        if copy == 0 or op in EXACT or array.dtype not in NOISE:
            return array
        signs = np.random.default_rng(array.size * 2 + copy).choice((-1.0, 1.0), array.shape)
        return (array * (1 + NOISE[array.dtype] * signs)).astype(array.dtype)

    def model(self) -> onnx.ModelProto:
        """The model, whose outputs are all values that no node reads, and some that are read."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for node in self.nodes for name in node.output]
        outputs = [name for name in made if name not in read or name in self.read_outputs]
        infos = [self._info(name) for name in self.inputs]
        constants = [numpy_helper.from_array(self.exact(name), name) for name in self.constants]
        graph = helper.make_graph(self.nodes, "random", infos, [onnx.ValueInfoProto(name=name) for name in outputs], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        array = self.exact(name)
        shape = [f"d{n}" if self.symbolic and n > 1 else n for n in array.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def _reference(node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Array]:
    given = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None}
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()]
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name=name) for name in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        if node.op_type in random_nodes.REFERENCE_IS_WRONG:
            return [np.asarray(y) for y in _onnxruntime(model, given)]
        return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, given)]


def _onnxruntime(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return list(onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds))


def _fit(copies: Sequence[Array]) -> bool:
    """Whether a result is finite, of a modest size, and determined well enough to be compared."""
    exact = copies[0]
    if exact.size > MOST_ELEMENTS or any(c.shape != exact.shape or c.dtype != exact.dtype for c in copies):
        return False
    if exact.dtype not in NOISE:
        return exact.dtype.kind in "iub" and all(np.array_equal(exact, c) for c in copies)
    if not all(np.isfinite(c).all() for c in copies) or _scale(exact) > LARGEST or 0 < _scale(exact) < SMALLEST:
        return False
    return _spread(copies) <= 1e-2 * max(_scale(exact), 1e-3)


def _spread(copies: Sequence[Array]) -> float:
    return max(float(np.abs(c.astype(np.float64) - copies[0].astype(np.float64)).max(initial=0)) for c in copies)


def _scale(array: Array) -> float:
    return float(np.abs(array.astype(np.float64)).max(initial=0))


@st.composite
def graphs(draw: Any, most_nodes: int = 40) -> GraphMaker:
    """Models of up to ``most_nodes`` nodes with their values."""
    maker = GraphMaker(draw(st.randoms(use_true_random=False)))
    maker.symbolic = maker.rng.random() < 0.2
    for _ in range(maker.rng.randint(1, 3)):
        random_nodes.graph_input(maker)
    for _ in range(draw(st.integers(5, most_nodes))):
        try:
            maker.rng.choice(random_nodes.FAMILIES)(maker)
        except UnfitError:
            continue
    return maker


def check(maker: GraphMaker, *, native: bool, opt_level: int = 3) -> None:
    """Raises AssertionError where the graph, the optimised graph or native code gives something else than the oracle.

    A graph with symbolic dims is compiled for the sizes it has, and once more for any.
    """
    model = maker.model()
    if not model.graph.output:
        return
    feeds = {name: maker.exact(name) for name in maker.inputs}
    _check(maker, model, {name: array.shape for name, array in feeds.items()}, native, opt_level)
    if maker.symbolic:
        try:
            _check(maker, model, {}, native, opt_level)
        except UnsupportedError:  # whether sizes agree may not be known before a run
            return


def _check(maker: GraphMaker, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], native: bool, opt_level: int) -> None:
    feeds = {name: maker.exact(name) for name in maker.inputs}
    kind = "of known" if shapes else "of any"
    graph = import_model(model, shapes)
    own = {value.name: feeds[str(name)] for value, name in zip(graph.inputs, graph.attrs["input_names"], strict=True)}  # type: ignore[arg-type]
    names = [value.name for value in model.graph.output]
    _compare(maker, names, list(interpret(graph, own).values()), f"{kind} sizes as imported")
    planned, _ = optimize(graph, resolve("native"), opt_level, verify=True)
    _compare(maker, names, list(interpret(planned, own).values()), f"{kind} sizes optimised at level {opt_level}")
    if native:
        got = tensorsmith.compile(model, threads=1, input_shapes=shapes, cache=False, opt_level=opt_level).run(feeds)
        _compare(maker, names, [got[name] for name in names], f"{kind} sizes in native code at level {opt_level}")


def _compare(maker: GraphMaker, names: Sequence[str], found: Sequence[Array], stage: str) -> None:
    for name, array in zip(names, found, strict=True):
        got, copies = np.asarray(array), maker.values[name]
        want = copies[0]
        assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{name} {stage} is {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        if want.dtype not in NOISE:
            wrong = got != want
        else:
            # The reference rounds each step to 16 bits: what is left of a logarithm near 0 is an error of the numbers around 1 that it is of.
            scale = max(1.0, _scale(want)) if want.dtype.itemsize == 2 else _scale(want)
            bound = TOLERANCE[want.dtype] * scale + 10 * _spread(copies) + float(np.finfo(want.dtype).tiny)
            wrong = ~(np.abs(got.astype(np.float64) - want.astype(np.float64)) <= bound)
        if wrong.any():
            at = tuple(map(int, np.argwhere(wrong)[0]))
            raise AssertionError(f"{name} {stage}: {int(wrong.sum())} of {wrong.size} differ, the first at {at}: {got[at]!r} for {want[at]!r}")


def reduced(maker: GraphMaker, fails: Callable[[GraphMaker], bool]) -> GraphMaker:
    """The maker with as few nodes as still fail: each that can go makes way for a graph input that holds its result."""
    position = 0
    while position < len(maker.nodes):
        kept = [*maker.nodes[:position], *maker.nodes[position + 1 :]]
        read = {name for node in kept for name in node.input}
        freed = [name for name in maker.nodes[position].output if name in read]
        inputs = [name for name in (*maker.inputs, *freed) if name in read]
        constants = [name for name in maker.constants if name in read]
        smaller = replace(maker, nodes=kept, inputs=inputs, constants=constants)
        if kept and fails(smaller):
            maker = smaller
        else:
            position += 1
    return maker


BATCH = 50
"""Graphs that hypothesis makes of one seed."""


def run(first_seed: int, count: int, *, native_every: int = 4, most_nodes: int = 40) -> list[str]:
    """What was found among ``count`` graphs: for each failure the nodes that it takes, as text, and the error."""
    return [
        failure
        for start in range(0, count, BATCH)
        for failure in _batch(first_seed + start // BATCH, min(BATCH, count - start), native_every, most_nodes)
    ]


def _batch(number: int, count: int, native_every: int, most_nodes: int) -> list[str]:
    failures: list[str] = []
    runs = 0

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(graphs(most_nodes))
    def one(maker: GraphMaker) -> None:
        nonlocal runs
        runs += 1
        native, opt_level = runs % native_every == 0, (3, 3, 1, 0)[runs // native_every % 4]
        if _error(maker, native, opt_level):
            small = reduced(maker, lambda smaller: bool(_error(smaller, native, opt_level)))
            failures.append(f"seed {number}, graph {runs}\n{onnx.printer.to_text(small.model())}\n{_error(small, native, opt_level)}")
            print(f"\n== {failures[-1]}", flush=True)

    one()
    return failures


def _error(maker: GraphMaker, native: bool, opt_level: int) -> str:
    try:
        check(maker, native=native, opt_level=opt_level)
    except Exception:  # noqa: BLE001 # an error of any kind is a finding
        return traceback.format_exc()
    return ""


def main() -> int:
    """Status 0 where nothing is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--native-every", type=int, default=4)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    begin = time.perf_counter()
    failures = run(options.seed, options.count, native_every=options.native_every)
    print(f"{options.count} graphs in {time.perf_counter() - begin:.0f} s, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
