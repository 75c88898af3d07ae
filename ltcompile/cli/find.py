"""ltcompile find: the search, with bars, a line per training, and a folder that can be resumed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._options import (
    ALIGN,
    GROUP_REDUCTION,
    KEEP,
    LAST_SEED,
    LAYER_RATIO,
    MAX_LAYER_RATIO,
    MIN_CHANNELS,
    MOST_IMAGES,
    ON,
    ONLY,
    PROFILE,
    PRUNING,
    TARGET_ENERGY,
    TARGET_LATENCY,
    TARGET_SPEEDUP,
    end_by_target,
    limits,
    timed,
)

if TYPE_CHECKING:
    from ltcompile.cli._options import Timed
    from ltcompile.core.recipe import Recipe
    from ltcompile.data import Dataset
    from ltcompile.search import Found, SearchConfig

EPILOG = """Examples:  ltcompile find --model vgg16 --rewind lr  ·
ltcompile find --model vgg16 --data cifar10 --data-root DIR --rewind weight --scope local --criterion l2 --rounds 8 --rate 0.2
--epochs 160 --seeds 3  ·  ltcompile find --model resnet20 --target-macs 0.3 --max-drop 1 --keep blocks.0  ·
ltcompile find --model mypackage.nets:make --data imagefolder:photos --image-size 64"""
TRAINING, JUDGING = "Training", "Judging"


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Search for the smallest winning ticket.")(find)


def find(
    model: str = typer.Option("vgg16", help="Built-in name, torchvision:NAME, timm:NAME, or package.module:factory of your own."),
    data: str = typer.Option("digits", help="digits (embedded), cifar10, cifar100, mnist or imagefolder:PATH."),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    download: bool = typer.Option(False, "--download", help="Fetch the data if it is not there."),
    image_size: str | None = typer.Option(
        None,
        metavar="PIXELS",
        help="Size of the images: 64, or HEIGHTxWIDTH as in 48x64; by default what published --weights want, or else the data's own.",
    ),
    weights: Path | None = typer.Option(
        None, help="Trained weights to start from (.safetensors or torch.save); a head for other classes is swapped for a fresh one."
    ),
    strict: bool = typer.Option(False, "--strict", help="Refuse unreadable images in an imagefolder instead of skipping them."),
    name: str | None = typer.Option(None, help="Name of the run; its folder is runs/NAME."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run behind its last finished epoch."),
    method: str = typer.Option(
        "prune",
        help="prune: train, prune, rewind. edge-popup, biprop: choose among weights that are never trained, or their signs. basis, basis-dct: "
        "prune singular directions, or cosines.",
        rich_help_panel=PRUNING,
    ),
    prune: str = typer.Option(
        "filters",
        help="What goes: filters, cut for real; single weights, by a mask; or hybrid, filters of convolutions and weights of linear layers.",
        rich_help_panel=PRUNING,
    ),
    rewind: str = typer.Option("lr", help="lr, weight, finetune or reinit.", rich_help_panel=PRUNING),
    rewind_epoch: int = typer.Option(0, help="Weight rewinding goes back to this epoch; 0 is the initial values.", rich_help_panel=PRUNING),
    scope: str = typer.Option(
        "global", help="Rank filters over the whole network (global) or layer by layer (local).", rich_help_panel=PRUNING
    ),
    schedule: str = typer.Option("iterative", help="iterative rounds, or all at once: oneshot.", rich_help_panel=PRUNING),
    criterion: str = typer.Option(
        "l1", help="l1, l2, linf, neg_linf, bn, fpgm, lamp, taylor, hessian, activation, apoz or random.", rich_help_panel=PRUNING
    ),
    group_reduction: str = GROUP_REDUCTION,
    rounds: int = typer.Option(8, min=1, max=1000, help="Rounds of train, prune, rewind.", rich_help_panel=PRUNING),
    rate: float | None = typer.Option(
        None, help="Share of the surviving filters cut in each round.  [default: 0.2, unless there is a target]", rich_help_panel=PRUNING
    ),
    target_macs: float | None = typer.Option(
        None, help="Instead of a rate: the share of the dense network's MACs that the last round leaves.", rich_help_panel=PRUNING
    ),
    target_params: float | None = typer.Option(None, help="The same with parameters.", rich_help_panel=PRUNING),
    target_speedup: float | None = TARGET_SPEEDUP,
    target_latency: str | None = TARGET_LATENCY,
    target_energy: str | None = TARGET_ENERGY,
    on: str | None = ON,
    profile: Path | None = PROFILE,
    masked: bool = typer.Option(False, "--masked", help="The classical search with masks: slow, for comparison.", rich_help_panel=PRUNING),
    keep: list[str] = KEEP,
    only: list[str] = ONLY,
    layer_ratio: list[str] = LAYER_RATIO,
    max_layer_ratio: float = MAX_LAYER_RATIO,
    min_channels: int = MIN_CHANNELS,
    align: int = ALIGN,
    epochs: int | None = typer.Option(
        None, min=1, max=1_000_000, help="Epochs of each training.  [default: the model's recipe]", rich_help_panel=TRAINING
    ),
    batch: int | None = typer.Option(None, min=2, max=MOST_IMAGES, help="Images per step.", rich_help_panel=TRAINING),
    lr: float | None = typer.Option(
        None,
        help="Learning rate; with --weights at most 0.01 (at batch 128) by default, and one epoch of warm-up.",
        rich_help_panel=TRAINING,
    ),
    weight_decay: float | None = typer.Option(None, help="Weight decay.", rich_help_panel=TRAINING),
    lr_schedule: str | None = typer.Option(None, help="step, cosine or constant.", rich_help_panel=TRAINING),
    warmup_epochs: int | None = typer.Option(None, help="Epochs of linear warm-up.", rich_help_panel=TRAINING),
    label_smoothing: float | None = typer.Option(None, help="Label smoothing.", rich_help_panel=TRAINING),
    distill: float | None = typer.Option(
        None,
        help="Share of the loss, 0 to 1, that the dense network's answers give to tickets and the random control.  [default: 0]",
        rich_help_panel=TRAINING,
    ),
    precision: str | None = typer.Option(None, help="auto (the faster, where trainings are long), fp32 or bf16.", rich_help_panel=TRAINING),
    backend: str | None = typer.Option(
        None, "--compile", help="auto (where it pays), never, or a backend of torch.compile: inductor.", rich_help_panel=TRAINING
    ),
    device: str | None = typer.Option(None, help="cpu or cuda; a GPU by default where there is one.", rich_help_panel=TRAINING),
    seeds: int = typer.Option(
        1, min=1, max=1000, help="Independent searches; fewer than three decide nothing between trainings.", rich_help_panel=JUDGING
    ),
    seed: int = typer.Option(0, min=0, max=LAST_SEED, help="The first seed.", rich_help_panel=JUDGING),
    controls: bool = typer.Option(True, help="Train the control arms at the chosen level.", rich_help_panel=JUDGING),
    whole_curve: bool = typer.Option(
        False,
        "--whole-curve",
        help="Train controls, and look at the test set, at every level: for curves in studies.",
        rich_help_panel=JUDGING,
    ),
    margin: float = typer.Option(
        0.5,
        "--margin",
        "--max-drop",
        min=0,
        max=100,
        help="Points of validation accuracy that a ticket may be worse; levels are tested from the largest down, and the last before a failure wins.",
        rich_help_panel=JUDGING,
    ),
    confidence: float = typer.Option(0.95, help="Confidence of that statement.", rich_help_panel=JUDGING),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write TensorBoard logs into the run folder."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Search for the smallest winning ticket: train, prune, rewind, repeat; then judge it against controls.

    Ends with 4 where the ticket misses the target, as it may be of a level on the way there: all is written.
    """
    from ltcompile.core.image_size import parse
    from ltcompile.search import SearchConfig
    from ltcompile.search.search import data_for, default_folder, recipe_for

    stopped = attend()
    dataset = data_for(model, data, data_root, parse(image_size) if image_size else None, weights=weights, download=download, strict=strict)
    time = timed(named(model, dataset), on, profile, target_speedup, target_latency, target_energy, quiet=as_json)
    config = SearchConfig(
        method=method,
        prune=prune,  # type: ignore[arg-type]  # checked by SearchConfig
        rewind=rewind,
        rewind_epoch=rewind_epoch,
        scope=scope,  # type: ignore[arg-type]
        schedule=schedule,  # type: ignore[arg-type]
        criterion=criterion,
        group_reduction=group_reduction,  # type: ignore[arg-type]
        rounds=rounds,
        rate=rate,
        target_macs=target_macs,
        target_params=target_params,
        **(time.target if time else {}),
        on=time.on if time else None,
        align=align,
        seed=seed,
        seeds=seeds,
        controls=controls,
        whole_curve=whole_curve,
        masked=masked,
        margin_points=margin,
        confidence=confidence,
        **limits(keep, only, layer_ratio, max_layer_ratio, min_channels),
    )
    asked = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": lr_schedule,
        "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing,
        "distill": distill,
        "precision": precision,
        "compile": backend,
    }
    recipe = changed(recipe_for(model, dataset, weights), asked)
    folder = Path("runs") / name if name else default_folder(model, dataset, config)
    found = searched(
        model,
        dataset,
        config,
        recipe,
        folder,
        time,
        stopped,
        weights=weights,
        device=device,
        resume=resume,
        tensorboard=tensorboard,
        quiet=as_json,
    )
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "ticket": str(found.folder / "ticket.pt"),
                    "verdict": found.verdict.to_json(),
                    "target": found.reached.to_json() if found.reached else None,
                    "rows": [r.to_json() for r in found.rows],
                }
            )
        )
    else:
        for line in found.verdict.summary:
            typer.echo(line)
        ticket = found.folder / "ticket.pt"
        typer.echo(f"wrote {ticket}; next: ltcompile shrink {ticket} -o {found.folder / 'small.onnx'}")
    end_by_target(found.reached, quiet=as_json)


