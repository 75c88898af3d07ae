"""Accuracy right after a cut by every criterion, beside Torch-Pruning's of the same name.

    python bench/criteria.py --data-root DIR --folder RUN        writes bench/results/criteria.json

ResNet-20 on CIFAR-10, trained for a few epochs (kept in RUN, and read from there the next time), is cut once, over all layers together, to half
of its MACs. Batch-norm statistics are taken anew from training images, as every cut changes them; no weight is trained after the cut. Each side
looks at the same training images. What a criterion does by default was chosen on validation images; test images are looked at here.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _common import finish
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile import criteria
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.core.tensors import read_torch
from ltcompile.data import Dataset, Split
from ltcompile.finding.evidence import gather
from ltcompile.paths import write_torch
from ltcompile.train import train

CPU = torch.device("cpu")
MACS = 0.5
IMAGES = 1024  # that gradients are taken from
CALIBRATION_BATCHES = 16
POINTS = 2.0  # that a criterion may be behind


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where the dense network is, or will be")
    arguments.add_argument("--epochs", type=int, default=12, help="epochs of its training")
    arguments.add_argument("--image-size", type=int, default=32)
    arguments.add_argument("--images", type=int, default=10_000, help="test images that are looked at")
    arguments.add_argument("--criteria", nargs="*", default=criteria.names())
    asked = arguments.parse_args()
    data = lt.load_data("cifar10", asked.data_root, asked.image_size)
    recipe = recipe_for(asked.epochs, asked.image_size)
    dense = dense_network(asked.folder, data, recipe)
    labels = data.test.labels[: asked.images]
    right = {"dense": correct(dense, data.test, asked.images)}
    print(f"dense: {right['dense'].mean():.2%} of {len(labels)} test images\n")
    print(f"{'criterion':<11} {'producers':>10} {'all':>8} {'Torch-Pruning':>14}")
    rows = []
    for name in asked.criteria:
        found: dict[str, float | None] = {}
        for reduction in ("producers", "all"):
            found[reduction] = measured(ours(dense, data, recipe, name, reduction), data, recipe, asked.images)
        found["torch-pruning"] = measured(theirs(dense, data, recipe, name), data, recipe, asked.images) if name in THEIRS else None
        rows.append({"criterion": name, **found, "behind": found["torch-pruning"] and 100 * (found["torch-pruning"] - found["producers"])})
        shown = ["" if value is None else f"{value:.2%}" for value in found.values()]
        print(f"{name:<11} {shown[0]:>10} {shown[1]:>8} {shown[2]:>14}", flush=True)
    behind = [row["criterion"] for row in rows if row["behind"] is not None and row["behind"] > POINTS]
    settings = {"network": "resnet20", "macs": MACS, "epochs": asked.epochs, "image_size": asked.image_size, "test_images": len(labels)}
    finish("criteria", {**settings, "dense": float(right["dense"].mean()), "rows": rows, f"more than {POINTS:g} points behind": behind})


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


def dense_network(folder: Path, data: Dataset, recipe: Recipe) -> nn.Module:
    """The trained network of `folder`; it is trained first where it is not there."""
    file = folder / f"dense-{recipe.epochs}-{data.description.shape[-1]}.pt"
    with seeded(stream("first weights", 0)):
        model = lt.build_model("resnet20", *(len(data.description.class_names), *data.description.shape[:2]))
    if not file.exists():
        train(model, data, recipe, stream("training", 0, arm="dense"), CPU, progress=lambda epoch, _: print(epoch, flush=True))
        write_torch(file, {"weights": model.state_dict()})
    model.load_state_dict(read_torch(file, "trained network")["weights"])
    return model.eval()


def ours(dense: nn.Module, data: Dataset, recipe: Recipe, name: str, reduction: str) -> nn.Module:
    model = copy.deepcopy(dense)
    evidence = gather(name, model, data.train, recipe, 0, CPU)
    plan = lt.plan(model, data.example, criterion=name, evidence=evidence, target_macs=MACS, group_reduction=reduction)  # type: ignore[arg-type]
    return lt.cut(model, plan)


# Torch-Pruning: name -> its importance, and what it looks at in the gradients of parameters


def _mean_gradients(model: nn.Module, data: Dataset, recipe: Recipe) -> dict[str, Tensor]:
    """As in its examples: gradients of all batches add up."""
    for images, labels in _batches(data.train, recipe, recipe.batch):
        (F.cross_entropy(model(images), labels) * len(images) / IMAGES).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _squared_gradients(model: nn.Module, data: Dataset, recipe: Recipe) -> dict[str, Tensor]:
    """The mean over images of squared gradients: its documentation's, whose code keeps those of the last image."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for images, labels in _batches(data.train, recipe, 1):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / IMAGES
    return total


Gradients = Callable[[nn.Module, Dataset, Recipe], dict[str, Tensor]]
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


def theirs(dense: nn.Module, data: Dataset, recipe: Recipe, name: str) -> nn.Module:
    """The network that its pruner leaves, at the smallest ratio that leaves half of the MACs, by its defaults but for the global ranking."""
    import torch_pruning

    kind, settings, gradients = THEIRS[name]
    example, known = data.example, gradients(copy.deepcopy(dense), data, recipe) if gradients else {}
    most = MACS * lt.size(dense, example).macs

    def pruned(ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        for parameter, value in known.items():
            model.get_parameter(parameter).grad = value.clone()
        output = [m for m in model.modules() if isinstance(m, nn.Linear)]
        importance = getattr(torch_pruning.importance, kind)(**settings)
        with seeded(stream("random scores", 0)):
            pruner = torch_pruning.pruner.BasePruner(
                model, example, importance, global_pruning=True, pruning_ratio=ratio, ignored_layers=output
            )
            pruner.step()
        return model

    low, high = 0.0, 0.95
    while high - low > 0.002:
        middle = (low + high) / 2
        low, high = (low, middle) if lt.size(pruned(middle), example).macs <= most else (middle, high)
    model = pruned(high)
    model.zero_grad()
    return model


# Measuring


def _batches(split: Split, recipe: Recipe, size: int) -> list[tuple[Tensor, Tensor]]:
    found, seen = [], 0
    for images, labels in split.batches(size, CPU, recipe, stream("scoring batches", 0)):
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
        for batch, (pixels, _) in enumerate(data.train.batches(recipe.batch, CPU, recipe, stream("scoring batches", 1))):
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
