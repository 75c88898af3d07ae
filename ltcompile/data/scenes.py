"""Scenes of real handwritten digits on a noisy background, with boxes and maps of classes: data for detection and segmentation, embedded.

The digits are scikit-learn's, as in `digits`. A scene of 64x64 pixels holds two to four of them, each 14 to 26 pixels large, in boxes that do not
overlap. The parts use different digits. The images are grey, in three equal channels, as networks for photographs take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.core.task import Part
from ltcompile.data._annotated import Objects, from_annotated
from ltcompile.data._dataset import Dataset, DatasetOptions
from ltcompile.errors import InvalidData

SIZE, CLASSES, MOST = 64, 10, 4  # pixels of a side, digits, digits in a scene at most
SMALLEST, LARGEST = 14, 26  # pixels of a digit's side
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the digits, after one shuffle
COUNTS: dict[Part, int] = {"train": 1200, "val": 200, "test": 200}


@dataclass(frozen=True)
class Scenes:
    """N scenes: `images` (N, 1, 64, 64) near 0 to 1; `masks` (N, 64, 64), 0 for background and 1 + digit; `boxes` (N, 4, 4) as x0, y0, x1, y1
    in pixels; `labels` (N, 4), the digit of each box or -1 where there is none.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def load(root: Path, options: DatasetOptions) -> Dataset:
    if (size := options.size(SIZE, SIZE)) != (SIZE, SIZE):
        raise InvalidData(f"scenes are {SIZE}x{SIZE} pixels, not {size[0]}x{size[1]}; leave the image size out")
    return dataset(COUNTS, options)


def dataset(counts: Mapping[Part, int], options: DatasetOptions) -> Dataset:
    """So many scenes of each part."""
    parts = {part: draw(part, count) for part, count in counts.items()}
    return from_annotated(
        "scenes",
        [str(digit) for digit in range(CLASSES)],
        {part: (as_pixels(drawn).expand(-1, 3, -1, -1), _objects(drawn)) for part, drawn in parts.items()},
        options,
        masks={part: drawn.masks.to(torch.uint8) for part, drawn in parts.items()},
        flip=False,
    )


def as_pixels(drawn: Scenes) -> Tensor:
    """The images as uint8 (N, 1, 64, 64)."""
    return (drawn.images / 2 + 0.25).clamp(0, 1).mul(255).round().to(torch.uint8)


def _objects(drawn: Scenes) -> list[Objects]:
    return [Objects(boxes[labels >= 0], labels[labels >= 0]) for boxes, labels in zip(drawn.boxes, drawn.labels, strict=True)]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All digits (1797, 8, 8) in 0 to 1 and their labels (1797,), shuffled."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


@lru_cache(4)
def draw(part: Part, count: int, noise: float = 0.15, seed: int = 0) -> Scenes:
    """`count` scenes of the digits of `part`, the same for the same seed, on a background of noise of that deviation."""
    digits, classes = _digits()
    first, last = (round(share * len(digits)) for share in SHARES[part])
    rng = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    images = noise * torch.randn(count, 1, SIZE, SIZE, generator=rng)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    boxes, labels = torch.zeros(count, MOST, 4), torch.full((count, MOST), -1)
    for scene in range(count):
        taken = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for slot in range(between(2, MOST)):
            chosen, side = between(first, last - 1), between(SMALLEST, LARGEST)
            for _ in range(20):  # places that are tried
                x, y = between(0, SIZE - side), between(0, SIZE - side)
                if not taken[y : y + side, x : x + side].any():
                    break
            else:
                continue
            taken[y : y + side, x : x + side] = True
            drawn = F.interpolate(digits[chosen][None, None], size=(side, side), mode="bilinear")[0, 0]
            images[scene, 0, y : y + side, x : x + side] += drawn
            masks[scene, y : y + side, x : x + side][drawn > 0.4] = 1 + classes[chosen]
            boxes[scene, slot], labels[scene, slot] = torch.tensor([x, y, x + side, y + side]), classes[chosen]
    return Scenes(images, masks, boxes, labels)
