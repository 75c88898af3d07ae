"""The command line: parse, one call, print. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ltcompile.cli import bench, doctor, find, inspect, lower, plan, report, show, shrink
from ltcompile.errors import LtcompileError


class _PlainHelp(TyperGroup):
    """The list of commands as plain text: rich's help takes a quarter of a second to import, which only a command's own is worth."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


app = typer.Typer(
    name="ltcompile",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    cls=_PlainHelp,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find a winning ticket, cut the network for real, and measure what it gained.",
    epilog="Example:  ltcompile find --model vgg16 --rewind lr --name demo  ·  ltcompile shrink runs/demo/ticket.pt -o runs/demo/small.onnx  ·  "
    "ltcompile bench runs/demo/small.onnx  ·  ltcompile report runs/demo",
)
for module in (find, plan, shrink, lower, bench, report, show, inspect, doctor):
    module.register(app)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"ltcompile {installed('ltcompile')}")
        raise typer.Exit


def main() -> None:
    """Run the command line: exit code 0, 2 for an error that the user can mend, 1 for ours, 130 after Ctrl-C."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(args=arguments)
    except LtcompileError as error:
        if debug:
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("stopped", fg="yellow", err=True)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        typer.secho(
            f"this is a bug in ltcompile: {type(error).__name__}: {error}\nplease report it with the output of the same command and --debug",
            fg="red",
            err=True,
        )
        sys.exit(1)
