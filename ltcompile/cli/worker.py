"""ltcompile worker: train arms of a run that another process began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ltcompile.cli._workers import RETRIES
from ltcompile.errors import InvalidSetting

SUMMARY = "Train arms of a run that another process began."
EPILOG = "Examples:  ltcompile worker /shared/runs/demo  ·  ltcompile worker /shared/runs/own --model mypackage.nets:make --data-root /data"


def worker(
    run: Path = typer.Argument(help="Folder of a run or of a study, on a file system that this machine shares with the others."),
    model: str | None = typer.Option(None, help="The run's package.module:factory of your own, named again: it is imported here."),
    data_root: Path | None = typer.Option(None, help="Where the data lies on this machine, if elsewhere than where the run began."),
    train: str | None = typer.Option(
        None, metavar="COMMAND", help="The command of `find --train`, given again: it is started here, and must be the same."
    ),
    device: str | None = typer.Option(None, help="cpu or cuda; a GPU by default where there is one."),
    name: str | None = typer.Option(None, help="What leases and logs call this worker."),
    allow_other_versions: bool = typer.Option(
        False,
        "--allow-other-versions",
        help="Take part with other versions or another device than the run began with; the run keeps a note.",
    ),
    retries: int = RETRIES,
    lease_seconds: float = typer.Option(
        30, min=1, max=86_400, help="Take over an arm whose process showed no sign of life for so long. The same for all workers."
    ),
    patience: float | None = typer.Option(None, min=1, help="Leave after so many seconds without an arm.  [default: when nothing is left]"),
    checkpoint_minutes: float | None = typer.Option(
        None, min=0, help="Save also within an epoch, so often.  [default: after every epoch]", show_default=False
    ),
) -> None:
    """Join a run: train its arms one after another, until nothing is left. Any number of workers may do so, on any machines that see the folder."""
    from ltcompile import study
    from ltcompile.cli._stop_signal import StopSignal
    from ltcompile.core.study import JOB
    from ltcompile.search.worker import join

    stopped = StopSignal()
    common: dict[str, Any] = {
        "data_root": data_root,
        "device": device,
        "name": name,
        "allow_other_versions": allow_other_versions,
        "retries": retries,
        "lease_s": lease_seconds,
        "patience_s": patience or float("inf"),
        "checkpoint_minutes": checkpoint_minutes,
    }
    try:
        if (run / JOB).exists():
            if model or train:
                raise InvalidSetting(f"{run} is a study, whose networks are ltcompile's own; leave --model and --train out")
            found = study.join(run, listen=lambda arm, recipe: _Lines(arm.name), **common)
        else:
            found = join(run, model=model, listener=_Lines(), train=train, **common)
    except KeyboardInterrupt:
        typer.secho("stopped; every completed epoch is kept", fg="yellow", err=True)
        raise typer.Exit(128 + stopped.number) from None
    typer.echo(f"trained {found['trained']} arms, {found['failed']} trainings failed; nothing is left here")


class _Lines:
    """A line for each arm that begins here, of the search of that name."""

    def __init__(self, search: str = "") -> None:
        self.search = f"{search}: " if search else ""

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        typer.echo(f"{self.search}seed {seed} {arm} {level}: {epochs} epochs" + (f", {done} of them done before" if done else ""), err=True)

    def epoch(self, seed: int, arm: str, level: int, row: object) -> None: ...

    def finished(self, row: object, from_file: bool) -> None: ...