def named(model: str, dataset: Dataset) -> dict[str, Any]:
    """What a profile calls the network that `model` builds for this data."""
    return {"name": model, "arguments": dataset.description.arguments}


def attend() -> dict[str, int]:
    """Print notices as their text, and let the first SIGINT or SIGTERM end a search in order; the dictionary will tell the signal."""
    warnings.formatwarning = _plainly
    return _stopped_once()


def searched(
    model: str,
    dataset: Dataset,
    config: SearchConfig,
    recipe: Recipe,
    folder: Path,
    time: Timed | None,
    stopped: dict[str, int],
    *,
    weights: Path | None,
    device: str | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    quiet: bool = False,
) -> Found:
    """A search under bars. Where it is stopped, what `attend` gave says by which signal, and the user is told how to go on."""
    from ltcompile.cli.progress import Bars
    from ltcompile.search import find as search

    with Bars(config, recipe, quiet=quiet) as bars:
        if tensorboard:
            bars.log_to_tensorboard(folder)
        try:
            return search(
                model,
                dataset,
                config,
                recipe=recipe,
                weights=weights,
                folder=folder,
                device=device,
                resume=resume,
                listener=bars,
                profile=time.profile if time else None,
                measured=time.measured if time else None,
            )
        except KeyboardInterrupt:
            typer.secho(f"\nstopped; {_how_to_go_on(folder)}", fg="yellow", err=True)
            raise typer.Exit(128 + stopped.get("signal", signal.SIGINT)) from None


