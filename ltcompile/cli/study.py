"""ltcompile study: what papers on tickets claim, repeated on real data, with an answer for every claim."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ltcompile.cli._workers import EXECUTOR, EXECUTOR_OPTION, JOBS, RETRIES, Workers

if TYPE_CHECKING:
    from ltcompile.core.study import Study, Table

SUMMARY = "Repeat a paper's study of tickets, claim by claim."
EPILOG = (
    "Examples:  ltcompile study structured-tickets  ·  ltcompile study sanity --scale small --data-root DIR  ·  "
    "ltcompile study structured-tickets --scale full --data-root DIR --device cuda --resume"
)
COLOURS = {"holds": "green", "does not hold": "red", "not decidable here": "yellow"}


def study(
    name: str | None = typer.Argument(None, help="Which study; without one they are listed."),
    scale: str = typer.Option(
        "smoke",
        help="smoke (a minute on a CPU), small (an hour on two cores), medium (hours; structured-tickets alone) or full (the published "
        "setting, for a GPU).",
    ),
    seeds: int | None = typer.Option(
        None, min=1, max=1000, help="Independent repetitions of every search; fewer than three decide little.  [default: the scale's]"
    ),
    data: str | None = typer.Option(None, help="Other images than the scale's: digits, cifar10, cifar100, mnist or imagefolder:PATH."),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    download: bool = typer.Option(False, "--download", help="Fetch the data if it is not there."),
    run: str | None = typer.Option(None, "--name", help="Name of the study's folder, which is runs/NAME.  [default: STUDY-SCALE]"),
    resume: bool = typer.Option(False, "--resume", help="Resume the study after its last completed epoch."),
    device: str | None = typer.Option(None, help="cpu or cuda; a GPU by default where there is one."),
    jobs: int | None = JOBS,
    executor: str = EXECUTOR,
    executor_option: list[str] = EXECUTOR_OPTION,
    retries: int = RETRIES,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Run a study's searches over seeds, and say of every claim of its paper: holds, does not hold, or not decidable here."""
    from ltcompile.cli._stop_signal import StopSignal
    from ltcompile.core.run_folder import RunFolder
    from ltcompile.study import load, names

    if name is None:
        listed = {each: load(each) for each in names()}
        if as_json:
            typer.echo(json.dumps({each: {"title": module.TITLE, "source": module.SOURCE} for each, module in listed.items()}))
            return
        for each, module in listed.items():
            typer.echo(f"{each:<20} {module.TITLE} ({module.SOURCE})")
        return
    from ltcompile.cli.progress import Bars, Screen
    from ltcompile.reporting import report
    from ltcompile.study import default_folder
    from ltcompile.study import run as run_study

    workers = Workers.of(jobs, executor, executor_option, retries)
    stopped = StopSignal()
    folder = Path("runs") / run if run else default_folder(name, scale)

    with Screen(quiet=as_json, searches=True) as screen:
        try:
            found = run_study(
                name,
                scale,
                data=data,
                data_root=data_root,
                download=download,
                seeds=seeds,
                folder=folder,
                device=device,
                resume=resume,
                listen=lambda arm, recipe: Bars(arm.config, recipe, screen, name=arm.name),
                workers=workers.settings if jobs else None,
            )
        except KeyboardInterrupt:
            raise stopped.exit(any(RunFolder(each).begun for each in folder.glob("*/"))) from None
    page = report(folder)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    _print(found)
    typer.echo(f"wrote {folder / 'study.json'} and {page}")


def _print(found: Study) -> None:
    """Tables, then claims, in plain text."""
    from ltcompile.cli._terminal import printable

    for line in found.about:
        typer.echo(printable(line))
    for table in found.tables:
        typer.secho(f"\n{printable(table.title)}", bold=True)
        for line in _lines(table):
            typer.echo(printable(line))
    typer.secho(f"\nClaims of {printable(found.source)}", bold=True)
    for claim in found.claims:
        typer.secho(f"{claim.answer:<18}", fg=COLOURS[claim.answer], nl=False)
        note = f" ({claim.note})" if claim.note else ""
        typer.echo(
            printable(f"  {claim.statement}: {claim.found} {claim.unit}, {claim.number}; claimed: {claim.side} {claim.bound:g}{note}")
        )
    typer.echo(
        "A claim holds if the whole interval lies on its side, does not hold if the whole of it lies on the other, else it is not decidable."
    )


def _lines(table: Table) -> Iterator[str]:
    """A table as text that a file holds as well as a terminal: nothing of a cell is cut, and titles are broken between words."""
    widths = [max(len(word) for word in (*title.split(), *(row[i] for row in table.rows))) for i, title in enumerate(table.columns)]
    heads = [textwrap.wrap(title, width) for title, width in zip(table.columns, widths, strict=True)]
    height = max(map(len, heads))
    above = [[*[""] * (height - len(head)), *head] for head in heads]
    for cells in (*zip(*above, strict=True), ["-" * width for width in widths], *table.rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    if table.note:
        yield table.note
