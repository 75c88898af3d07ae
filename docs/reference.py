"""Write the reference pages from the code: `python docs/reference.py`; `make docs` runs it first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main
from typer.cli import get_docs_for_click

import ltcompile as lt
from ltcompile.cli import app

FOLDER = Path(__file__).parent / "reference"
INTRODUCTION = """# Python

`import ltcompile as lt` offers the names below; each is imported on first use. Functions with the name of a command do what the
command does, without printing.
"""


def command_line() -> str:
    """All commands with their options, by typer's own generator."""
    command = typer.main.get_command(app)
    with command.make_context("ltcompile", [], resilient_parsing=True) as context:
        return get_docs_for_click(obj=command, ctx=context, name="ltcompile", title="Command line")


def python() -> str:
    """One directive of mkdocstrings for each public name, functions first."""
    functions = [name for name in lt.__all__ if name.islower()]
    nouns = [name for name in lt.__all__ if not name.islower()]
    parts = [INTRODUCTION]
    for title, names in (("Functions", functions), ("Nouns", nouns)):
        parts.append(f"## {title}\n")
        parts += [f"::: {_path(getattr(lt, name))}\n    options:\n      heading: lt.{name}\n      heading_level: 3\n" for name in names]
    return "\n".join(parts)


def _path(value: Any) -> str:
    """Where a function or class is defined: a module may have the name of a function in it."""
    return f"{value.__module__}.{value.__qualname__}"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for page, text in (("cli.md", command_line()), ("python.md", python())):
        (FOLDER / page).write_text(text, encoding="utf-8")
