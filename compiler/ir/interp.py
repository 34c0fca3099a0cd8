"""What a graph of any stage means: each node's ``Op.evaluate`` in numpy, a group's region in its place, branches and loops as they run.

Arrays are logical whatever the layout of their values, so every stage of one graph gives the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from compiler.errors import InternalError, UserError, division_error
from compiler.ir.control import If, Loop, names, planned_sizes
from compiler.ir.graph import Array, Attr, Graph, Node, Region, Value
from compiler.ir.intexpr import Dim, IntExpr, Sym, evaluate, substitute
from compiler.ir.op import lookup
from compiler.ir.printer import print_node
from compiler.ir.types import DType, TensorType, compute_dtype
from compiler.ir.verify import is_elementwise


def interpret(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The graph's outputs by name for its inputs by name (logical arrays of their types).

    Raises UserError for feeds that do not fit and where a ``check`` fails, InternalError where a node's result is not of its type.
    """
    arrays = _run(graph, feeds)
    return {value.name: arrays[value] for value in graph.outputs}


def interpret_all(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """As ``interpret``, but every value of the graph and its regions by name, constants included (the last time it was computed)."""
    return {value.name: array for value, array in _run(graph, feeds).items()}


def bind_inputs(inputs: Sequence[Value], feeds: Mapping[str, Array]) -> tuple[list[Array], dict[str, int]]:
    """The feeds in the order of inputs, and what the symbolic dims of the inputs are. Raises UserError where they do not fit."""
    names = [value.name for value in inputs]
    unknown = [name for name in feeds if name not in names]
    missing = [name for name in names if name not in feeds]
    if unknown or missing:
        raise UserError(
            f"inputs {missing} are missing and {unknown} are unknown",
            where="run",
            hint=f"feed exactly: {', '.join(names) or 'nothing'}",
        )
    arrays: list[Array] = []
    dims: dict[str, int] = {}
    for value in inputs:
        array = np.asarray(feeds[value.name])
        if not _matches(value.type, array, dims):
            met = f"{array.dtype}{list(array.shape)}"
            bound = f" with {', '.join(f'{k} = {v}' for k, v in dims.items())}" if dims else ""
            raise UserError(f"input {value.name} is {met}, not {value.type}{bound}", where="run", hint="feed an array of that dtype and shape")
        arrays.append(array)
    return arrays, dims


def _matches(type_: TensorType, array: Array, dims: dict[str, int]) -> bool:
    """Whether array is of type_; symbols met for the first time are bound in dims."""
    if array.dtype != type_.dtype.numpy or array.ndim != type_.rank:
        return False
    for dim, extent in zip(type_.shape, array.shape, strict=True):
        name = _symbol(dim)
        if name is not None:
            dims.setdefault(name, extent)
    try:
        return all(evaluate(dim, dims) == extent for dim, extent in zip(type_.shape, array.shape, strict=True))
    except KeyError:
        return False


def _symbol(dim: Dim) -> str | None:
    """The symbol's name when dim is nothing but a symbol."""
    if isinstance(dim, int) or dim.const or len(dim.terms) != 1:
        return None
    monomial, coefficient = dim.terms[0]
    atom = monomial[0]
    return atom.name if coefficient == 1 and len(monomial) == 1 and isinstance(atom, Sym) else None


def _run(graph: Graph, feeds: Mapping[str, Array]) -> dict[Value, Array]:
    arrays, dims = bind_inputs(graph.inputs, feeds)
    values = dict(zip(graph.inputs, arrays, strict=True))
    for name, size in planned_sizes(graph):
        dims[name] = evaluate(size, dims)
    _run_nodes(graph, values, dims)
    return values


def _run_nodes(graph: Graph, values: dict[Value, Array], dims: dict[str, int], *, fused: bool = False) -> None:
    """``fused``: graph is one kernel, in which half-precision results stay in the type they are computed in."""
    values.update((value, constant.array) for value, constant in graph.constants.items())
    for node in graph.nodes:
        for value, array in zip(node.outputs, _results(node, values, dims, fused=fused), strict=True):
            if not _matches(value.type, _rounded(array, value.type) if fused else array, dims):
                raise InternalError(f"the result is {array.dtype}{list(array.shape)}", where=f"interpreting {print_node(node)}")
            values[value] = array


def _rounded(array: Array, type_: TensorType) -> Array:
    """What a kernel stores for an array of the type that type_ is computed in."""
    kept = array.dtype == compute_dtype(type_.dtype).numpy
    return array.astype(type_.dtype.numpy, copy=False) if kept else array


def _results(node: Node, values: dict[Value, Array], dims: dict[str, int], *, fused: bool) -> Sequence[Array]:
    match node.op:
        case "group":
            (region,) = node.regions
            values.update(zip(region.inputs, (values[v] for v in node.present_inputs), strict=True))
            _run_nodes(region, values, dims, fused=True)
            return [_rounded(values[v], v.type) for v in region.outputs]
        case "if":
            return _branch(If.of(node), values, dims)
        case "loop":
            return _loop(Loop.of(node), values, dims)
        case "bind":
            dims.update(zip(names(node), map(int, values[node.present_inputs[0]].reshape(-1)), strict=True))
        case "define":
            dims[str(node.attrs["symbol"])] = _number(node.attrs["value"], dims)
    inputs = [None if v is None else values[v] for v in node.inputs]
    if fused and (is_elementwise(node) or lookup(node.op).computes):
        inputs = [None if x is None else x.astype(compute_dtype(DType.of(x.dtype)).numpy, copy=False) for x in inputs]
    try:
        return lookup(node.op).evaluate(inputs, {key: bind_attr(attr, dims) for key, attr in node.attrs.items()})
    except IndexError as error:
        raise UserError(str(error), where=f"node {node.name}", hint="give inputs whose indices lie inside what they index") from error
    except ZeroDivisionError as error:
        raise division_error(f"node {node.name or node.output.name}") from error


def _number(dim: Attr, dims: Mapping[str, int]) -> int:
    if not isinstance(dim, int | IntExpr):
        raise InternalError(f"{dim!r} is not a dim", where="interpreting")
    return evaluate(dim, dims)


def _branch(node: If, values: dict[Value, Array], dims: dict[str, int]) -> Sequence[Array]:
    taken = bool(values[node.condition].item())
    region, inner = node.then if taken else node.otherwise, dict(dims)
    values.update(zip(region.inputs, (values[v] for v in node.captured), strict=True))
    _run_nodes(region, values, inner)
    dims.update({merge.symbol: evaluate(merge.first if taken else merge.second, inner) for merge in node.merges})
    return [values[v] for v in region.outputs]


def _loop(node: Loop, values: dict[Value, Array], dims: dict[str, int]) -> Sequence[Array]:
    trips = None if node.trips is None else evaluate(node.trips, dims)
    carried = [values[v] for v in node.initial]
    captured = [values[v] for v in node.captured]
    merged = {merge.symbol: evaluate(merge.first, dims) for merge in node.merges}
    scans: list[list[Array]] = [[] for _ in node.scans]
    going, count = node.condition is None or bool(values[node.condition].item()), 0
    while going and (trips is None or count < trips):
        inner = {**dims, **merged, node.iteration: count}
        values.update(zip(node.body.inputs, (*carried, *captured), strict=True))
        _run_nodes(node.body, values, inner)
        going = not node.has_condition or bool(values[node.body.outputs[0]].item())
        given = [values[v] for v in node.next_values]
        carried = [np.concatenate([old, new]) if i in node.appended else new for i, (old, new) in enumerate(zip(carried, given, strict=True))]
        merged = {merge.symbol: evaluate(merge.second, inner) for merge in node.merges}
        for scan, value in zip(scans, node.scans, strict=True):
            scan.append(values[value])
        count += 1
    dims.update({**merged, node.count: count})
    return [*carried, *(_stacked(scan, value.type, dims) for scan, value in zip(scans, node.scans, strict=True))]


def _stacked(scan: Sequence[Array], type_: TensorType, dims: Mapping[str, int]) -> Array:
    return np.stack(scan) if scan else np.zeros((0, *(evaluate(dim, dims) for dim in type_.shape)), type_.dtype.numpy)


def bind_attr(attr: Attr, dims: Mapping[str, int]) -> Attr:
    """attr with the symbols that dims knows replaced by their numbers."""
    match attr:
        case IntExpr():
            return substitute(attr, dims)
        case tuple():
            return tuple(bind_attr(item, dims) for item in attr)
        case Region():
            return replace(attr, offset=_bind(attr.offset, dims), extent=_bind(attr.extent, dims), index=_bind(attr.index, dims))
        case _:
            return attr


def _bind(exprs: tuple[Dim, ...], dims: Mapping[str, int]) -> tuple[Dim, ...]:
    return tuple(substitute(expr, dims) for expr in exprs)
