"""Images with an answer for every pixel: a map of classes, or another image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Part, Shard
from ltcompile.data._dataset import Dataset, DatasetOptions, black_pixel, describe, epoch_rows, prescribed, statistics
from ltcompile.errors import InvalidData

IGNORED = 255  # in a map: a pixel without a class


class PairSplit:
    """Some images with what belongs to them.

    Args:
        images: uint8 (N, C, H, W).
        targets: uint8 (N, H, W), maps of classes; or (N, K, H, W), images.
        mean, std: of each channel of `images`.
    """

    def __init__(self, images: Tensor, targets: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images, self.targets = images, targets
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """The targets as bytes, for what compares data: (N, bytes of an image)."""
        return self.targets.flatten(1)

    def part(self, rows: Tensor) -> PairSplit:
        """The pairs of these rows."""
        return PairSplit(self.images[rows], self.targets[rows], self._mean, self._std)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Normalised images (N, C, H, W) on `device`, with "masks" (N, H, W) of classes, or "images" (N, K, H, W) in 0 to 1.

        With a recipe: shuffled by `seed`, mirrored and shifted together, whole batches only. What is shifted in from outside is black in both, and
        in a map of no class. Without: in order, all pairs.
        """
        kind, dtype = ("masks" if self.targets.dim() == 3 else "images"), torch.get_default_dtype()
        for rows, moves in epoch_rows(len(self), size, recipe, seed, shard):
            images = (self.images[rows].to(device).to(dtype) / 255 - self._mean.to(device)) / self._std.to(device)
            targets = self.targets[rows].to(device)
            if moves is not None:
                images = moves.of_images(images, black_pixel(self._mean, self._std))
                if kind == "masks":
                    targets = moves.of_images(targets[:, None], torch.tensor([IGNORED]))[:, 0]
                else:
                    targets = moves.of_images(targets, torch.zeros(targets.shape[1]))
            yield (
                images.contiguous(memory_format=torch.channels_last),
                {kind: targets.long() if kind == "masks" else targets.to(dtype) / 255},
            )


def from_pairs(
    name: str, class_names: list[str], parts: Mapping[Part, tuple[Tensor, Tensor]], options: DatasetOptions, *, flip: bool
) -> Dataset:
    """A data set of the images (N, C, H, W) and targets of each part, normalised by the training images; of maps, or of images without classes."""
    for part in ("train", "val", "test"):
        if not len(parts[part][0]):
            raise InvalidData(f"{name}: the {part} part has no image")
    images, targets = parts["train"]
    mean, std = prescribed(name, images.shape[1], options.preprocessing) or statistics(images)
    kind = "masks" if targets.dim() == 3 else "images"
    shape = images.shape[1], images.shape[2], images.shape[3]
    task, channels = ("segmentation", 0) if kind == "masks" else ("image-to-image", targets.shape[1])
    description = describe(name, class_names, shape, mean, std, options, task=task, out_channels=channels)
    splits: dict[Part, Any] = {part: PairSplit(*pair, mean, std) for part, pair in parts.items()}
    small = len(splits["train"]) < 5000
    return Dataset(description, splits["train"], splits["val"], splits["test"], flip=flip, small=small, annotations=(kind,))
