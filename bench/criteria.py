"""Accuracy right after a cut by every criterion, next to Torch-Pruning's of the same name.

    python bench/criteria.py --data-root DIR --folder RUN        writes bench/results/criteria.json and criteria.md

ResNet-20 on CIFAR-10, trained for a few epochs (kept in RUN, and read from there the next time), is cut once, over all layers together, to half
of its MACs. Batch-norm statistics are computed again from training images, as every cut changes them; no weight is trained after the cut. Both
sides read the same training images. One network does not rank criteria, so there are several, of different seeds; a criterion that
depends on chance, such as which images it reads, is measured several times on each. A criterion's default was chosen on validation images
(--validation); the results are of test images.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _common import RESULTS, finish
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, seeded, stream
from ltcompile.core.tensors import read_torch
from ltcompile.data import Dataset, Split
from ltcompile.paths import write_text, write_torch
from ltcompile.prune import criteria
from ltcompile.prune.criteria import Reduction
from ltcompile.search.evidence import gather
from ltcompile.tasks import Classification
from ltcompile.training import train

CPU = torch.device("cpu")
MACS = 0.5
IMAGES = 1024  # that gradients are taken from
CALIBRATION_BATCHES = 16
REDUCTIONS: tuple[Reduction, ...] = ("producers", "filters", "all")
POINTS = 2.0  # that a criterion may be behind


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where the dense network is, or will be")
    arguments.add_argument("--epochs", type=int, default=4, help="epochs of its training")
    arguments.add_argument("--image-size", type=int, default=16)
    arguments.add_argument("--images", type=int, default=10_000, help="test images that are looked at")
    arguments.add_argument("--networks", type=int, default=3, help="trainings, of different seeds")
    arguments.add_argument("--seeds", type=int, default=2, help="of criteria that depend on chance, on each network")
    arguments.add_argument("--validation", action="store_true", help="look at validation images, and write no file")
    arguments.add_argument("--criteria", nargs="*", default=criteria.names())
    options = arguments.parse_args()
    data = lt.load_data("cifar10", options.data_root, options.image_size)
    recipe = recipe_for(options.epochs, options.image_size)
    networks = [dense_network(options.folder, data, recipe, seed) for seed in range(options.networks)]
    if options.validation:
        data = replace(data, test=data.val)
    settings = {"network": "resnet20", "macs": MACS, "epochs": options.epochs, "image_size": options.image_size}
    settings |= {"images": min(options.images, len(data.test))}
    settings |= {"dense": [float(correct(dense, data.test, options.images).mean()) for dense in networks]}
    print(table(settings, []), flush=True)
    rows = []
    for name in options.criteria:
        rows.append(compared(name, networks, data, recipe, options))
        print(line(rows[-1]), flush=True)
    if not options.validation:
        write_text(
            RESULTS / "criteria.md",
            "# Criteria right after a cut\n\nWhat `python bench/criteria.py` found; see there.\n\n" + table(settings, rows),
        )
        finish("criteria", {**settings, "rows": rows})


def compared(name: str, networks: list[nn.Module], data: Dataset, recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: accuracies by each side, one a network and seed, their means, and how many points the default is behind."""
    seeds = range(options.seeds if criteria.needs(name) or name == "random" else 1)
    runs: dict[str, list[list[float]]] = {side: [] for side in (*REDUCTIONS, "torch-pruning") if side != "torch-pruning" or name in THEIRS}
    for dense in networks:
        found: dict[str, list[float]] = {side: [] for side in runs}
        for seed in seeds:
            cut = ours(dense, data, recipe, name, seed)
            if name in THEIRS:
                cut["torch-pruning"] = theirs(dense, data, recipe, name, seed)
            for side, model in cut.items():
                found[side].append(measured(model, data, recipe, options.images))
        for side, values in found.items():
            runs[side].append(values)
    row: dict[str, Any] = {"criterion": name, "default": criteria.default_reduction(name)}
    row |= {side: fmean(map(fmean, values)) for side, values in runs.items()}
    row |= {"runs": runs}
    if name in THEIRS:
        pairs = zip(runs["torch-pruning"], runs[row["default"]], strict=True)
        row["points_behind"] = [100 * (fmean(other) - fmean(mine)) for other, mine in pairs]
        row["holds"] = fmean(row["points_behind"]) <= POINTS
    return row


