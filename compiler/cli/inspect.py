"""tensorsmith inspect: what is in a compiled module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from compiler.cli.options import InputShapes, ModuleFile, console, open_module, parse_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from passes.base import PassReport
    from runtime.artifact import PassInfo


def inspect_command(
    module: ModuleFile,
    input_shape: InputShapes = None,
    passes: Annotated[bool, typer.Option("--passes", help="Show also what each pass did when it was compiled.")] = False,
) -> None:
    """Show inputs, outputs, memory and kernels."""
    opened = open_module(module, None, parse_shapes(input_shape))
    memory = opened.memory()
    out = console()
    out.print(f"{opened.name} for {opened.target}, {opened.threads} threads")
    for label, infos in (("input", opened.inputs), ("output", opened.outputs)):
        for info in infos:
            out.print(f"{label:7} {info}")
    bound = "" if memory.bound is None else f" (bound {memory.bound / 1e6:.2f} MB)"
    arena = "arena by the inputs' shapes" if memory.arena is None else f"arena {memory.arena / 1e6:.2f} MB{bound}"
    scratch = f", scratch {memory.scratch / 1e3:.0f} kB a worker" if memory.scratch else ""
    out.print(f"weights {memory.weights / 1e6:.2f} MB, code {memory.code / 1e3:.0f} kB, {arena}{scratch}")
    if memory.peak:
        out.print(f"most of the arena is needed by {memory.peak}")
    table = kernel_table("MFLOP", "kB")
    for kernel in opened.kernels:
        table.add_row(kernel.name, kernel.family, _amount(kernel.flops, 1e6), _amount(kernel.nbytes, 1e3), kernel.schedule)
    out.print(table)
    if passes:
        out.print(pass_table(opened.report()))


def pass_table(report: Sequence[PassInfo | PassReport]) -> Table:
    """Passes with their time, nodes before and after, and notes, and the time of all of them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("pass", "ms", "nodes", "notes"):
        table.add_column(column, justify="right" if column in ("ms", "nodes") else "left", overflow="fold")
    for each in report:
        nodes = f"{each.nodes_before} to {each.nodes_after}" if each.nodes_before != each.nodes_after else f"{each.nodes_after}"
        table.add_row(each.name, f"{1e3 * each.seconds:.1f}", nodes, "; ".join(each.notes))
    table.add_row("total", f"{1e3 * sum(each.seconds for each in report):.1f}")
    return table


def _amount(amount: int | str, unit: float) -> str:
    """An amount in that unit; one that depends on the inputs' shapes is not known here."""
    return "by shape" if isinstance(amount, str) else f"{amount / unit:.2f}"


def kernel_table(*figures: str) -> Table:
    """An empty table of kernels: name, family, these figures, schedule."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("kernel", overflow="fold")
    table.add_column("family")
    for figure in figures:
        table.add_column(figure, justify="right")
    table.add_column("schedule", overflow="fold")
    return table
