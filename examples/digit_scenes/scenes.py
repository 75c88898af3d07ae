"""Scenes of real handwritten digits on a noisy background, with boxes and masks: data for segmentation and detection, without a download.

The digits are scikit-learn's. A scene holds two to four of them, each 14 to 26 pixels large, in boxes that do not overlap. The parts "train",
"val" and "test" use different digits, and any number of scenes can be drawn from each:

    drawn = scenes("val", 256)          # images (256, 1, 64, 64), masks (256, 64, 64), boxes (256, 4, 4), labels (256, 4)

Run as a script, it writes a picture of some: python scenes.py scenes.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Part = Literal["train", "val", "test"]
SIZE, CLASSES, MOST = 64, 10, 4  # pixels of a side, digits, digits in a scene at most
SMALLEST, LARGEST = 14, 26  # pixels of a digit's side
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # of the digits, after one shuffle


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


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All digits (1797, 8, 8) in 0 to 1 and their labels (1797,), shuffled."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def scenes(part: Part, count: int, seed: int = 0) -> Scenes:
    """`count` scenes of the digits of `part`; the same for the same seed."""
    digits, classes = _digits()
    first, last = (round(share * len(digits)) for share in SHARES[part])
    rng = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    images = 0.15 * torch.randn(count, 1, SIZE, SIZE, generator=rng)
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


if __name__ == "__main__":
    from torchvision.utils import save_image

    save_image(scenes("train", 32).images.clamp(0, 1), sys.argv[1] if len(sys.argv) > 1 else "scenes.png", nrow=8)
