"""Recovery without labels at twice the measured speed: VGG-16 on CIFAR-10, and torchvision's ResNet-18 on a folder of images.

    python bench/repair_at_speed.py --data-root DIR --folder RUN --study STUDY   writes bench/results/repair-at-speed.json and repair-at-speed.md

VGG-16 with half of its filters is the dense network of `ltcompile study structured-tickets --scale medium`, in STUDY. ResNet-18 is trained here for
a few epochs on CIFAR-10's images, written as files in RUN and read at 64 pixels; the training is kept in RUN. Each is planned by `l1` for half of its
time in ONNX Runtime, cut, and repaired by 2,048 unlabelled training images: solved by least squares, and refined by 30 passes of gradient descent.
Goal, fixed before the first run: at most 2 points below the dense network. Nothing is chosen, so accuracies are of test images. Times are taken in
turns with the dense network, after planning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import repair
import torch
import torchvision
from _common import RESULTS, finish
from torch import nn

import ltcompile as lt
from ltcompile.benchmark.profiling import stopwatch
from ltcompile.core.arm import Arm
from ltcompile.core.run_folder import RunFolder
from ltcompile.data import Dataset
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.paths import write_json, write_text

ON, SPEEDUP, MOST_POINTS = "cpu:onnxruntime:b8:fp32", 2.0, 2.0
INPUTS, EPOCHS, SIZE = 2048, 4, 64  # the last two of ResNet-18
COLUMNS = ("as cut", "recalibrated", "solved", "refined")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", type=Path, required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument(
        "--folder", type=Path, required=True, help="where the images, the trained ResNet-18 and finished rows are, or will be"
    )
    arguments.add_argument("--study", type=Path, required=True, help="the run folder of the study structured-tickets at scale medium")
    arguments.add_argument("--only", nargs="*", default=[*NETWORKS], help="of these networks")
    options = arguments.parse_args()
    rows = [kept(options, name, NETWORKS[name]) for name in options.only]
    write_text(RESULTS / "repair-at-speed.md", table(rows))
    finish("repair-at-speed", {"on": ON, "wanted_speedup": SPEEDUP, "most_points": MOST_POINTS, "rows": rows})


def kept(options: argparse.Namespace, name: str, opened: Callable[[argparse.Namespace], tuple[nn.Module, Dataset]]) -> dict[str, Any]:
    """A row from the folder, or measured and put there."""
    file: Path = options.folder / f"row-{name.rpartition(':')[2]}.json"
    if not file.exists():
        write_json(file, {"network": name, **measured(*opened(options))})
    row: dict[str, Any] = json.loads(file.read_text())
    print(row, flush=True)
    return row


def vgg(options: argparse.Namespace) -> tuple[nn.Module, Dataset]:
    network = lt.build_model("vgg16-half")
    RunFolder(options.study / "local-weight").load_weights(network, Arm(0, "dense", 0), "trained network")
    return network.eval(), lt.load_data("cifar10", options.data_root, 32)


def resnet(options: argparse.Namespace) -> tuple[nn.Module, Dataset]:
    data = lt.load_data(f"imagefolder:{image_folder(options)}", image_size=SIZE)
    training = argparse.Namespace(model="torchvision:resnet18", epochs=EPOCHS, image_size=SIZE, folder=options.folder)
    return repair.dense_network(training, data, 0), data


def image_folder(options: argparse.Namespace) -> Path:
    """CIFAR-10's images as files, in a folder for each class."""
    folder: Path = options.folder / "cifar10"
    if not (done := folder / "done").exists():
        for split, train in (("train", True), ("test", False)):
            images = torchvision.datasets.CIFAR10(options.data_root, train=train)
            for number, (image, label) in enumerate(images):
                file = folder / split / images.classes[label] / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
        done.touch()
    return folder


def measured(dense: nn.Module, data: Dataset) -> dict[str, Any]:
    """Accuracies, sizes and speedups."""
    images = next(iter(data.train.batches(INPUTS, repair.CPU, None, 0)))[0].split(128)
    timer, profile = stopwatch(dense, ON, data.example, seconds=2.0), lt.profile(dense, ON, example=data.example)
    plan = lt.plan(dense, data.example, target_time=1 / SPEEDUP, profile=profile, measured=timer)
    small = lt.cut(dense, plan).eval()
    recalibrated = lt.cut(dense, plan)
    take_statistics(recalibrated, images)
    networks = {"dense": dense, "as cut": small, "recalibrated": recalibrated}
    for column, passes in (("solved", 0), ("refined", repair.PASSES)):
        networks[column] = lt.repair(small, plan, dense, images, passes=passes)
    return {
        **{column: repair.accuracies(network, data)[1] for column, network in networks.items()},
        "macs_left": lt.size(small, data.example).macs / lt.size(dense, data.example).macs,
        "speedups": [1 / timer(small) for _ in range(3)],
        "threads": torch.get_num_threads(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# Recovery without labels at {SPEEDUP:g} times the speed",
        "",
        f"Planned by `l1` for {ON}, repaired by {INPUTS:,} unlabelled training images, not trained; test accuracy, one network each. Goal: at most "
        f"{MOST_POINTS:g} points below the dense network. Speedups are the lowest and highest of three. Written by `python bench/repair_at_speed.py`.",
        "",
        f"| network | measured speedup | MACs left | {' | '.join(('dense', *COLUMNS))} | solved, refined: points below dense | goal |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        lost = [100 * (row["dense"] - row[column]) for column in ("solved", "refined")]
        cells = [row["network"], f"{min(row['speedups']):.2f} to {max(row['speedups']):.2f}", f"{row['macs_left']:.1%}"]
        cells += [f"{row[column]:.1%}" for column in ("dense", *COLUMNS)]
        cells += [
            ", ".join(f"{points:.1f}" for points in lost),
            ", ".join("holds" if points <= MOST_POINTS else "fails" for points in lost),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


NETWORKS = {"vgg16-half": vgg, "torchvision:resnet18": resnet}

if __name__ == "__main__":
    main()
