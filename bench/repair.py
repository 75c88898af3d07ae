"""Recovery without labels: accuracy as cut, with batch norm recalibrated, repaired, and refined by gradient descent on the same inputs.

    python bench/repair.py --data-root DIR --folder RUN        writes bench/results/repair.json and repair.md

Networks for CIFAR-10 are trained for a few epochs (kept in RUN, resumed from the last epoch), and cut once, over all layers together, to half
and to a quarter of their MACs, by criteria that need no labels. Batch norm, repair and its refinement see the same unlabelled training images. The
criterion of each size is the one with the best mean on validation images, of repaired and of refined networks each; test images are looked at
once, for the table. Next to them, Torch-Pruning cuts
by its criterion of the same name, with batch norm recalibrated. Each finished row stays in RUN: a stopped command continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import criteria as peers
import torch
from _common import RESULTS, finish
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.core.tensors import read_torch
from ltcompile.data import Dataset
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.paths import write_json, write_text, write_torch
from ltcompile.recovery import RepairReport
from ltcompile.tasks import Classification
from ltcompile.training import train

CPU = torch.device("cpu")
LEVELS = (0.5, 0.25)
GOALS = {0.5: 0.83, 0.25: 0.74}  # test accuracy of ResNet-20, repaired; fixed before the first run
CRITERIA = ("l1", "reconstruction", "l1, isomorphic")  # with the scope of the ranking, global by default
COLUMNS = ("as cut", "recalibrated", "repaired", "refined")
PASSES = 30  # of the refinement


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where the networks and finished rows are, or will be")
    arguments.add_argument("--model", default="resnet20")
    arguments.add_argument("--epochs", type=int, default=8)
    arguments.add_argument("--image-size", type=int, default=32)
    arguments.add_argument("--networks", type=int, default=3, help="trainings, of different seeds")
    arguments.add_argument("--inputs", type=int, default=2048, help="unlabelled images")
    arguments.add_argument("--criteria", nargs="*", default=CRITERIA)
    options = arguments.parse_args()
    data = lt.load_data("cifar10", options.data_root, options.image_size)
    images = next(iter(data.train.batches(options.inputs, CPU, None, 0)))[0].split(128)
    rows: list[dict[str, Any]] = []
    for seed in range(options.networks):
        dense = dense_network(options, data, seed)
        for macs in LEVELS:
            for name in options.criteria:
                rows.append(kept(options, seed, macs, name, lambda d=dense, m=macs, n=name: measured(d, data, images, m, n)))  # type: ignore[misc]
    result = {
        "settings": settings(options) | {"passes": PASSES},
        "goals": {str(macs): goal for macs, goal in GOALS.items()},
        "rows": rows,
        "chosen": {column: chosen(rows, column) for column in COLUMNS[2:]},
    }
    print(table(result))
    write_text(RESULTS / "repair.md", table(result))
    finish("repair", result)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("model", "epochs", "image_size", "networks", "inputs")}


def dense_network(options: argparse.Namespace, data: Dataset, seed: int, recipe: Recipe | None = None) -> nn.Module:
    """The trained network of this seed from the folder; what is missing of its training comes first."""
    name = f"{options.model}-{options.epochs}-{options.image_size}-{seed}"
    file, partial = options.folder / f"{name}.pt", options.folder / f"{name}.partial.pt"
    with seeded(stream("first weights", seed)):
        model = lt.build_model(options.model, len(data.description.class_names), *data.description.shape[:2])
    if not file.exists():
        recipe = recipe or Recipe(
            options.epochs, schedule="cosine", warmup_epochs=1, crop_pixels=options.image_size // 8, precision="bf16", compile="never"
        )

        def progress(epoch: Any, state: dict[str, Any]) -> None:
            print(name, epoch.epoch + 1, f"{epoch.val_score:.2%}", flush=True)
            if epoch.epoch + 1 < options.epochs:
                write_torch(partial, state)

        state = read_torch(partial, "checkpoint") if partial.exists() else None
        train(model, Classification(data), recipe, stream("training", seed, arm="dense"), CPU, progress=progress, state=state)
        write_torch(file, {"weights": model.state_dict()})
    model.load_state_dict(read_torch(file, "trained network")["weights"])
    return model.eval()


def kept(options: argparse.Namespace, seed: int, macs: float, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row from the folder, or measured and put there."""
    file = options.folder / f"row-{options.model}-{options.epochs}-{options.image_size}-{options.inputs}-{seed}-{macs}-{name}.json"
    if not file.exists():
        write_json(file, {"seed": seed, "macs": macs, "criterion": name, **measure()})
    row: dict[str, Any] = json.loads(file.read_text())
    print(seed, macs, name, {column: row[column] for column in ("dense", *COLUMNS) if column in row}, flush=True)
    return row