def table(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    dense = ", ".join(f"{accuracy:.2%}" for accuracy in settings["dense"])
    text = f"The dense networks are right on {dense} of {settings['images']} images. Each figure is the mean over the networks, and their range; "
    text += "the criterion's default is bold, and is compared with Torch-Pruning.\n\n"
    text += f"| criterion | {' | '.join(REDUCTIONS)} | Torch-Pruning | behind by at most {POINTS:g} points |\n"
    return text + "| --- | --- | --- | --- | --- | --- |\n" + "".join(line(row) + "\n" for row in rows)


def line(row: dict[str, Any]) -> str:
    cells = [shown(row["runs"].get(side, []), bold=side == row["default"]) for side in (*REDUCTIONS, "torch-pruning")]
    verdict = ""
    if "holds" in row:
        behind = row["points_behind"]
        verdict = f"{'yes' if row['holds'] else 'no'}: {fmean(behind):+.1f} ({min(behind):+.1f} to {max(behind):+.1f})"
    return "| " + " | ".join([row["criterion"], *cells, verdict]) + " |"


def shown(found: list[list[float]], bold: bool) -> str:
    means = [fmean(values) for values in found]
    mark = "**" * bold
    return f"{mark}{fmean(means):.1%}{mark} ({min(means):.1%} to {max(means):.1%})" if means else ""


def recipe_for(epochs: int, side: int) -> Recipe:
    return Recipe(
        epochs=epochs,
        lr=0.1,
        schedule="cosine",
        warmup_epochs=min(1, epochs - 1),
        crop_pixels=side // 8,
        precision="fp32",
        compile="never",
    )


def dense_network(folder: Path, data: Dataset, recipe: Recipe, seed: int) -> nn.Module:
    """The network that `folder` holds of this seed; it is trained first where it is not there."""
    file = folder / f"dense-{recipe.epochs}-{data.description.shape[-1]}-{seed}.pt"
    with seeded(stream("first weights", seed)):
        model = lt.build_model("resnet20", *(len(data.description.class_names), *data.description.shape[:2]))
    if not file.exists():
        train(
            model,
            Classification(data),
            recipe,
            stream("training", seed, arm="dense"),
            CPU,
            progress=lambda epoch, _: print(epoch, flush=True),
        )
        write_torch(file, {"weights": model.state_dict()})
    model.load_state_dict(read_torch(file, "trained network")["weights"])
    return model.eval()


def ours(dense: nn.Module, data: Dataset, recipe: Recipe, name: str, seed: int) -> dict[str, nn.Module]:
    """Group reduction -> the network that is left."""
    evidence, left = gather(name, dense, Classification(data), recipe, seed, CPU), dict[str, nn.Module]()
    for reduction in REDUCTIONS:
        evidence.rng = generator(stream("random scores", seed))
        plan = lt.plan(dense, data.example, criterion=name, evidence=evidence, target_macs=MACS, group_reduction=reduction)
        left[reduction] = lt.cut(dense, plan)
    return left


# Torch-Pruning: name -> its importance, and what it looks at in the gradients of parameters


def _mean_gradients(model: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """As in its examples: gradients of all batches add up."""
    for images, labels in _batches(data.train, recipe, recipe.batch, seed):
        (F.cross_entropy(model(images), labels) * len(images) / IMAGES).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _squared_gradients(model: nn.Module, data: Dataset, recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """The mean over images of squared gradients: its documentation's, whose code keeps those of the last image."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for images, labels in _batches(data.train, recipe, 1, seed):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / IMAGES
    return total


Gradients = Callable[[nn.Module, Dataset, Recipe, int], dict[str, Tensor]]
THEIRS: dict[str, tuple[str, dict[str, Any], Gradients | None]] = {
    "l1": ("GroupMagnitudeImportance", {"p": 1}, None),
    "l2": ("GroupMagnitudeImportance", {"p": 2}, None),
    "bn": ("BNScaleImportance", {}, None),
    "fpgm": ("FPGMImportance", {}, None),
    "lamp": ("LAMPImportance", {}, None),
    "random": ("RandomImportance", {}, None),
    "taylor": ("GroupTaylorImportance", {}, _mean_gradients),
    "hessian": ("GroupHessianImportance", {}, _squared_gradients),
}


def theirs(dense: nn.Module, data: Dataset, recipe: Recipe, name: str, seed: int, macs: float = MACS, **options: Any) -> nn.Module:
    """The network that its pruner leaves, at the smallest ratio that leaves `macs` of the MACs, by its defaults but for the global ranking
    and `options`."""
    import torch_pruning

    kind, settings, gradients = THEIRS[name]
    example, known = data.example, gradients(copy.deepcopy(dense).requires_grad_(True), data, recipe, seed) if gradients else {}
    most = macs * lt.size(dense, example).macs

    def pruned(ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        for parameter, value in known.items():
            model.get_parameter(parameter).grad = value.clone()
        output = [m for m in model.modules() if isinstance(m, nn.Linear)]
        importance = getattr(torch_pruning.importance, kind)(**settings)
        with seeded(stream("random scores", seed)):
            pruner = torch_pruning.pruner.BasePruner(
                model, example, importance, global_pruning=True, pruning_ratio=ratio, ignored_layers=output, **options
            )
            pruner.step()
        return model

    low, high = 0.0, 0.95
    while high - low > 0.002:
        middle = (low + high) / 2
        low, high = (low, middle) if lt.size(pruned(middle), example).macs <= most else (middle, high)
    model = pruned(high)
    if lt.size(model, example).macs > most:
        raise RuntimeError(f"no ratio up to {high} leaves {macs:.0%} of the MACs")
    model.zero_grad()
    return model


# Measuring


def _batches(split: Split, recipe: Recipe, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    found, seen = [], 0
    for images, labels in split.batches(size, CPU, recipe, stream("scoring batches", seed)):
        found.append((images, labels))
        seen += len(labels)
        if seen >= IMAGES:
            break
    return found


def measured(model: nn.Module, data: Dataset, recipe: Recipe, images: int) -> float:
    """The test accuracy of `model`, whose batch norms see training images first."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
    model.train()
    with torch.no_grad():
        for batch, (pixels, _) in enumerate(data.train.batches(recipe.batch, CPU, recipe, stream("batches", 0))):
            if batch == CALIBRATION_BATCHES:
                break
            model(pixels)
    return float(correct(model, data.test, images).mean())


@torch.no_grad()
def correct(model: nn.Module, split: Split, images: int) -> Tensor:
    """Which of the first images are right, as 0 or 1 (N,)."""
    model.eval()
    found: list[Tensor] = []
    for pixels, labels in split.batches(250, CPU, None, 0):
        if 250 * len(found) >= images:
            break
        found.append((model(pixels).argmax(1) == labels).double())
    return torch.cat(found)[: math.ceil(images)]


if __name__ == "__main__":
    main()
