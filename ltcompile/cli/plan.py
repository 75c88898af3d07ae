"""ltcompile plan: what a cut would take from a network, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._network import EXAMPLE, NAMES
from ltcompile.cli._options import (
    ALIGN,
    GROUP_REDUCTION,
    IMAGE_SIZE,
    KEEP,
    LAST_SEED,
    LAYER_RATIO,
    MAX_LAYER_RATIO,
    MIN_CHANNELS,
    NORMALIZE,
    ON,
    ONLY,
    PROFILE,
    PRUNING,
    TARGET_ENERGY,
    TARGET_LATENCY,
    TARGET_SPEEDUP,
    end_by_target,
    limits,
    size_for,
    timed,
)

if TYPE_CHECKING:
    from ltcompile.core.plan import PruningPlan
    from ltcompile.core.reached import Reached
    from ltcompile.graph import Size
    from ltcompile.prune import Limits

SENSITIVITY = "Sensitivity"
SUMMARY = "Show what a cut would take, without training."
EPILOG = """Examples:  ltcompile plan --model vgg16 --ratio 0.5  ·  ltcompile plan --model torchvision:resnet50 --classes 1000 --target-macs 0.5
--align 8 --weights resnet50.pth -o plan.json  ·  ltcompile plan --model resnet20 --target-params 0.3 --keep conv --layer-ratio '.*conv1=0.6'  ·
ltcompile plan --model resnet20 --weights W --sensitivity curves.html --data cifar10 --data-root DIR"""


def plan(
    model: str = typer.Option("vgg16", help=NAMES),
    weights: Path | None = typer.Option(None, help="Trained weights (.safetensors or torch.save); fresh ones say little of importance."),
    classes: int = typer.Option(10, min=2, max=1_000_000, help="Classes that the network distinguishes."),
    in_channels: int = typer.Option(3, min=1, max=1024, help="Colours of its images."),
    image_size: str | None = IMAGE_SIZE,
    example: str | None = EXAMPLE,
    ratio: float | None = typer.Option(
        None, help="Share of the filters to drop.  [default: 0.5, unless there is a target]", rich_help_panel=PRUNING
    ),
    target_macs: float | None = typer.Option(
        None, help="Instead of a ratio: the share of the dense network's MACs that may stay.", rich_help_panel=PRUNING
    ),
    target_params: float | None = typer.Option(None, help="The same with parameters.", rich_help_panel=PRUNING),
    target_speedup: float | None = TARGET_SPEEDUP,
    target_latency: str | None = TARGET_LATENCY,
    target_energy: str | None = TARGET_ENERGY,
    on: str | None = ON,
    profile: Path | None = PROFILE,
    scope: str = typer.Option(
        "global",
        help="Rank filters over the whole network (global), layers of one structure (isomorphic) or layer by layer (local).",
        rich_help_panel=PRUNING,
    ),
    criterion: str = typer.Option(
        "l1", help="l1, l2, linf, neg_linf, bn, fpgm, lamp or random: those that need no data.", rich_help_panel=PRUNING
    ),
    group_reduction: str = GROUP_REDUCTION,
    normalize: str | None = NORMALIZE,
    keep: list[str] = KEEP,
    only: list[str] = ONLY,
    layer_ratio: list[str] = LAYER_RATIO,
    max_layer_ratio: float = MAX_LAYER_RATIO,
    min_channels: int = MIN_CHANNELS,
    align: int = ALIGN,
    seed: int = typer.Option(0, min=0, max=LAST_SEED, help="Gives fresh weights and the random criterion."),
    depth: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Remove whole residual branches too, where outputs on the unlabelled inputs in FILE (.safetensors or torch.save: name -> tensor) "
        "then change less at the same target.",
        rich_help_panel=PRUNING,
    ),
    check: bool = typer.Option(True, help="Run the cut network against the masked one first; costs most on the largest networks."),
    sensitivity: Path | None = typer.Option(
        None,
        metavar="FILE.html",
        help="Cut no plan: measure the metric on --data after cuts of each layer alone, and draw it here; FILE.json holds the rows, and resumes.",
        rich_help_panel=SENSITIVITY,
    ),
    data: str = typer.Option("digits", help="With --sensitivity: the data, as `find` takes it.", rich_help_panel=SENSITIVITY),
    data_root: Path = typer.Option(Path("data"), help="With --sensitivity: its folder.", rich_help_panel=SENSITIVITY),
    skip_damaged: bool = typer.Option(
        False,
        "--skip-damaged",
        help="With --sensitivity: go without shards that are missing or damaged, and streamed images that cannot be read.",
        rich_help_panel=SENSITIVITY,
    ),
    task: str = typer.Option("classification", help="With --sensitivity: what the network is for.", rich_help_panel=SENSITIVITY),
    output: Path | None = typer.Option(None, "-o", "--output", help="Where to write the plan as JSON, for PruningPlan.load."),
    as_json: bool = typer.Option(False, "--json", help="Print the widths and sizes as JSON."),
) -> None:
    """Choose the channels to cut and print what is left of every layer and of the whole. Nothing is trained.

    Ends with 4 where the plan misses its target by more than measurements scatter: it is printed and written all the same.
    """
    import torch

    from ltcompile.core.image_size import height_width
    from ltcompile.core.streams import seeded, stream
    from ltcompile.graph.examples import read_inputs
    from ltcompile.models import build_model
    from ltcompile.paths import check_writable
    from ltcompile.prune import Limits
    from ltcompile.prune import plan as choose
    from ltcompile.prune.target import SizeCounter
    from ltcompile.pruned.files import pruned_from_files

    limits_given = Limits(**limits(keep, only, layer_ratio, max_layer_ratio, min_channels))
    if sensitivity is not None:
        more = {"skip_damaged": skip_damaged, "as_json": as_json}
        _measure(sensitivity, model, weights, task, data, data_root, image_size, criterion, limits_given, **more)
        return
    if output is not None:
        check_writable(output)
    goals = (on, profile, target_speedup, target_latency, target_energy)
    if example is not None:
        own = pruned_from_files(model, weights, None, example)
        network, inputs = own.small, own.example
        time = timed(network, *goals, quiet=as_json, example=inputs)
    else:
        size = size_for(model, image_size)
        time = timed(
            {"name": model, "arguments": {"classes": classes, "in_channels": in_channels, "image_size": size}}, *goals, quiet=as_json
        )
        with seeded(stream("first weights", seed)):
            network = build_model(model, classes, in_channels, size, weights)
        inputs = torch.zeros(2, in_channels, *height_width(size))
    reached: list[Reached] = []
    found = choose(
        network,
        inputs,
        ratio,
        scope,  # type: ignore[arg-type]  # checked there
        criterion,
        align,
        seed=seed,
        target_macs=target_macs,
        target_params=target_params,
        **(time.target if time else {}),
        profile=time.profile if time else None,
        measured=time.measured if time else None,
        limits=limits_given,
        check=check,
        group_reduction=group_reduction,  # type: ignore[arg-type]
        normalize=normalize or "default",  # type: ignore[arg-type]
        on_target=reached.append,
        depth=depth is not None,
        inputs=None if depth is None else [read_inputs(depth)],
    )
    size_counter = SizeCounter(network, inputs)
    before, after = size_counter.dense, size_counter.left(found)
    if output is not None:
        found.save(output)
    rows = _rows(found, limits_given)
    if as_json:
        sizes: dict[str, Any] = {"params": [before.params, after.params], "macs": [before.macs, after.macs]}
        if found.removed_branches:
            sizes["removed_branches"] = [branch.name for branch in found.removed_branches]
        typer.echo(json.dumps({"model": model, "groups": rows, **sizes, "target": reached[0].to_json() if reached else None}))
    else:
        _print(rows, before, after)
        if found.removed_branches:
            typer.echo(f"removed branches: {', '.join(branch.name for branch in found.removed_branches)}")
        if output is not None:
            typer.echo(f"wrote {output}")
    end_by_target(reached[0] if reached else None, quiet=as_json)


def _measure(
    picture: Path,
    model: str,
    weights: Path | None,
    task: str,
    data: str,
    data_root: Path,
    image_size: str | None,
    criterion: str,
    limits_given: Limits,
    *,
    skip_damaged: bool,
    as_json: bool,
) -> None:
    """Write the picture of a network's sensitivity, and print its rows. Raises InvalidSetting, and what task and network raise."""
    import torch

    from ltcompile.core.image_size import parse
    from ltcompile.core.streams import seeded, stream
    from ltcompile.errors import InvalidSetting
    from ltcompile.models import build_model
    from ltcompile.paths import check_writable
    from ltcompile.prune.sensitivity import sensitivity
    from ltcompile.search import task_for

    if picture.suffix != ".html":
        raise InvalidSetting(f"--sensitivity takes the name of a page, as in curves.html, not {picture}")
    check_writable(picture)
    size = parse(image_size) if image_size else None
    found_task: Any = task_for(task, model, data, data_root, size, weights=weights, skip_damaged=skip_damaged)
    with seeded(stream("first weights", 0)):
        network = build_model(model, weights=weights, **found_task.description.arguments)
    found = sensitivity(
        network,
        found_task.example,
        lambda small: found_task.evaluate(small, "val", torch.device("cpu")).value,
        criterion=criterion,
        limits=limits_given,
        output=picture.with_suffix(".json"),
        on_row=None
        if as_json
        else lambda row, of: typer.echo(f"{row.group}  {row.kept} of {row.width}  {found_task.metric.format(row.score)}"),
    )
    found.write_html(picture, found_task.metric.name)
    typer.echo(json.dumps(found.to_json()) if as_json else f"wrote {picture}; dense {found_task.metric.format(found.dense)}")


def _rows(found: PruningPlan, limits_given: Limits) -> list[dict[str, Any]]:
    """A row a group: its layers (those that make its channels first), its width before and after, and why it is left alone."""
    rows = []
    floors = limits_given.floors(found.groups)
    for group, kept in found:
        layers = dict.fromkeys([*(m.layer for m in group.producers), *(m.layer for m in group.members if m.axis != "in")])
        reason = group.frozen
        if not reason and len(kept) == group.width:
            reason = "it is no wider than its floor" if floors[group.name] == group.width else "its channels rank above the cut"
        before, after = found.widths[group.name]
        rows.append({"name": group.name, "layers": list(layers), "before": before, "after": after, "left_alone": reason if after else ""})
    return rows


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    others = [name for name in row["layers"] if name != row["name"]]
    layers = ", ".join(others[:2]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")
    return row["name"], layers, row["before"], row["after"], f"{row['after'] / row['before']:.0%}", row["left_alone"]


def _print(rows: list[dict[str, Any]], before: Size, after: Size) -> None:
    from ltcompile.cli._terminal import show_table, sizes_line

    show_table(("layer", "cut with it", "before", "after", "kept", "left alone because"), map(_cells, rows))
    typer.echo(sizes_line(before, after))
