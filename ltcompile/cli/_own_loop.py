"""find --train: a search whose arms the user's own command trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ltcompile.cli._stop_signal import StopSignal
    from ltcompile.cli._workers import Workers
    from ltcompile.core.profile import Profile
    from ltcompile.search.settings import SearchSettings

IN_SCRIPT = ("model", "data", "image_size", "train_images", "weights")  # settings that the script decides


def search_by_script(
    command: str,
    settings: SearchSettings,
    name: str | None,
    metric: str,
    lower_is_better: bool,
    example: str | None,
    *,
    profile: Path | None,
    resume: bool,
    as_json: bool,
    stopped: StopSignal,
    workers: Workers,
) -> None:
    """Search, then print the verdict and the next command. Raises typer.Exit where a signal stops it."""
    from ltcompile.cli._options import end_by_target
    from ltcompile.core.reached import Reached
    from ltcompile.core.run_folder import RunFolder
    from ltcompile.core.task import Metric
    from ltcompile.errors import InvalidSetting
    from ltcompile.search.command import search_by_command

    if there := [key for key in IN_SCRIPT if key in settings.section("")]:
        raise InvalidSetting(f"{there[0]}={settings.section('')[there[0]]}: the script of train= decides that; leave it out")
    train = settings.section("train")
    if other := sorted(train.keys() - {"epochs"}):
        raise InvalidSetting(f"train.{other[0]}: the script of train= decides that; leave it out")
    times, goal = _timed(settings.section("prune"), profile)
    if "margin_points" not in settings.section("search"):
        raise InvalidSetting(
            f"margin_points=: say by how much of {metric} a ticket may be worse, in what the script reports: 0.01 of a fraction"
        )
    folder = Path("runs") / (name or "own")
    scale = Metric(metric, "units", 1.0, higher_is_better=not lower_is_better)
    try:
        summary = search_by_command(
            command,
            folder,
            scale,
            settings.config(**goal),
            epochs=train.get("epochs", 1),
            example=example,
            profile=times,
            resume=resume,
            listener=_Lines(),
            **workers.settings,
        )
    except KeyboardInterrupt:
        raise stopped.exit(RunFolder(folder).begun) from None
    reached = Reached.from_json(summary["target"]) if summary.get("target") else None
    if as_json:
        typer.echo(json.dumps(summary))
        end_by_target(reached, quiet=True)
        return
    for line in summary["verdict"]["summary"]:
        typer.echo(line)
    run = RunFolder(folder)
    shapes = example or "SHAPES"
    typer.echo(
        f"wrote {run.own_plan} and {run.own_weights}; next: ltcompile shrink --model package.module:factory --weights {run.own_weights} "
        f"--plan {run.own_plan} --example {shapes} -o {folder / 'small.onnx'}"
    )
    end_by_target(reached, quiet=as_json)


def _timed(prune: dict[str, Any], profile: Path | None) -> tuple[Profile | None, dict[str, Any]]:
    """The layers' times and the settings of a target of time. Raises InvalidSetting where one comes without the other."""
    from ltcompile.benchmark.planning import place_of_speedup
    from ltcompile.core.profile import Profile
    from ltcompile.errors import InvalidSetting

    if other := prune.keys() & {"target_latency", "target_energy"}:
        raise InvalidSetting(f"{min(other)}={prune[min(other)]}: a search by train= takes target_speedup= or target_macs=")
    speedup = prune.get("target_speedup")
    if speedup is None:
        if profile is not None:
            raise InvalidSetting(f"profile={profile} belongs to target_speedup=; say how fast the network must be, or leave it out")
        return None, {}
    if profile is None:
        raise InvalidSetting(
            f"target_speedup={speedup}: plans of a search by train= follow from the layers' times; write them with `ltcompile profile --model "
            "package.module:factory --example SHAPES -o FILE` where the network will run, and add profile=FILE"
        )
    found = Profile.load(profile)
    return found, {"target_time": 1 / speedup, "on": str(place_of_speedup(speedup, prune.get("on"), found))}


class _Lines:
    """A line for each arm that begins."""

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        typer.secho(f"training seed{seed}/{arm}-{level}", bold=True, err=True)

    def epoch(self, seed: int, arm: str, level: int, row: object) -> None: ...

    def finished(self, row: object, from_file: bool) -> None: ...
