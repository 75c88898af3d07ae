"""ltcompile sweep: every level of a search side by side, and one of them picked by a rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._options import LAST_SEED, MISSED, MOST_IMAGES, timed
from ltcompile.cli._timing_options import DATA_ROOT, DEVICE, RUNTIMES, SECONDS, TimingTable, batches, warn_if_busy
from ltcompile.cli._workers import EXECUTOR, EXECUTOR_OPTION, JOBS, RETRIES, Workers
from ltcompile.errors import InvalidSetting

if TYPE_CHECKING:
    from ltcompile.benchmark.sweep import Sweep
    from ltcompile.core.curve import Picked
    from ltcompile.core.reached import Reached

SUMMARY = "Time all levels of a run; pick one."
EPILOG = """Examples:  ltcompile sweep runs/demo  ·  ltcompile sweep runs/demo --batch 1 --pick "fastest-within 0.5"  ·
ltcompile sweep --model vgg16 --data digits --targets 2,4,8,16 --name curve"""
NAME = 10  # characters of a network's name
SEARCH = "Search first"


def sweep(
    run: Path | None = typer.Argument(None, help="Folder of a finished run; without one, --targets searches first."),
    runtime: list[str] = typer.Option(["onnxruntime"], help=f"{RUNTIMES}; repeat for several."),
    batch: list[int] = batches(1, 64),
    device: list[str] | None = DEVICE,
    seconds: float = SECONDS,
    pick: str = typer.Option(
        "knee",
        metavar="RULE",
        help="knee, 'fastest-within POINTS' (units of the task's metric) or smallest; looks at the first runtime, device and batch.",
    ),
    model: str | None = typer.Option(None, help="The network to search; with RUN, names your own package.module:factory again."),
    data: str | None = typer.Option(
        None, help="The data to search on, digits by default; with RUN, test images for its classifiers other than its own."
    ),
    data_root: Path = DATA_ROOT,
    targets: str | None = typer.Option(
        None,
        metavar="2,4,8",
        help="Search a level for each of these, in how many times fewer MACs; with --on, how many times as fast.",
        rich_help_panel=SEARCH,
    ),
    on: str | None = typer.Option(
        None, metavar="TARGET", help="Where the networks will run, as in cpu:onnxruntime:b1:fp32.", rich_help_panel=SEARCH
    ),
    profile: Path | None = typer.Option(None, help="A file of `ltcompile profile` for --on.", rich_help_panel=SEARCH),
    name: str | None = typer.Option(None, help="Name of the run; its folder is runs/NAME.", rich_help_panel=SEARCH),
    resume: bool = typer.Option(False, "--resume", help="Resume the search after its last completed epoch.", rich_help_panel=SEARCH),
    download: bool = typer.Option(False, "--download", help="Fetch the data if it is not there.", rich_help_panel=SEARCH),
    weights: Path | None = typer.Option(None, help="Trained weights to start from.", rich_help_panel=SEARCH),
    epochs: int | None = typer.Option(
        None, min=1, max=1_000_000, help="Epochs of each training.  [default: the model's recipe]", rich_help_panel=SEARCH
    ),
    train_batch: int | None = typer.Option(None, min=2, max=MOST_IMAGES, help="Images per step of training.", rich_help_panel=SEARCH),
    criterion: str | None = typer.Option(None, help="How the importance of filters is computed.  [default: l1]", rich_help_panel=SEARCH),
    rewind: str | None = typer.Option(None, help="lr, weight, finetune or reinit.  [default: lr]", rich_help_panel=SEARCH),
    seeds: int | None = typer.Option(None, min=1, max=1000, help="Independent searches.  [default: 1]", rich_help_panel=SEARCH),
    seed: int | None = typer.Option(None, min=0, max=LAST_SEED, help="The first seed.  [default: 0]", rich_help_panel=SEARCH),
    jobs: int | None = JOBS,
    executor: str = EXECUTOR,
    executor_option: list[str] = EXECUTOR_OPTION,
    retries: int = RETRIES,
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Time the networks of all levels in turns, on the curve of latency and the validation metric, and pick one by a rule.

    Ends with 4 where the rule picks none, or a level misses its entry of --targets: sweep.json is written.
    """
    chosen = {"criterion": criterion, "rewind": rewind, "seeds": seeds, "seed": seed}
    recipe = {"epochs": epochs, "batch": train_batch}
    search = {"targets": targets, "on": on, "profile": profile, "name": name, "weights": weights, **chosen, "train-batch": train_batch}
    workers = Workers.of(jobs, executor, executor_option, retries)
    _check(run, {**search, "epochs": epochs, "jobs": jobs, "resume": resume or None, "download": download or None})
    from ltcompile.benchmark.sweep import sweep as measured
    from ltcompile.core.picking import Rule
    from ltcompile.core.run_folder import RunFolder

    Rule.parse(pick)
    if run is None:
        run = _searched(
            model or "vgg16",
            data or "digits",
            shares(targets or ""),
            _given(chosen),
            recipe,
            data_root=data_root,
            download=download,
            weights=weights,
            name=name,
            resume=resume,
            on=on,
            profile=profile,
            quiet=as_json,
            workers=workers,
        )
        data = None
    found = measured(
        run,
        pick=pick,
        runtimes=runtime,
        devices=device or None,
        batches=batch,
        data=data,
        data_root=data_root,
        model=model,
        seconds_per_row=seconds,
        joules=_joules,
        on_row=None if as_json else TimingTable(NAME).add,
    )
    chose, missed = found.pick, [entry for entry in reached_by(found, shares(targets) if targets else (), on) if entry[1].missed_by]
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "missed": {name: reached.to_json() for name, reached in missed}}))
    else:
        warn_if_busy(found.busy_share)
        where = f"{chose.runtime} ({chose.device}), batch {chose.batch}"
        typer.echo(f"{chose.rule} at {where}: {chose.name or 'none'}, as {chose.reason}")
        _print_again(chose)
        files = RunFolder(run)
        written = files.sweep if chose.name is None else f"{files.sweep} and {files.picked}"
        following = f"report {run}" if chose.name is None else f"shrink {files.picked} -o {run / 'picked.onnx'}"
        typer.echo(f"wrote {written}; next: ltcompile {following}")
    for level, reached in missed:
        typer.secho(f"{level}: {reached}", fg="yellow", err=True)
    if chose.name is None or missed:
        raise typer.Exit(MISSED)


