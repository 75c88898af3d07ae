"""ltcompile status: which arms of a run are finished, in training, waiting or failed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ltcompile.search.status import RunStatus

EPILOG = "Examples:  ltcompile status runs/demo  ·  ltcompile status runs/demo --watch"
EVERY_S = 2.0


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Show which arms of a run are done, running or failed.")(status)


def status(
    run: Path = typer.Argument(help="Folder of a run."),
    watch: bool = typer.Option(False, "--watch", help="Look again every two seconds, until all is finished or nothing can be."),
    as_json: bool = typer.Option(False, "--json", help="Print the state as JSON, a line each time."),
) -> None:
    """Show what every arm of a run is at: finished, running (where, how fast, how long still), ready, waiting for others, or failed."""
    from rich.console import Console

    from ltcompile.search.status import Watch

    seen = Watch(run)
    while True:
        found = seen.look(time.monotonic())
        if as_json:
            typer.echo(json.dumps(found.to_json()))
        else:
            if watch:
                Console().clear()
            _print(found)
        if not watch or found.verdict or seen.pool.blocked:
            return
        time.sleep(EVERY_S)


def _print(found: RunStatus) -> None:
    from ltcompile.cli._terminal import printable, show_table

    columns = ("seed", "arm", "level", "state", "epochs", "images/s", "left", "where, or why not")
    rows = [
        (
            *(arm.seed, arm.arm, arm.level, arm.state),
            f"{arm.epochs}/{arm.of}" if arm.of is not None else arm.epochs or "",
            "" if arm.per_second is None else f"{arm.per_second:.0f}",
            duration(arm.left_s),
            arm.owner or (f"{arm.error} (log: {arm.log})" if arm.error else ""),
        )
        for arm in found.arms
    ]
    show_table(columns, rows)
    counts = ", ".join(
        f"{count} {state}" for state in ("finished", "running", "ready", "waiting", "failed") if (count := found.count(state))
    )  # type: ignore[arg-type]
    level = "not chosen yet: the controls come on top" if found.level is None else str(found.level)
    left = "" if found.left_s is None else f"; about {duration(found.left_s)} left with {found.count('running')} at work"
    typer.echo(f"{counts}{left}. Level: {level}. Verdict: {'written' if found.verdict else 'not yet'}.")
    for name in found.others:
        typer.secho(f"worker {printable(name)} has other versions than the run began with", fg="yellow", err=True)


def duration(seconds: float | None) -> str:
    """A time in one unit; empty for None."""
    if seconds is None:
        return ""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
