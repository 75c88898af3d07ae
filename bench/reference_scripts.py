"""The training scripts of torchvision and timm, as published, and a script with Ultralytics' trainer, as arms of `ltcompile find --train`.

    python bench/reference_scripts.py --vision DIR --timm DIR [--work runs/reference-scripts] [--only NAME]

Each DIR is a checkout or an unpacked source archive of pytorch/vision and pytorch-image-models; copies of their scripts get three lines.
Ultralytics publishes its trainer as a package and no script: where it is installed, examples/detect_ultralytics runs as it is. A script whose
source or package is missing keeps its row. Copies, data and runs are in the work folder, where a stopped command continues; it writes
bench/results/reference-scripts.json and .md. The data are scenes of digits and digits in folders: so few that the metrics mean nothing. What
counts is that every arm trains, and that the script's own checkpoint of the ticket holds the cut network.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from _common import RESULTS, ROOT, finish
from PIL import Image

from ltcompile.core.run_folder import RunFolder
from ltcompile.data import scenes
from ltcompile.paths import write_json, write_text

IMAGES = {"train": 12, "val": 4}
ENLARGED = 5  # pixels of a side for each pixel of a scene
CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21)  # of COCO, for the ten digits: those that the segmentation script takes
IMPORT = {"import torch": "import ltcompile as lt"}
DETECTION = {
    **IMPORT,
    "model.to(device)": "model = lt.attach(model)",
    "total_time = time.time() - start_time": (
        'lt.report_metric(evaluate(model, data_loader_test, device=device).coco_eval["bbox"].stats[0])'
    ),
}
SEGMENTATION = DETECTION | {"total_time = time.time() - start_time": "lt.report_metric(confmat.compute()[2].nanmean().item())"}
TIMM = {
    **IMPORT,
    "model.to(device=device, dtype=model_dtype)": "model = lt.attach(model)",
    "if best_metric is not None:": "lt.report_metric(eval_metrics[eval_metric])",
}


@dataclass(frozen=True)
class Script:
    """A script of a project: `added` maps a line of it to the one that is inserted before it; empty where it has the lines already."""

    project: str
    path: str
    added: Mapping[str, str]
    arguments: str
    metric: str
    example: str


VISION = "--data-path {data}/coco --device cpu --workers 0 --epochs {{epochs}} --output-dir {{folder}}"
DETECTOR = f"{VISION} --batch-size 4 --lr 0.001 --aspect-ratio-group-factor -1"
SCRIPTS = {
    "detection, SSDlite": Script(
        "vision", "references/detection/train.py", DETECTION, f"{DETECTOR} --model ssdlite320_mobilenet_v3_large", "mAP", "1x3x320x320"
    ),
    "detection, Faster R-CNN": Script(
        "vision", "references/detection/train.py", DETECTION, f"{DETECTOR} --model fasterrcnn_mobilenet_v3_large_320_fpn", "mAP", "1x3x320x320"
    ),
    "segmentation, LR-ASPP": Script(
        "vision", "references/segmentation/train.py", SEGMENTATION, f"{VISION} --batch-size 4 --model lraspp_mobilenet_v3_large", "mIoU",
        "1x3x320x320",
    ),
    "timm, ResNet-18": Script(
        "timm", "train.py", TIMM,
        "--data-dir {data}/digits --model resnet18 --num-classes 10 --img-size 32 --batch-size 16 --workers 0 --device cpu --seed {{seed}} "
        "--epochs {{epochs}} --warmup-epochs 0 --cooldown-epochs 0 --output {{folder}}",
        "top1", "1x3x32x32",
    ),
    "Ultralytics, YOLOv8n": Script(
        "ultralytics", "examples/detect_ultralytics/train.py", {},
        "--data {data}/scenes/data.yaml --seed {{seed}} --epochs {{epochs}} --folder {{folder}}", "mAP", "1x3x64x64",
    ),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--vision", type=Path, help="source of torchvision")
    arguments.add_argument("--timm", type=Path, help="source of timm")
    arguments.add_argument("--work", type=Path, default=Path("runs/reference-scripts"))
    arguments.add_argument("--only", choices=[*SCRIPTS], help="one of the scripts; rows of the others stay")
    given = arguments.parse_args()
    ultralytics = ROOT if importlib.util.find_spec("ultralytics") else None
    sources, work = {"vision": given.vision, "timm": given.timm, "ultralytics": ultralytics}, given.work.resolve()
    if not (work / "data").exists():
        write_coco(work / "data/coco")
        write_folders(work / "data/digits")
        runpy.run_path(str(ROOT / "examples/detect_ultralytics/make_scenes.py"))["write"](work / "data/scenes", **IMAGES)
    for name, script in SCRIPTS.items():
        if given.only not in (None, name):
            continue
        if (source := sources[script.project]) is None:
            print(f"{name}: {script.project} is not here; name its source, or install it", flush=True)
            continue
        write(name, run(script, source, work, name.replace(", ", "-").replace(" ", "-")))


def write(name: str, row: dict[str, Any]) -> None:
    """Add a row to those that are there."""
    path = RESULTS / "reference-scripts.json"
    known = (json.loads(path.read_text())["rows"] if path.exists() else {}) | {name: row}
    rows = {each: known[each] for each in SCRIPTS if each in known}
    write_text(path.with_suffix(".md"), table(rows))
    packages = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    finish("reference-scripts", {"bench": "reference-scripts", "packages": packages, "rows": rows})


def run(script: Script, source: Path, work: Path, name: str) -> dict[str, Any]:
    """Search with a copy of the script that has the lines of ltcompile; what came of it."""
    original = source / script.path
    copy = work / "scripts" / script.project / script.path
    for neighbour in original.parent.glob("*.py"):
        write_text(copy.with_name(neighbour.name), neighbour.read_text())
    write_text(copy, with_lines(original.read_text(), script.added))
    found = RunFolder(work / "runs" / name)
    command = f"{sys.executable} {copy} {script.arguments.format(data=work / 'data')}"
    words = [
        "--metric",
        script.metric,
        "--example",
        script.example,
        "--epochs",
        1,
        "--rounds",
        1,
        "--rate",
        0.3,
        "--margin",
        1,
        "--name",
        name,
    ]
    again = ["--resume"] if found.command.exists() else []
    subprocess.run(
        [sys.executable, "-m", "ltcompile", "find", "--train", command, *map(str, words), *again], cwd=work, check=True, env=environment()
    )
    summary = json.loads(found.own_summary.read_text())
    return {
        "script": script.path,
        "sha256": hashlib.sha256(original.read_bytes()).hexdigest(),
        "version": version(script.project, source),
        "lines_added": len(script.added) or copy.read_text().count("  # +"),
        "arms": [f"{row['arm']}-{row['level']}" for row in summary["rows"]],
        "metrics": [row["val_score"] for row in summary["rows"]],
        "macs_left": next(row["macs"] for row in summary["rows"] if row["arm"] == "ticket") / summary["rows"][0]["macs"],
        "checkpoint_is_cut": checkpoint_shapes(found.path / "seed0/ticket-1") == shapes(torch.load(found.own_weights, weights_only=True)),
    }


def with_lines(text: str, added: Mapping[str, str]) -> str:
    """The script with a line before each line that `added` names, at its indentation. Raises ValueError unless each occurs once."""
    lines = text.splitlines()
    for anchor, line in added.items():
        places = [i for i, each in enumerate(lines) if each.split("#")[0].strip() == anchor]
        if len(places) != 1:
            raise ValueError(f"{anchor!r} occurs {len(places)} times; this version of the script needs other anchors")
        lines.insert(places[0], lines[places[0]][: -len(lines[places[0]].lstrip())] + line)
    return "\n".join(lines) + "\n"


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of the newest checkpoint that the script itself wrote into an arm's folder."""
    newest = max(folder.rglob("*.pt*"), key=lambda path: path.stat().st_mtime)
    saved = torch.load(newest, map_location="cpu", weights_only=False)  # the scripts pickle arguments, and Ultralytics the network
    network = saved.get("model", saved.get("state_dict"))
    return shapes(network.state_dict() if isinstance(network, torch.nn.Module) else network)


