"""ltcompile report: write the HTML page of a run or a study."""

from __future__ import annotations

from pathlib import Path

import typer

EPILOG = "Example:  ltcompile report runs/demo -o report.html"


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Write the page on a run or a study.")(report)


def report(
    run: Path = typer.Argument(
        ..., help="Folder of a run, of a search in your own loop, of a benchmark of your own network, or of a study."
    ),
    output: Path | None = typer.Option(None, "-o", "--output", help="The page to write; RUN/report.html by default, a study's study.html."),
) -> None:
    """Write one self-contained HTML page, and report.json, with the claims and measurements of a run."""
    from ltcompile.reporting import report as write

    typer.echo(f"wrote {write(run, output)}")