def measured(dense: nn.Module, data: Dataset, images: Iterable[Tensor], macs: float, name: str) -> dict[str, Any]:
    """Validation and test accuracies of one cut, [validation, test] in each column."""
    criterion, _, scope = name.partition(", ")
    plan = lt.plan(dense, data.example, None, scope or "global", criterion, inputs=images, target_macs=macs)
    small = lt.cut(dense, plan).eval()
    recalibrated, reports = lt.cut(dense, plan), list[RepairReport]()
    take_statistics(recalibrated, images)
    repaired = lt.repair(small, plan, dense, images, on_report=reports.append)
    refined = lt.repair(small, plan, dense, images, passes=PASSES, on_report=reports.append)
    row: dict[str, Any] = {
        "dense": accuracies(dense, data),
        "as cut": accuracies(small, data),
        "recalibrated": accuracies(recalibrated, data),
    }
    row |= {"repaired": accuracies(repaired, data), "refined": accuracies(refined, data), "threads": torch.get_num_threads()}
    solved, descended = reports
    row |= {"output_error": [solved.as_cut, solved.recalibrated, solved.repaired, descended.repaired]}
    if name in peers.THEIRS:
        other = peers.theirs(dense, data, Recipe(), name, 0, macs)
        take_statistics(other, images)
        row["torch-pruning, recalibrated"] = accuracies(other, data)
    return row


def accuracies(model: nn.Module, data: Dataset) -> list[float]:
    """Of all validation and all test images."""
    return [float(peers.correct(model, split, len(split)).mean()) for split in (data.val, data.test)]


def chosen(rows: list[dict[str, Any]], column: str) -> dict[str, str]:
    """MACs -> the criterion whose networks of this column are best on validation images."""
    names = {row["criterion"] for row in rows}
    return {str(macs): max(sorted(names), key=lambda name: fmean(values(rows, macs, name, column, 0))) for macs in LEVELS}


def values(rows: list[dict[str, Any]], macs: float, name: str, column: str, split: int) -> list[float]:
    return [row[column][split] for row in rows if row["macs"] == macs and row["criterion"] == name and column in row]


def table(result: dict[str, Any]) -> str:
    options, rows = result["settings"], result["rows"]
    dense = sorted({row["seed"]: row["dense"][1] for row in rows}.items())
    columns = (*COLUMNS, "torch-pruning, recalibrated")
    lines = [
        "# Recovery without labels",
        "",
        f"{options['networks']} {options['model']} on CIFAR-10 at {options['image_size']} pixels, {options['epochs']} epochs; "
        f"{options['inputs']:,} unlabelled training images. Test accuracy, mean (lowest to highest); dense: "
        f"{', '.join(f'{value:.2%}' for _, value in dense)}. Repaired: solved by least squares; refined: then {PASSES} passes of gradient descent "
        "over the same images, without labels. What validation images chose is bold. Written by `python bench/repair.py`.",
        "",
        f"| MACs | criterion | {' | '.join(columns)} | error of outputs: the same four |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for macs in LEVELS:
        for name in dict.fromkeys(row["criterion"] for row in rows):
            mine = [row for row in rows if row["macs"] == macs and row["criterion"] == name]
            errors = ", ".join(f"{fmean(row['output_error'][at] for row in mine):.2f}" for at in range(4))
            cells = [spread(values(rows, macs, name, column, 1)) for column in columns]
            best = [result["chosen"].get(column, {}).get(str(macs)) == name for column in columns]
            cells = [f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, best, strict=True)]
            lines.append(f"| {macs:.0%} | {name} | {' | '.join(cells)} | {errors} |")
    if (options["model"], options["epochs"], options["image_size"]) == ("resnet20", 8, 32):
        for macs, goal in GOALS.items():
            found = {column: fmean(values(rows, macs, result["chosen"][column][str(macs)], column, 1)) for column in COLUMNS[2:]}
            outcome = "; ".join(f"{column} {'yes' if value >= goal else 'no'} ({value:.2%})" for column, value in found.items())
            lines.append(f"\nAt least {goal:.0%} at {macs:.0%} of the MACs: {outcome}.")
    return "\n".join(lines) + "\n"


def spread(found: list[float]) -> str:
    return f"{fmean(found):.1%} ({min(found):.1%} to {max(found):.1%})" if found else ""


if __name__ == "__main__":
    main()
