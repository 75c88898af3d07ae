"""ltcompile find: the search, with bars, a line per training, and a folder that can be resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ltcompile import ranks
from ltcompile.cli._options import KEEP, LAST_SEED, MOST_IMAGES, ON, PROFILE, PRUNING, TARGET_LATENCY, TARGET_SPEEDUP, end_by_target, timed
from ltcompile.cli._search import profiled_model, run_search, virtual_ranks
from ltcompile.cli._stop_signal import StopSignal
from ltcompile.cli._workers import EXECUTOR, EXECUTOR_OPTION, JOBS, RETRIES, WORKERS, Workers
from ltcompile.errors import InvalidSetting

SUMMARY = "Search for the smallest winning ticket."
EPILOG = """Examples:  ltcompile find --model vgg16 --rewind lr  ·
ltcompile find --model vgg16 --data cifar10 --data-root DIR --rewind weight --criterion l2 --rounds 8 --rate 0.2 --epochs 160 --seeds 3
--set prune.scope=local  ·  ltcompile find --model resnet20 --target-macs 0.3 --max-drop 1 --keep blocks.0  ·
ltcompile find --task segmentation --data folder:tiles --target-macs 0.3 --margin 1  ·
ltcompile find --recipe recipes/demo.toml --seed 4  ·  ltcompile find --seeds 4 --jobs 2  ·
ltcompile find --train 'python train.py --seed {seed} --epochs {epochs}' --metric mAP
--margin 0.01 --example 1x3x320x320 --epochs 30 --name boxes  ·  ltcompile find --model mypackage.nets:make --data imagefolder:photos --image-size 64"""
TRAINING, JUDGING, DATA, RUN, OWN = "Training", "Judging", "Data", "Run", "Your own training script"


def find(
    context: typer.Context,
    model: str | None = typer.Option(
        None, help="Built-in name, torchvision:NAME, timm:NAME, or package.module:factory of your own.  [default: vgg16; centernet, unet]"
    ),
    task: str | None = typer.Option(
        None, help="What the network is for: classification, detection, image-to-image or segmentation.  [default: classification]"
    ),
    recipe: Path | None = typer.Option(
        None, "--recipe", metavar="FILE.toml", help="Settings of the whole search, as in recipes/; options given here win over it."
    ),
    settings: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="Any setting of a recipe file, as in train.distill=0.5, prune.scope=local or limits.min_channels=16. Repeatable.",
    ),
    name: str | None = typer.Option(None, help="Name of the run; its folder is runs/NAME.", rich_help_panel=RUN),
    resume: bool = typer.Option(False, "--resume", help="Resume the run after its last completed epoch.", rich_help_panel=RUN),
    device: str | None = typer.Option(None, help="cpu or cuda; a GPU by default where there is one.", rich_help_panel=RUN),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write TensorBoard logs into the run folder.", rich_help_panel=RUN),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON.", rich_help_panel=RUN),
    jobs: int | None = JOBS,
    executor: str = EXECUTOR,
    executor_option: list[str] = EXECUTOR_OPTION,
    retries: int = RETRIES,
    nproc_per_node: int | None = typer.Option(
        None,
        min=1,
        max=1024,
        help="Train each arm by so many processes of this machine together, one GPU each where there are GPUs; shards of a batch are "
        "--set train.virtual_ranks=N, by default as many.",
        rich_help_panel=WORKERS,
        show_default=False,
    ),
    checkpoint_minutes: float | None = typer.Option(
        None, min=0, help="Save also within an epoch, so often.  [default: after every epoch]", rich_help_panel=RUN, show_default=False
    ),
    data: str | None = typer.Option(
        None,
        help="digits, scenes (both embedded), cifar10, cifar100, mnist, imagefolder:PATH, coco:DIR, folder:DIR (pairs of images), "
        "webdataset:PATTERN (tar shards, as in shards/{train,val}-{000..099}.tar), or hf:DIR or hf:OWNER/NAME (Hugging Face).  "
        "[default: digits; scenes]",
        rich_help_panel=DATA,
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout.", rich_help_panel=DATA),
    download: bool = typer.Option(False, "--download", help="Fetch the data if it is not there.", rich_help_panel=DATA),
    skip_damaged: bool = typer.Option(
        False,
        "--skip-damaged",
        help="Go without shards that are missing or damaged, and without images of streamed data that cannot be read; the ticket and the "
        "history say how many.",
        rich_help_panel=DATA,
    ),
    image_size: str | None = typer.Option(
        None,
        metavar="PIXELS",
        help="Size of the images: 64, or HEIGHTxWIDTH as in 48x64; by default what published --weights want, or else the data's own.",
        rich_help_panel=DATA,
    ),
    weights: Path | None = typer.Option(
        None,
        help="Trained weights to start from (.safetensors or torch.save); a head for other classes is swapped for a fresh one.",
        rich_help_panel=DATA,
    ),
    prune: str | None = typer.Option(
        None,
        help="What goes: filters, cut for real; single weights, by a mask; or hybrid, filters of convolutions and weights of linear layers.  "
        "[default: filters]",
        rich_help_panel=PRUNING,
    ),
    rewind: str | None = typer.Option(None, help="lr, weight, finetune or reinit.  [default: lr]", rich_help_panel=PRUNING),
    criterion: str | None = typer.Option(
        None,
        help="l1, l2, linf, neg_linf, bn, fpgm, lamp, taylor, hessian, activation, apoz or random.  [default: l1]",
        rich_help_panel=PRUNING,
    ),
    rounds: int | None = typer.Option(None, min=1, max=1000, help="Rounds of train, prune, rewind.  [default: 8]", rich_help_panel=PRUNING),
    rate: float | None = typer.Option(
        None, help="Share of the surviving filters cut in each round.  [default: 0.2, unless there is a target]", rich_help_panel=PRUNING
    ),
    target_macs: float | None = typer.Option(
        None, help="Instead of a rate: the share of the dense network's MACs that the last round leaves.", rich_help_panel=PRUNING
    ),
    target_speedup: float | None = TARGET_SPEEDUP,
    target_latency: str | None = TARGET_LATENCY,
    on: str | None = ON,
    profile: Path | None = PROFILE,
    keep: list[str] = KEEP,
    train: str | None = typer.Option(
        None,
        metavar="COMMAND",
        help="Trains each arm by this command, whose script calls lt.attach and lt.report_metric; {seed}, {epochs}, {arm} and {folder} are filled in.",
        rich_help_panel=OWN,
    ),
    metric: str | None = typer.Option(
        None, help="With --train: the name of what the script reports.  [default: metric]", rich_help_panel=OWN
    ),
    lower_is_better: bool = typer.Option(False, "--lower-is-better", help="With --train: the metric is an error.", rich_help_panel=OWN),
    example: str | None = typer.Option(
        None,
        metavar="SHAPES",
        help="With --train: the network's inputs, as 1x3x32x32, image=1x3x64x64,side=1x5 or a file of tensors; or the script passes them to attach.",
        rich_help_panel=OWN,
    ),
    epochs: int | None = typer.Option(
        None, min=1, max=1_000_000, help="Epochs of each training.  [default: the model's recipe]", rich_help_panel=TRAINING
    ),
    batch: int | None = typer.Option(None, min=2, max=MOST_IMAGES, help="Images per step.", rich_help_panel=TRAINING),
    lr: float | None = typer.Option(
        None,
        help="Learning rate; with --weights at most 0.01 (at batch 128) by default, and one epoch of warm-up.",
        rich_help_panel=TRAINING,
    ),
    seeds: int | None = typer.Option(
        None,
        min=1,
        max=1000,
        help="Independent searches; fewer than three decide nothing between trainings.  [default: 1]",
        rich_help_panel=JUDGING,
    ),
    seed: int | None = typer.Option(None, min=0, max=LAST_SEED, help="The first seed.  [default: 0]", rich_help_panel=JUDGING),
    controls: bool | None = typer.Option(
        None, "--controls/--no-controls", help="Train the control arms at the chosen level.  [default: yes]", rich_help_panel=JUDGING
    ),
    margin: float | None = typer.Option(
        None,
        "--margin",
        "--max-drop",
        min=0,
        max=100,
        help="Points of validation accuracy, or units of the task's metric, that a ticket may be worse; levels are tested from the largest down, "
        "and the last before a failure wins.  [default: 0.5]",
        rich_help_panel=JUDGING,
    ),
) -> None:
    """Search for the smallest winning ticket: train, prune, rewind, repeat; then judge it against controls.

    Ends with 4 where the ticket misses the target, as it may be of a level on the way there: all is written.
    """
    from ltcompile.core.image_size import height_width, parse
    from ltcompile.core.run_folder import RunFolder
    from ltcompile.search import Source, default_folder, recipe_for
    from ltcompile.search.settings import SearchSettings
    from ltcompile.tasks import load as load_task_file

    workers = Workers.of(jobs, executor, executor_option, retries)
    if nproc_per_node is not None and jobs is not None:
        raise InvalidSetting(f"nproc_per_node={nproc_per_node} trains arms one after another, and jobs={jobs} at a time; give one")
    if nproc_per_node is not None and nproc_per_node > 1 and not ranks.launched():
        raise typer.Exit(ranks.launch(nproc_per_node, sys.argv[1:]))
    context.with_resource(ranks.joined(device))
    stopped = StopSignal()
    flags: dict[str, dict[str, Any]] = {
        "": {"task": task, "model": model, "data": data, "image_size": image_size, "weights": str(weights) if weights else None},
        "train": {"epochs": epochs, "batch": batch, "lr": lr},
        "prune": {"prune": prune, "rewind": rewind, "criterion": criterion, "rounds": rounds, "rate": rate, "target_macs": target_macs}
        | {"target_speedup": target_speedup, "target_latency": target_latency, "on": on},
        "limits": {"keep": tuple(keep) or None},
        "search": {"seeds": seeds, "seed": seed, "controls": controls, "margin_points": margin},
    }
    of_script = {"--metric": metric, "--lower-is-better": lower_is_better, "--example": example}
    if train is None and (alone := [flag for flag, value in of_script.items() if value]):
        raise InvalidSetting(f"{alone[0]} belongs to a training script of your own; add --train COMMAND, or leave it out")
    given = SearchSettings({name: {k: v for k, v in table.items() if v is not None} for name, table in flags.items()})
    chosen = (
        (SearchSettings.load(recipe) if recipe else SearchSettings()).overridden_by(SearchSettings.parse(settings)).overridden_by(given)
    )
    top, cut = chosen.section(""), chosen.section("prune")
    if train is not None:
        from ltcompile.cli._own_loop import search_by_script

        more: dict[str, Any] = {"profile": profile, "resume": resume, "as_json": as_json, "stopped": stopped}
        search_by_script(train, chosen, name, metric or "metric", lower_is_better, example, workers=workers, **more)
        return
    kind = load_task_file(top.get("task", "classification"))
    network, trained = top.get("model", kind.MODEL), Path(top["weights"]) if "weights" in top else None
    size = parse(str(top["image_size"])) if "image_size" in top else None
    source = Source(
        task=top.get("task", "classification"),
        model=network,
        data=top.get("data", kind.DATA),
        data_root=str(data_root),
        image_size=None if size is None else height_width(size),
        weights=str(trained) if trained else None,
        strict=top.get("strict", False),
        train_images=top.get("train_images"),
        skip_damaged=skip_damaged,
    )
    with ranks.first_alone():
        found_task: Any = source.load(download)
    targets = {name: cut.get(f"target_{name}") for name in ("speedup", "latency", "energy")}
    time = timed(profiled_model(network, found_task), cut.get("on"), profile, **targets, quiet=as_json)
    config = chosen.config(**({**time.target, "on": time.on} if time else {}))
    training = chosen.recipe(recipe_for(network, found_task, trained))
    folder = Path("runs") / name if name else default_folder(network, found_task, config)
    if "virtual_ranks" not in chosen.section("train"):
        training = replace(training, virtual_ranks=virtual_ranks(folder, resume, training))
    found = run_search(
        *(network, found_task, config, training, folder, time, stopped),
        weights=trained,
        device=device,
        resume=resume,
        tensorboard=tensorboard,
        quiet=as_json,
        source=source,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
    )
    if ranks.follows():
        return
    ticket = RunFolder(found.folder).ticket
    if as_json:
        target = found.reached.to_json() if found.reached else None
        rows = [row.to_json() for row in found.rows]
        typer.echo(json.dumps({"ticket": str(ticket), "verdict": found.verdict.to_json(), "target": target, "rows": rows}))
    else:
        for line in found.verdict.summary:
            typer.echo(line)
        typer.echo(f"wrote {ticket}; next: ltcompile shrink {ticket} -o {found.folder / 'small.onnx'}")
    end_by_target(found.reached, quiet=as_json)
