"""Depth against widths at equal measured time, repaired without labels or training.

    python bench/depth.py --data-root DIR --folder RUN        writes bench/results/depth.json and depth.md

The dense networks are those of bench/repair.py (kept in RUN). Each is cut by `l1` to the same measured times twice: by channels alone, and with
residual branches that may go too. Both are repaired by the same unlabelled training images. Time is measured in turns with the dense network,
after planning. Accuracies are [validation, test].
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import repair
from _common import RESULTS, finish
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.benchmark.profiling import stopwatch
from ltcompile.core.profile import Profile
from ltcompile.data import Dataset
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.paths import write_text

SPEEDUPS = (1.5, 2.5)
COLUMNS = ("as cut", "recalibrated", "repaired")
ON = "cpu:onnxruntime:b8:fp32"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where the dense networks and finished rows are, or will be")
    arguments.add_argument("--model", default="resnet20")
    arguments.add_argument("--epochs", type=int, default=8)
    arguments.add_argument("--image-size", type=int, default=32)
    arguments.add_argument("--networks", type=int, default=1, help="trainings, of different seeds")
    arguments.add_argument("--inputs", type=int, default=2048, help="unlabelled images")
    options = arguments.parse_args()
    data = lt.load_data("cifar10", options.data_root, options.image_size)
    images = next(iter(data.train.batches(options.inputs, repair.CPU, None, 0)))[0].split(128)
    rows: list[dict[str, Any]] = []
    for seed in range(options.networks):
        dense = repair.dense_network(options, data, seed)
        profile = lt.profile(dense, ON, example=data.example)
        for speedup in SPEEDUPS:
            for name in ("widths", "widths and depth"):
                rows.append(repair.kept(options, seed, speedup, name, partial(measured, dense, data, images, profile, speedup, name)))
    write_text(RESULTS / "depth.md", table(options, rows))
    print(table(options, rows))
    finish("depth", {"settings": repair.settings(options), "on": ON, "rows": rows})


def measured(dense: nn.Module, data: Dataset, images: tuple[Tensor, ...], profile: Profile, speedup: float, name: str) -> dict[str, Any]:
    """Accuracies, sizes and times of one cut."""
    began, timer = time.perf_counter(), stopwatch(dense, ON, data.example, seconds=2.0)
    depth = {"depth": True, "inputs": images} if name == "widths and depth" else {}
    plan = lt.plan(dense, data.example, target_time=1 / speedup, profile=profile, measured=timer, **depth)
    small = lt.cut(dense, plan).eval()
    recalibrated = lt.cut(dense, plan)
    take_statistics(recalibrated, images)
    repaired = lt.repair(small, plan, dense, images)
    networks = {"dense": dense, "as cut": small, "recalibrated": recalibrated, "repaired": repaired}
    found: dict[str, Any] = {column: repair.accuracies(network, data) for column, network in networks.items()}
    found |= {"removed": [branch.name for branch in plan.removed_branches], "time_left": [timer(small) for _ in range(3)]}
    return found | {
        "macs_left": lt.size(small, data.example).macs / lt.size(dense, data.example).macs,
        "seconds": time.perf_counter() - began,
    }


def table(options: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Depth against widths, repaired without labels or training",
        "",
        f"{options.networks} {options.model} on CIFAR-10 at {options.image_size} pixels, {options.epochs} epochs; planned for a speedup at {ON}, "
        f"repaired by {options.inputs:,} unlabelled images. Test accuracies are means. Speedups are means, and the lowest and highest of three "
        "measurements a network. Written by `python bench/depth.py`.",
        "",
        f"| wanted | cut | branches removed | {' | '.join(('dense', *COLUMNS))} | MACs left | measured speedup |",
        "| --- " * 9 + "|",
    ]
    for speedup in SPEEDUPS:
        for name in dict.fromkeys(row["criterion"] for row in rows):
            mine = [row for row in rows if (row["macs"], row["criterion"]) == (speedup, name)]
            cells = [f"{fmean(row[column][1] for row in mine):.1%}" for column in ("dense", *COLUMNS)]
            removed = " / ".join(str(len(row["removed"])) for row in mine)
            macs, times = fmean(row["macs_left"] for row in mine), [1 / time for row in mine for time in row["time_left"]]
            faster = f"{fmean(1 / fmean(row['time_left']) for row in mine):.2f} ({min(times):.2f} to {max(times):.2f})"
            lines.append(f"| {speedup:g} | {name} | {removed} | {' | '.join(cells)} | {macs:.1%} | {faster} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
