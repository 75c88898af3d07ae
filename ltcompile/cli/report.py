"""ltcompile report: write the HTML page of a run, a study or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer

from ltcompile.cli._network import EXAMPLE, MODEL, PLAN, WEIGHTS, own_network

SUMMARY = "Write the page on a run, a study or a network."
EPILOG = (
    "Examples:  ltcompile report runs/demo -o report.html  ·  "
    "ltcompile report --model my.net:build --weights small.pth --plan plan.json --example 1x3x64x64 -o report.html"
)


def report(
    run: Optional[Path] = typer.Argument(
        None,
        help="Folder of a run, of a search in your own loop, of files or a benchmark of your own network, or of a study; without one, --model "
        "names a network, which is timed at batch size 1.",
    ),
    output: Path | None = typer.Option(
        None, "-o", "--output", help="The page to write; RUN/report.html by default, a study's study.html, report.html of a --model."
    ),
    model: str | None = MODEL,
    weights: Optional[Path] = WEIGHTS,
    plan: Optional[Path] = PLAN,
    example: str | None = EXAMPLE,
) -> None:
    """Write one self-contained HTML page, and report.json, with the claims and measurements of a run or a network."""
    from ltcompile.errors import InvalidSetting
    from ltcompile.paths import check_writable
    from ltcompile.reporting import report as write

    if run is None and model is None:
        raise InvalidSetting("name the folder of a run, or a network of your own: --model package.module:factory --example 1x3x32x32")
    if run is not None and model is not None:
        raise InvalidSetting(f"--model belongs to a network of your own, and {run} is a folder of results; leave one of them out")
    page = output or (Path("report.html") if run is None else None)
    if run is None and page is not None:
        check_writable(page)
    typer.echo(f"wrote {write(own_network(run, model, weights, plan, example) or run, page)}")  # type: ignore[arg-type]  # one of them is given
