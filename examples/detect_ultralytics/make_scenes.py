"""Scenes of handwritten digits in the layout that Ultralytics reads: images, labels, and data.yaml.

python make_scenes.py FOLDER [TRAIN VAL]    so many images of each part, 200 and 50 unless given
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ltcompile.data.scenes import CLASSES, SIZE, as_pixels, draw


def write(folder: Path, train: int = 200, val: int = 50) -> Path:
    """Write the images as PNG, a line `class x y width height` in shares of the image for each digit, and data.yaml, whose path it returns."""
    for part, count in (("train", train), ("val", val)):
        drawn = draw(part, count)
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for number, (pixels, boxes, labels) in enumerate(zip(as_pixels(drawn)[:, 0].numpy(), drawn.boxes, drawn.labels, strict=True)):
            Image.fromarray(pixels).convert("RGB").save(folder / f"images/{part}/{number}.png")
            centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2 / SIZE, (boxes[:, 2:] - boxes[:, :2]) / SIZE
            lines = [
                f"{label} {x} {y} {w} {h}" for label, (x, y), (w, h) in zip(labels.tolist(), centres, sides, strict=True) if label >= 0
            ]
            (folder / f"labels/{part}/{number}.txt").write_text("\n".join(lines))
    names = "".join(f"  {digit}: digit {digit}\n" for digit in range(CLASSES))
    (data := folder / "data.yaml").write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("train", type=int, nargs="?", default=200, help="number of training images")
    parser.add_argument("val", type=int, nargs="?", default=50, help="number of validation images")
    given = parser.parse_args()
    print(write(given.folder, given.train, given.val))