def shapes(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def version(project: str, source: Path) -> str:
    """Of the installed package, or what the source says of itself."""
    if project == "ultralytics":
        return importlib.metadata.version(project)
    known = (source / "version.txt", source / "timm/version.py")
    return next((path.read_text().split("=")[-1].strip().strip("'\"") for path in known if path.exists()), "unknown")


def environment() -> dict[str, str]:
    """With this checkout's package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}


def write_coco(folder: Path) -> None:
    """Scenes in the layout of COCO 2017, with rectangles as outlines."""
    for part, count in IMAGES.items():
        drawn, images, objects = scenes.draw(part, count), [], []
        (folder / f"{part}2017").mkdir(parents=True)
        for number, pixels in enumerate(scenes.as_pixels(drawn)[:, 0].numpy(), 1):
            side = ENLARGED * scenes.SIZE
            Image.fromarray(pixels).convert("RGB").resize((side, side)).save(folder / f"{part}2017/{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": side, "height": side})
            for box, label in zip((ENLARGED * drawn.boxes[number - 1]).tolist(), drawn.labels[number - 1].tolist(), strict=True):
                if label >= 0:
                    x0, y0, x1, y1 = box
                    place = {
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    }
                    objects.append({"id": len(objects) + 1, "image_id": number, "category_id": CATEGORIES[label], "iscrowd": 0, **place})
        names = [{"id": category, "name": str(digit)} for digit, category in enumerate(CATEGORIES)]
        write_json(folder / f"annotations/instances_{part}2017.json", {"images": images, "annotations": objects, "categories": names})


def write_folders(folder: Path) -> None:
    """Digits in a folder for each class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for part, first, last in (("train", 0, 64), ("validation", 64, 96)):
        for number in range(first, last):
            (there := folder / part / str(data.target[number])).mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[number] / 16 * 255).astype("uint8")).convert("RGB").resize((32, 32)).save(there / f"{number}.png")


def line(name: str, row: Mapping[str, Any]) -> str:
    outcome = "the cut network" if row["checkpoint_is_cut"] else "another network"
    cells = [name, f"{row['script']} of {row['version']}", row["lines_added"], ", ".join(row["arms"]), f"{row['macs_left']:.2f}", outcome]
    return f"| {' | '.join(map(str, cells))} |"


def table(rows: Mapping[str, Any]) -> str:
    head = ("what", "script", "lines added", "arms trained", "MACs left to the ticket", "the script's own checkpoint of the ticket holds")
    about = (
        "Published scripts, and one with Ultralytics' trainer, under `ltcompile find --train`: one epoch on a few images; made by "
        "`python bench/reference_scripts.py`. The added lines are in that file, or marked in the script."
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(line(name, row) for name, row in rows.items())]
    return "\n".join(["# Reference training scripts", "", about, "", *lines, ""])


if __name__ == "__main__":
    main()