def _how_to_go_on(folder: Path) -> str:
    command = ["ltcompile", *(a for a in sys.argv[1:] if a != "--resume")]
    if (folder / "config.json").exists():
        return f"every finished epoch is kept. To go on:  {shlex.join([*command, '--resume'])}"
    return f"nothing had begun. To begin:  {shlex.join(command)}"


def _stopped_once() -> dict[str, int]:
    """Let the first SIGINT or SIGTERM end the search in order, and a second one at once; the dictionary will tell the signal."""
    told: dict[str, int] = {}

    def stop(number: int, _: object) -> None:
        told["signal"] = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    return told


def _plainly(message: Warning | str, category: type[Warning], *where: Any, usual: Any = warnings.formatwarning, **line: Any) -> str:
    """A notice as its text alone, other warnings as ever."""
    from ltcompile.core.notice import Notice

    return f"note: {message}\n" if issubclass(category, Notice) else str(usual(message, category, *where, **line))


def changed(recipe: Recipe, asked: dict[str, Any]) -> Recipe:
    """The recipe with what was asked for; a warm-up of its own never outlasts the epochs."""
    given = {k: v for k, v in asked.items() if v is not None}
    if "epochs" in given and "warmup_epochs" not in given:
        given["warmup_epochs"] = min(recipe.warmup_epochs, max(0, given["epochs"] - 1))
    return dataclasses.replace(recipe, **given)
