"""The command line: parse, one call, print. Heavy packages are imported by the command that needs them."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ltcompile import ranks
from ltcompile.cli._flags import with_flags
from ltcompile.cli._terminal import printable
from ltcompile.errors import LtcompileError
from ltcompile.processors import limited, processors

COMMANDS = "find worker status plan profile squeeze shrink lower compile bench sweep compare study report verify show inspect doctor"


class _PlainHelp(TyperGroup):
    """The list of commands as plain text: rich's help takes a quarter of a second to import, which only a command's own is worth."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)


class _Command(TyperCommand):
    """A command whose help shows square brackets, which rich would take for markup."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.markup import escape

        params: Any = self.params
        for param in params:
            param.help = escape(param.help or "")
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
for name in COMMANDS.split():  # a command is the function of its module's name
    module = importlib.import_module(f"ltcompile.cli.{name}")
    app.command(cls=_Command, epilog=module.EPILOG, short_help=module.SUMMARY)(getattr(module, name))


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Print the traceback of an error; works after any command too."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"ltcompile {installed('ltcompile')}")
        raise typer.Exit


def main() -> None:
    """Run the command line: exit code 0, 2 for an error that the user can fix, 1 for ours, 130 after Ctrl-C; commands may have others."""
    if limited():  # before PyTorch is imported
        os.environ.setdefault("OMP_NUM_THREADS", str(processors()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show is not a reason to stop
    try:
        app(args=[a for a in sys.argv[1:] if a != "--debug"])
    except KeyboardInterrupt:
        typer.secho("stopped", fg="yellow", err=True)
        sys.exit(130)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if not ranks.reports(error):
            sys.exit(1)
        message, code = _message(error)
        typer.secho(printable(message), fg="red", err=True)
        sys.exit(code)


def _command() -> Any:
    """The click command that was run; the whole group where it is unknown."""
    group = typer.main.get_command(app)
    return next((group.commands[word] for word in sys.argv[1:] if word in group.commands), group)  # type: ignore[attr-defined]


def _message(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, LtcompileError):
        return f"error: {with_flags(str(error), _command())}", 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}; check that it is there, and that you may use it", 2
    if ranks.peer_ended(error):
        return "error: another process of this training ended; see what it says, and continue with --resume", 2
    bug = f"this is a bug in ltcompile: {type(error).__name__}: {error}"
    return f"{bug}\nplease report it with the output of the same command and --debug", 1
