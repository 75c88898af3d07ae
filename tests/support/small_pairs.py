"""Scenes of digits of 32x32 pixels, with their maps of classes or without their noise; and such pairs as files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from ltcompile.core.task import Part
from ltcompile.data import Dataset, DatasetOptions, scenes
from ltcompile.data._pairs import from_pairs

PARTS: tuple[Part, ...] = ("train", "val", "test")
OPTIONS = DatasetOptions(None, 0.1, 0)


@cache
def small_pairs(kind: str, training: int = 64, others: int = 16, size: int = 32) -> Dataset:
    """A data set of "masks" or "images", with so many in each part."""
    names = ["background", *map(str, range(scenes.CLASSES))] if kind == "masks" else []
    parts = {}
    for part, count in zip(PARTS, (training, others, others), strict=True):
        noisy, clean = (scenes.draw(part, count, noise=noise) for noise in (0.15, 0.0))
        targets = noisy.masks.to(torch.uint8) if kind == "masks" else scenes.as_pixels(clean)
        parts[part] = tuple(x[..., :size, :size].contiguous() for x in (scenes.as_pixels(noisy), targets))
    return from_pairs("small scenes", names, parts, OPTIONS, flip=False)


def write_pairs(folder: Path, kind: str, count: int = 12, size: int = 16) -> None:
    """Files in `folder`/images and masks, or input and target."""
    drawn = scenes.draw("val", count)
    images, masks = (x[..., :size, :size] for x in (scenes.as_pixels(drawn), drawn.masks.to(torch.uint8)[:, None].clamp_max(2)))
    for name, pixels in zip(
        ("images", "masks") if kind == "masks" else ("input", "target"), (images, masks if kind == "masks" else images), strict=True
    ):
        (folder / name).mkdir(parents=True)
        for i, one in enumerate(pixels):
            to_pil_image(one).save(folder / name / f"{i:02}.png")
