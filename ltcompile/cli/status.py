"""ltcompile status: which arms of a run are finished, in training, waiting or failed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ltcompile.search.status import RunStatus
    from ltcompile.study import StudyStatus

SUMMARY = "Show which arms of a run are done, running or failed."
EPILOG = "Examples:  ltcompile status runs/demo  ·  ltcompile status runs/demo --watch  ·  ltcompile status runs/sanity-small"
EVERY_S = 2.0


def status(
    run: Path = typer.Argument(help="Folder of a run, or of a study."),
    watch: bool = typer.Option(False, "--watch", help="Look again every two seconds, until all is finished or nothing can be."),
    as_json: bool = typer.Option(False, "--json", help="Print the state as JSON, a line each time."),
) -> None:
    """Show what every arm of a run is at: finished, running (where, how fast, how long still), ready, waiting for others, or failed."""
    from rich.console import Console

    from ltcompile.core.study import JOB
    from ltcompile.search.status import RunWatch
    from ltcompile.study import StudyStatus, StudyWatch

    seen: RunWatch | StudyWatch = StudyWatch(run) if (run / JOB).exists() else RunWatch(run)
    while True:
        found = seen.look(time.monotonic())
        if as_json:
            typer.echo(json.dumps(found.to_json()))
        else:
            if watch:
                Console().clear()
            _print_study(found) if isinstance(found, StudyStatus) else _print(found)
        if not watch or found.verdict or seen.blocked:
            return
        time.sleep(EVERY_S)


def _print_study(found: StudyStatus) -> None:
    """What is under way in full, a line for each other search."""
    for search in found.searches:
        typer.secho(f"\nsearch {Path(search.run).name}", bold=True)
        if search.verdict:
            typer.echo(f"{search.count('finished')} finished. Verdict: written.")
        else:
            _print(search)
    for name, needs in found.waiting.items():
        typer.echo(f"\nsearch {name} waits for {', '.join(needs)}")
    done = sum(search.verdict for search in found.searches)
    typer.echo(
        f"\n{done} of {len(found.searches) + len(found.waiting)} searches finished. Claims: {'written' if found.verdict else 'not yet'}."
    )
    _warn(found.others)


def _print(found: RunStatus) -> None:
    from ltcompile.cli._terminal import show_table

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
    level = "" if found.verdict else " Level: not chosen yet; controls follow it, if there are any."
    if found.level is not None:
        level = f" Level: {found.level}."
    left = "" if found.left_s is None else f"; about {duration(found.left_s)} left with {found.count('running')} at work"
    typer.echo(f"{counts}{left}.{level} Verdict: {'written' if found.verdict else 'not yet'}.")
    _warn(found.others)


def _warn(others: list[str]) -> None:
    from ltcompile.cli._terminal import printable

    for name in others:
        typer.secho(f"worker {printable(name)} has other versions than the run began with", fg="yellow", err=True)


def duration(seconds: float | None) -> str:
    """A time in one unit; empty for None."""
    if seconds is None:
        return ""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
