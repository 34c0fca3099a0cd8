"""How many kernels a model becomes, beside the nodes ONNX Runtime leaves after its own optimisation, and the layout conversions that stay.

    python -m benchmarks.fusion [MODEL … | --write]

A kernel is whatever is launched: every group, those of branches and loop bodies included, and every branch, loop and copy that control flow makes.
ONNX Runtime's nodes are counted the same way, in the graph it writes after all of its optimisations. ``--write`` puts the table into docs/fusion.md.
Exits with status 1 where a model has more kernels than ONNX Runtime has nodes, or a layout conversion between two convolutions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer

from benchmarks.models import ROOT, load, zoo_names
from compiler.ir.control import BRANCHING, Loop
from compiler.ir.graph import Graph, Node, Value
from compiler.ir.verify import is_view
from compiler.pipeline import optimize
from compiler.target import Target, native
from frontend.onnx.importer import import_model
from passes.graph.group import Group
from passes.graph.plan import direct_outputs

Feeds = Mapping[str, "np.ndarray[Any, np.dtype[Any]]"]

PAGE = ROOT / "docs" / "fusion.md"
_BEGIN = "<!-- python -m benchmarks.fusion --write -->"


@dataclass(frozen=True)
class Count:
    """One model: our kernels, ONNX Runtime's nodes (None: it does not run the model), our layout conversions, those between convolutions."""

    name: str
    kernels: int
    nodes: int | None
    conversions: int
    between: int

    @property
    def kept(self) -> bool:
        """Whether there are no more kernels than nodes and no conversion between convolutions."""
        return (self.nodes is None or self.kernels <= self.nodes) and self.between == 0


def count(name: str) -> Count:
    """The model called name, sizes as in its inputs."""
    model, feeds = load(name)
    planned, grouped = stages(import_model(model, {key: array.shape for key, array in feeds.items()}), native())
    found = [conversions(graph) for graph in _graphs(grouped)]
    launched = sum(map(kernels, _graphs(planned)))
    return Count(name, launched, runtime_nodes(model, feeds), sum(len(every) for every, _ in found), sum(len(inside) for _, inside in found))


def stages(graph: Graph, target: Target) -> tuple[Graph, Graph]:
    """A graph as planned, and with its groups as they are before small ones go into others, where no conversion is seen."""
    seen: list[Graph] = []
    planned, _ = optimize(graph, target, observer=lambda step, result, _: seen.append(result) if isinstance(step, Group) else None)
    return planned, seen[-1]


def conversions(graph: Graph) -> tuple[list[Node], list[Node]]:
    """The layout conversions of one graph or region, and those between two convolutions."""
    every = [node for node in graph.nodes if _has(node, "to_layout")]
    return every, [node for node in every if _meets_conv(graph, node, back=True) and _meets_conv(graph, node, back=False)]


def kernels(graph: Graph) -> int:
    """What one graph or region launches, without the regions in it."""
    found = 0
    for node in graph.nodes:
        found += node.op == "group" or node.op in BRANCHING
        found += len(Loop.of(node).initial) if node.op == "loop" else 0
        found += sum(len(region.outputs) - len(direct_outputs(region)) for region in node.regions if node.op in BRANCHING)
    return found


def runtime_nodes(model: onnx.ModelProto, feeds: Feeds) -> int | None:
    """Nodes of ONNX Runtime's optimised graph for inputs of these shapes, subgraphs included; None where it cannot run the model."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as refusals

    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for info in bound.graph.input:
        if info.name in feeds:
            for dim, extent in zip(info.type.tensor_type.shape.dim, feeds[info.name].shape, strict=True):
                dim.dim_value = extent
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(bound.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except (refusals.Fail, refusals.InvalidArgument, refusals.InvalidGraph, refusals.NotImplemented, refusals.RuntimeException):
            return None
        return _nodes(onnx.load(options.optimized_model_filepath, load_external_data=False).graph)


def _nodes(graph: onnx.GraphProto) -> int:
    return sum(1 + sum(_nodes(attribute.g) for attribute in node.attribute if attribute.HasField("g")) for node in graph.node)


def _graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and the regions that run as graphs do."""
    yield graph
    for node in graph.nodes:
        for region in node.regions if node.op in BRANCHING else ():
            yield from _graphs(region)


def _has(node: Node, *ops: str) -> bool:
    return node.op == "group" and any(inner.op in ops for inner in node.regions[0].nodes)


def _meets_conv(graph: Graph, node: Node, *, back: bool) -> bool:
    """Whether what a conversion reads comes from (or what its kernel makes comes to) a convolution with nothing between that moves channels."""
    pending, seen = _beside(graph, [_converted(node)] if back else node.outputs, back=back), {node}
    while pending:
        current = pending.pop()
        if _has(current, "conv"):
            return True
        if current not in seen and (is_view(current) or (current.op == "group" and _keeps_channels(current))):
            seen.add(current)
            pending += _beside(graph, current.present_inputs if back else current.outputs, back=back)
    return False


def _converted(group: Node) -> Value:
    """What the layout conversion in a group reads."""
    (region,) = group.regions
    (inner,) = (node for node in region.nodes if node.op == "to_layout")
    return group.present_inputs[region.inputs.index(inner.present_inputs[0])]


def _beside(graph: Graph, values: Sequence[Value], *, back: bool) -> list[Node]:
    if back:
        return [graph.producers[value] for value in values if value in graph.producers]
    return [user for value in values for user in graph.users.get(value, ())]


def _keeps_channels(group: Node) -> bool:
    """Whether a kernel is arithmetic, pooling or an index map."""
    return not any(inner.op in ("attention", "matmul", "softmax", "normalize", "reduce", "recurrence") for inner in group.regions[0].nodes)


def table(counts: list[Count]) -> str:
    """The counts as a Markdown table."""
    lines = ["| model | kernels | ONNX Runtime's nodes | layout conversions | between convolutions |", "|---|---|---|---|---|"]
    lines += [f"| {c.name} | {c.kernels} | {'–' if c.nodes is None else c.nodes} | {c.conversions} | {c.between} |" for c in counts]
    return "\n".join(lines)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Zoo models or files; all of the zoo by default.")] = None,
    write: Annotated[bool, typer.Option(help="Write the table into docs/fusion.md.")] = False,
) -> None:
    """Count the kernels of MODELS."""
    if models and write:
        raise typer.BadParameter("the table is of the whole zoo: leave the models out, or --write")
    counts = []
    for name in models or zoo_names():
        found = count(name)
        counts.append(found)
        print(f"{name:32} {found.kernels:5} kernels, {found.nodes} nodes, {found.conversions} conversions, {found.between} between", flush=True)
    if write:
        head, _, _ = PAGE.read_text().partition(_BEGIN)
        PAGE.write_text(f"{head}{_BEGIN}\n\n{table(counts)}\n")
    raise typer.Exit(0 if all(found.kept for found in counts) else 1)


if __name__ == "__main__":
    typer.run(main)