def reached_by(found: Sweep, path: tuple[float, ...], on: str | None) -> list[tuple[str, Reached]]:
    """How each level stands to its entry of `path`: in MACs, or with `on` in time, where the curve was measured there too."""
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.reached import Reached

    macs = {point.level: point.macs for point in found.points if point.arm != "random"}
    if on is None:
        return [(f"ticket-{level}", Reached("macs", share, macs[level] / macs[0])) for level, share in enumerate(path, start=1)]
    place = Deployment.parse(on)
    there = {
        row.subject: row.speedup for row in found.rows if (row.device, row.runtime, row.batch) == (place.device, place.runtime, place.batch)
    }
    times = {name: 1 / speedup for name, speedup in there.items() if speedup and place.precision == "fp32"}
    return [(f"ticket-{level}", Reached("time", share, times.get(f"ticket-{level}"))) for level, share in enumerate(path, start=1)]


def _print_again(chose: Picked) -> None:
    """What a fresh run says of the pick."""
    if chose.name is None:
        return
    speedup = "" if chose.speedup is None else f", {chose.speedup:.2f}x as fast as dense ({chose.speedup_low:.2f}-{chose.speedup_high:.2f})"
    typer.echo(f"measured again in a fresh run: p50 {chose.ms_p50:.3f} ms{speedup}")
    if chose.runner_up is not None:
        lead = f"which takes {chose.lead:.3f} times as long ({chose.lead_low:.3f}-{chose.lead_high:.3f})"
        typer.echo(f"{'a tie with' if chose.tie else 'the runner-up is'} {chose.runner_up}, {lead}")


def _check(run: Path | None, search: dict[str, Any]) -> None:
    """Raises InvalidSetting unless there is either a run or a search to do."""
    given = [f"--{name}" for name, value in search.items() if value is not None]
    if run is None and search["targets"] is None:
        raise InvalidSetting("name the folder of a run, or give --targets to search first, as in --targets 2,4,8")
    if run is not None and given:
        raise InvalidSetting(f"{', '.join(given)} is for a new search, and {run} is a run; leave one of them out")


def shares(targets: str) -> tuple[float, ...]:
    """Falling shares of the dense network, of rising targets such as 2,4,8. Raises InvalidSetting."""
    try:
        times = [float(part) for part in targets.split(",")]
    except ValueError:
        times = []
    if not times or not all(before < after < float("inf") for before, after in pairwise((1.0, *times))):
        raise InvalidSetting(f"--targets takes rising numbers above 1, as in 2,4,8, not {targets!r}")
    return tuple(1 / each for each in times)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _searched(
    model: str,
    data: str,
    path: tuple[float, ...],
    chosen: dict[str, Any],
    requested: dict[str, Any],
    *,
    data_root: Path,
    download: bool,
    weights: Path | None,
    name: str | None,
    resume: bool,
    on: str | None,
    profile: Path | None,
    quiet: bool,
    workers: Workers,
) -> Path:
    """Search a level for every share of `path`; the run folder."""
    from ltcompile.cli._search import profiled_model, run_search
    from ltcompile.cli._stop_signal import StopSignal
    from ltcompile.search import SearchConfig, Source, default_folder, recipe_for
    from ltcompile.search.settings import SearchSettings

    stopped = StopSignal()
    source = Source("classification", model, data, str(data_root), weights=str(weights) if weights else None)
    dataset = source.load(download)
    time = timed(profiled_model(model, dataset), on, profile, 1 / path[-1] if on or profile else None, quiet=quiet)
    target = {**time.target, "on": time.on} if time else {"target_macs": path[-1]}
    config = SearchConfig(rounds=len(path), path=path, **target, **chosen)
    recipe = SearchSettings({"train": _given(requested)}).recipe(recipe_for(model, dataset, weights))
    folder = Path("runs") / name if name else default_folder(model, dataset, config)
    common: Any = {"weights": weights, "resume": resume, "quiet": quiet, "source": source}
    return run_search(model, dataset, config, recipe, folder, time, stopped, **common, workers=workers).folder


def _joules(device: str, call: Callable[[], object], images: int) -> float:
    """The energy of an image. Raises Unavailable where it cannot be measured."""
    from ltcompile.benchmark import energy

    return energy.per_image(energy.counter(device), call, images)
