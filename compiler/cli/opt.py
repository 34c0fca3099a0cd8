"""tensorsmith opt: the IR as text, before and after passes and as it leaves each stage."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from compiler.cli.inspect import pass_table
from compiler.cli.options import InputShapes, MemoryBudget, ModelFile, OptLevel, TargetName, Threads, console, parse_bytes, parse_shapes
from compiler.errors import UserError

if TYPE_CHECKING:
    from compiler.ir.graph import Graph
    from compiler.ir.program import Program
    from compiler.target import Target
    from passes.base import Pass, PassReport


class Stage(StrEnum):
    """What ``opt`` prints at the end."""

    IMPORTED = "imported"
    CANONICAL = "canonical"
    LAID_OUT = "laid-out"
    GROUPED = "grouped"
    PLANNED = "planned"
    LOOPS = "loops"
    LLVM = "llvm"


_OnePass = Annotated[list[str] | None, typer.Option(help="A pass's name, or 'all'. Repeatable.", show_default=False)]


def opt_command(
    model: ModelFile,
    print_before: _OnePass = None,
    print_after: _OnePass = None,
    passes: Annotated[str, typer.Option(help="Run these instead: name,name{option=value},…", show_default=False)] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Show what each rule matched and, where one nearly did, why not.")] = False,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show how long each pass took.")] = False,
    stage: Annotated[Stage | None, typer.Option(help="Print the program at this stage.", show_default=False)] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the graph after every pass, and rewrites on random numbers.")] = False,
    target: TargetName = "native",
    threads: Threads = None,
    opt_level: OptLevel = 3,
    input_shape: InputShapes = None,
    memory_budget: MemoryBudget = None,
) -> None:
    """Run graph passes and print the IR. Without a print option, the final graph is printed."""
    from compiler.driver import Options, lowered
    from compiler.ir.printer import print_graph
    from compiler.lowering import lower
    from compiler.pipeline import passes_for
    from compiler.target import resolve
    from frontend.onnx.importer import import_model
    from passes.base import PassManager, parse_passes

    options = Options.checked(target, threads, parse_shapes(input_shape), opt_level, parse_bytes(memory_budget))
    if passes and options.memory_budget is not None:
        raise UserError("the passes are given, and a budget, which asks for its own", where="--passes, --memory-budget", hint="leave one of them out")
    machine = resolve(options.target)
    steps = parse_passes(passes) if passes else passes_for(machine, options.opt_level, options.workers)
    graph = import_model(model, dict(options.input_shapes))
    if options.memory_budget is not None:
        steps = tuple(report.step for report in lowered(graph, machine, options)[1])
    if stage is not None:
        steps = _up_to(steps, stage)
    printer = _Printer(steps, print_before or (), print_after or ())
    printer.before(0, graph)
    graph, reports = PassManager(steps, verify=verify, observer=printer.after).run(graph)
    if stage in (Stage.LOOPS, Stage.LLVM):
        _print_program(lower(graph, machine, options.workers), stage, machine)
    elif stage is not None or not (print_before or print_after or explain or time_passes):
        typer.echo(print_graph(graph), nl=False)
    if explain:
        _print_rules(reports)
    if time_passes:
        console(stderr=True).print(pass_table(reports))


class _Printer:
    """Prints the graph before and after the passes that were named."""

    def __init__(self, steps: Sequence[Pass], before: Sequence[str], after: Sequence[str]) -> None:
        self._steps = steps
        self._before, self._after = set(before), set(after)
        self._done = 0
        names = {step.name for step in steps}
        unknown = sorted((self._before | self._after) - names - {"all"})
        if unknown:
            hint = f"use 'all' or some of: {', '.join(dict.fromkeys(step.name for step in steps))}"
            raise UserError(f"no pass called {', '.join(unknown)} runs", where="--print-after, --print-before", hint=hint)

    def before(self, number: int, graph: Graph) -> None:
        if number < len(self._steps):
            self._print("before", self._steps[number].name, self._before, graph)

    def after(self, step: Pass, graph: Graph, report: PassReport) -> None:
        suffix = "" if report.changed else " (no change)"
        self._print("after", step.name, self._after, graph, suffix)
        self._done += 1
        self.before(self._done, graph)

    def _print(self, when: str, name: str, wanted: set[str], graph: Graph, suffix: str = "") -> None:
        from compiler.ir.printer import print_graph

        if name in wanted or "all" in wanted:
            typer.echo(f"// {when} {name}{suffix}\n{print_graph(graph)}")


def _up_to(steps: Sequence[Pass], stage: Stage) -> tuple[Pass, ...]:
    """The passes whose results belong to stage or an earlier one."""
    order = [each.value for each in Stage]
    limit = order.index(stage.value)
    return tuple(step for step in steps if order.index(step.stage.value.replace(" ", "-")) <= limit)


def _print_program(program: Program, stage: Stage, target: Target) -> None:
    if stage is Stage.LOOPS:
        from compiler.ir.program_text import print_program

        typer.echo(print_program(program))
    else:
        from backends.llvm.engine import kernel_text
        from backends.llvm.main import main_text

        for text in [*(kernel_text(function, target) for function in program.functions), main_text(program)]:
            typer.echo(text)


def _print_rules(reports: Sequence[PassReport]) -> None:
    """Pass by pass and rule by rule the nodes that matched, then those that nearly did; passes without rules say what they did in notes."""
    for report in reports:
        if report.events or report.notes:
            typer.echo(f"{report.name}: {'; '.join(report.notes) or 'nothing matched'}")
        for rule in dict.fromkeys(event.rule for event in report.events):
            events = [event for event in report.events if event.rule == rule]
            matched = [event.node for event in events if event.reason is None]
            if matched:
                typer.echo(f"  {rule} matched {len(matched)}: {', '.join(matched)}")
            for event in events:
                if event.reason is not None:
                    typer.echo(f"  {rule} not at {event.node}: {event.reason}")
