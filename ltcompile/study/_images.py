"""Data without what a study examines: pixels without neighbours, labels that say nothing of their images.

A change is the same for all seeds, and has its name in the data's, so that a run with other images is not resumed by mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import EVERYTHING, Shard
from ltcompile.data import Dataset, Description, Split

SEED = 20210427


@dataclass(frozen=True)
class Moved:
    """A split whose images show at pixel p, counted row by row, what the original shows at `source[p]`, in every channel."""

    original: Split
    source: Tensor  # (H * W,)

    def __len__(self) -> int:
        return len(self.original)

    @property
    def labels(self) -> Tensor:
        return self.original.labels

    def relabelled(self, labels: Tensor) -> Moved:
        return Moved(self.original.relabelled(labels), self.source)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The original's batches; augmented ones were whole when they were."""
        source = self.source.to(device)
        for images, labels in self.original.batches(size, device, recipe, seed, shard):
            yield images.flatten(2)[:, :, source].view_as(images).contiguous(memory_format=torch.channels_last), labels


def shuffled_pixels(data: Dataset) -> Dataset:
    """All images with their pixels moved by one permutation: the information of each pixel stays, that of its place is lost."""
    _, height, width = data.description.shape
    source = pixel_order(height * width)
    train, val, test = (Moved(split, source) for split in (data.train, data.val, data.test))
    return replace(data, description=_named(data, "pixels shuffled"), train=train, val=val, test=test)


def pixel_order(pixels: int) -> Tensor:
    """The permutation (pixels,) of `shuffled_pixels`: the pixel that is shown at each place."""
    return torch.randperm(pixels, generator=generator(stream("shuffled data", SEED, arm="pixels")))


def shuffled_labels(data: Dataset) -> Dataset:
    """Each training image with the label of another: as many of every class, and nothing to learn but by heart."""
    labels = data.train.labels
    order = torch.randperm(len(labels), generator=generator(stream("shuffled data", SEED, arm="labels")))
    return replace(data, description=_named(data, "labels shuffled"), train=data.train.relabelled(labels[order]))


def _named(data: Dataset, change: str) -> Description:
    return replace(data.description, name=f"{data.description.name}, {change}")
