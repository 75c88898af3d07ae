"""Images with an answer for every pixel: a map of classes, or another image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Part, Shard
from ltcompile.data._dataset import Dataset, DatasetOptions, describe, prescribed, statistics
from ltcompile.data._epochs import Moves, black_pixel
from ltcompile.data._read import OnDisk, epoch
from ltcompile.errors import InvalidData

IGNORED = 255  # in a map: a pixel without a class
Kind = Literal["masks", "images"]


class PairSplit:
    """Some images with what belongs to them.

    Args:
        pairs: uint8 images (N, C, H, W) and their targets, uint8 maps of classes (N, H, W) or images (N, K, H, W); or how to read them.
        kind: of the targets.
        mean, std: of each channel of the images.
    """

    def __init__(self, pairs: tuple[Tensor, Tensor] | OnDisk, kind: Kind, mean: Tensor, std: Tensor) -> None:
        self.pairs, self.kind = pairs, kind
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.pairs) if isinstance(self.pairs, OnDisk) else len(self.pairs[0])

    @property
    def images(self) -> Tensor | OnDisk:
        """uint8 (N, C, H, W); or how to read them, and the targets."""
        return self.pairs if isinstance(self.pairs, OnDisk) else self.pairs[0]

    @property
    def labels(self) -> Tensor:
        """The targets in memory as bytes, for what compares data: (N, bytes of an image)."""
        return torch.empty(len(self), 0, dtype=torch.uint8) if isinstance(self.pairs, OnDisk) else self.pairs[1].flatten(1)

    @property
    def skipped(self) -> int:
        return self.pairs.skipped if isinstance(self.pairs, OnDisk) else 0

    def part(self, rows: Tensor) -> PairSplit:
        """The pairs of these rows."""
        pairs = self.pairs.part(rows) if isinstance(self.pairs, OnDisk) else (self.pairs[0][rows], self.pairs[1][rows])
        return PairSplit(pairs, self.kind, self._mean, self._std)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Normalised images (N, C, H, W) on `device`, with "masks" (N, H, W) of classes, or "images" (N, K, H, W) in 0 to 1.

        With a recipe: shuffled by `seed`, mirrored and shifted together, whole batches only. What is shifted in from outside is black in both, and
        in a map of no class. Without: in order, all pairs.
        """
        dtype, mean, std = torch.get_default_dtype(), self._mean.to(device), self._std.to(device)
        for _, moves, (pixels, targets) in epoch(self.pairs, size, device, recipe, seed, shard):
            images = (pixels.to(dtype) / 255 - mean) / std
            if moves is not None:
                images = moves.of_images(images, black_pixel(self._mean, self._std))
            yield images.contiguous(memory_format=torch.channels_last), {self.kind: self._answers(targets, moves)}

    def _answers(self, targets: Tensor, moves: Moves | None) -> Tensor:
        """Classes, or images in 0 to 1, moved."""
        if self.kind == "masks":
            return (targets if moves is None else moves.of_images(targets[:, None], torch.tensor([IGNORED]))[:, 0]).long()
        moved = targets if moves is None else moves.of_images(targets, torch.zeros(targets.shape[1]))
        return moved.to(torch.get_default_dtype()) / 255


def from_pairs(
    name: str, class_names: list[str], parts: Mapping[Part, tuple[Tensor, Tensor] | OnDisk], options: DatasetOptions, *, flip: bool
) -> Dataset:
    """A data set of the images (N, C, H, W) and targets of each part, normalised by the training images; of maps, or of images without classes."""
    train = parts["train"]
    for part in ("train", "val", "test"):
        there = parts[part]  # type: ignore[index]
        if not len(there if isinstance(there, OnDisk) else there[0]):
            raise InvalidData(f"{name}: the {part} part has no image")
    images, targets = train.sample(500) if isinstance(train, OnDisk) else train
    mean, std = prescribed(name, images.shape[1], options.preprocessing) or statistics(images)
    kind: Kind = "masks" if targets.dim() == 3 else "images"
    shape = images.shape[1], images.shape[2], images.shape[3]
    task, channels = ("segmentation", 0) if kind == "masks" else ("image-to-image", targets.shape[1])
    description = describe(name, class_names, shape, mean, std, options, task=task, out_channels=channels)
    splits: dict[Part, Any] = {part: PairSplit(pairs, kind, mean, std) for part, pairs in parts.items()}
    small = len(splits["train"]) < 5000
    return Dataset(description, splits["train"], splits["val"], splits["test"], flip=flip, small=small, annotations=(kind,))
