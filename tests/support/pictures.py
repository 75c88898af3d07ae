"""Image folders and MNIST's files, of random pixels."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_folder(root: Path, classes: int = 3, each: int = 12, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(root / f"class{c}" / f"{i}.png")
    return root


def mnist_files(root: Path, images: int = 40) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels, labels = rng.integers(0, 255, (images, 28, 28), dtype=np.uint8), (np.arange(images) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, images, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, images) + labels.tobytes())


def coco_json(images: int, first: int = 0, seed: int = 0) -> dict[str, Any]:
    """Annotations of images of 40x20 pixels: one has no object, one a crowd besides a box, and category 9 has no object anywhere."""
    rng = np.random.default_rng(seed)
    boxes = [[float(rng.integers(0, 20)), float(rng.integers(0, 10)), 16.0, 8.0] for _ in range(1, images)]
    annotations = [
        {"id": i, "image_id": first + i, "category_id": (3, 7)[i % 2], "bbox": box, "iscrowd": 0} for i, box in enumerate(boxes, 1)
    ]
    annotations.append({"id": 100, "image_id": first + 1, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1})
    return {
        "images": [{"id": first + i, "file_name": f"{first + i}.png", "width": 40, "height": 20} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "things"}, {"id": 3, "name": "red"}, {"id": 7, "name": "blue"}],
    }


def write_coco(path: Path, images: Path, value: dict[str, Any]) -> Path:
    """`value` at `path`, and its images, whose boxes are filled with a colour of their category, in the folder `images`."""
    for folder in (path.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    for image in value["images"]:
        pixels = np.full((20, 40, 3), 60, dtype=np.uint8)
        for a in value["annotations"]:
            if a["image_id"] == image["id"] and not a.get("iscrowd"):
                x, y, width, height = map(int, a["bbox"])
                pixels[y : y + height, x : x + width] = (220, 0, 0) if a["category_id"] == 3 else (0, 0, 220)
        Image.fromarray(pixels).save(images / image["file_name"])
    path.write_text(json.dumps(value))
    return path


def write_coco_parts(root: Path, **sizes: int) -> Path:
    """Roboflow's layout: a folder for each part, such as train=8, with its annotations next to the images."""
    for seed, (part, count) in enumerate(sizes.items()):
        write_coco(root / part / "_annotations.coco.json", root / part, coco_json(count, 1000 * seed, seed))
    return root
