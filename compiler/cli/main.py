"""The command line: one file of this package per subcommand."""

from __future__ import annotations

import sys

import typer

from compiler.cli.bench import bench_command
from compiler.cli.compile import compile_command
from compiler.cli.inspect import inspect_command
from compiler.cli.opt import opt_command
from compiler.cli.profile import profile_command
from compiler.cli.run import run_command
from compiler.errors import UserError

app = typer.Typer(
    name="tensorsmith", help="Compile ONNX models to native code.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command("compile")(compile_command)
app.command("run")(run_command)
app.command("bench")(bench_command)
app.command("opt")(opt_command)
app.command("inspect")(inspect_command)
app.command("profile")(profile_command)


def main() -> None:
    """Run the command line. What the user can mend is one message on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
