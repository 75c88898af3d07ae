"""Which filters a global ranking takes after a short and after a long training, and what that costs: norms by layer over training.

    python bench/global_ranking.py --data-root DIR --folder RUN        writes bench/results/global-ranking.json and global-ranking.md

VGG-16 with a quarter of its filters is trained on CIFAR-10 at 16 pixels, with its whole schedule in few and in many epochs, and after each epoch
the L1 norms of the filters are taken layer by layer. Half of all filters then go by `l1`: layer by layer (local), by norms relative to their layer's mean
(global, the default), and by plain norms (global, none). Each cut network trains for as many epochs again with the whole schedule, as in
learning-rate rewinding. Nothing is chosen, so accuracies are of test images. Each finished row stays in RUN: a stopped command continues.
"""

from __future__ import annotations

import argparse
import json
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
from ltcompile.data import Dataset
from ltcompile.paths import write_json, write_text
from ltcompile.tasks import Classification
from ltcompile.training import train

CPU = torch.device("cpu")
MODEL, SIZE, REMOVED = "vgg16-quarter", 16, 0.5
WAYS: dict[str, dict[str, Any]] = {
    "local": {"scope": "local"},
    "global, relative to the layer's mean": {"scope": "global", "normalize": "mean"},
    "global, plain norms": {"scope": "global", "normalize": "none"},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where finished rows are, or will be")
    arguments.add_argument("--epochs", type=int, nargs="+", default=(4, 24))
    arguments.add_argument("--seeds", type=int, default=3)
    options = arguments.parse_args()
    data = lt.load_data("cifar10", options.data_root, SIZE)
    rows = [kept(options.folder, data, seed, epochs) for seed in range(options.seeds) for epochs in options.epochs]
    write_text(RESULTS / "global-ranking.md", table(rows))
    finish(
        "global-ranking",
        {"model": MODEL, "image_size": SIZE, "removed": REMOVED, "epochs": options.epochs, "seeds": options.seeds, "rows": rows},
    )


def kept(folder: Path, data: Dataset, seed: int, epochs: int) -> dict[str, Any]:
    """A row from the folder, or measured and put there."""
    file = folder / f"row-{epochs}-{seed}.json"
    if not file.exists():
        write_json(file, {"seed": seed, "epochs": epochs, **measured(data, seed, epochs)})
    row: dict[str, Any] = json.loads(file.read_text())
    print(seed, epochs, f"dense {row['dense']:.2%}", {name: f"{way['accuracy']:.2%}" for name, way in row["ways"].items()}, flush=True)
    return row


def measured(data: Dataset, seed: int, epochs: int) -> dict[str, Any]:
    """A dense network, its norms over the training, and what each way of ranking leaves of it."""
    with seeded(stream("first weights", seed)):
        dense = lt.build_model(MODEL, 10, 3, SIZE)
    norms = [layers(dense)]
    trained(dense, data, epochs, stream("training", seed, arm="dense"), lambda epoch, state: norms.append(layers(dense)))
    ways = {}
    for name, way in WAYS.items():
        plan = lt.plan(dense, data.example, REMOVED, criterion="l1", **way)
        small = lt.cut(dense, plan)
        left = [layer.out_channels for layer in convolutions(small)]
        macs = lt.size(small, data.example).macs / lt.size(dense, data.example).macs
        trained(small, data, epochs, stream("training", seed, arm=name))
        ways[name] = {"filters": left, "macs_left": macs, "accuracy": accuracy(small, data)}
    return {"dense": accuracy(dense, data), "filters": [layer.out_channels for layer in convolutions(dense)], "norms": norms, "ways": ways}


def trained(network: nn.Module, data: Dataset, epochs: int, seed: int, progress: Any = None) -> None:
    recipe = Recipe(epochs, schedule="cosine", warmup_epochs=1, lr=0.1, weight_decay=5e-4, crop_pixels=2, precision="bf16", compile="never")
    train(network, Classification(data), recipe, seed, CPU, progress=progress)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def layers(network: nn.Module) -> list[dict[str, float]]:
    """Of each convolution: the mean L1 norm of its filters, and the share of them whose norm is below half of that."""
    found: list[Tensor] = [layer.weight.detach().flatten(1).norm(p=1, dim=1) for layer in convolutions(network)]
    return [{"mean": norm.mean().item(), "small": (norm < norm.mean() / 2).float().mean().item()} for norm in found]


def accuracy(network: nn.Module, data: Dataset) -> float:
    return float(peers.correct(network.eval(), data.test, len(data.test)).mean())


def table(rows: list[dict[str, Any]]) -> str:
    epochs, seeds = list(dict.fromkeys(row["epochs"] for row in rows)), len({row["seed"] for row in rows})
    lines = [
        "# Global ranking after a short and after a long training",
        "",
        f"{MODEL} on CIFAR-10 at {SIZE} pixels; {REMOVED:.0%} of the filters removed by `l1`, then trained for as many epochs again. Test accuracy: mean "
        f"(lowest to highest), number of seeds: {seeds}. Written by `python bench/global_ranking.py`.",
        "",
        "| epochs | dense | ranking | MACs left | accuracy | less than local |",
        "| --- " * 6 + "|",
    ]
    for each in epochs:
        mine = [row for row in rows if row["epochs"] == each]
        for name in WAYS:
            ways, local = [row["ways"][name] for row in mine], [row["ways"]["local"]["accuracy"] for row in mine]
            lost = [100 * (base - way["accuracy"]) for base, way in zip(local, ways, strict=True)]
            cells = [percent([row["dense"] for row in mine]), name, f"{fmean(way['macs_left'] for way in ways):.1%}"]
            cells += [percent([way["accuracy"] for way in ways]), f"{fmean(lost):.1f} ({min(lost):.1f} to {max(lost):.1f}) points"]
            lines.append(f"| {each} | {' | '.join(cells)} |")
    lines += [
        "",
        "Of each layer, from the first to the last: how its filters' norms change in training, and which share of them the rankings leave.",
        "",
    ]
    lines += [
        f"| epochs | {' | '.join(f'conv {i + 1}' for i in range(len(rows[0]['filters'])))} |",
        "| --- " * (len(rows[0]["filters"]) + 1) + "|",
    ]
    for each in epochs:
        mine = [row for row in rows if row["epochs"] == each]
        ends = [[end["mean"] / start["mean"] for start, end in zip(row["norms"][0], row["norms"][-1], strict=True)] for row in mine]
        small = [[end["small"] for end in row["norms"][-1]] for row in mine]
        left = {n: [[w / d for w, d in zip(row["ways"][n]["filters"], row["filters"], strict=True)] for row in mine] for n in WAYS}
        lines.append(f"| {each}: mean norm, end / start | {over(ends, '.2f')} |")
        lines.append(f"| {each}: norms below half of the mean | {over(small, '.0%')} |")
        lines += [f"| {each}: left by {name} | {over(shares, '.0%')} |" for name, shares in left.items()]
    return "\n".join(lines) + "\n"


def percent(values: list[float]) -> str:
    return f"{fmean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def over(values: list[list[float]], form: str) -> str:
    """Means over seeds, one cell a layer."""
    return " | ".join(format(fmean(column), form) for column in zip(*values, strict=True))


if __name__ == "__main__":
    main()
