"""Labelled images that are read one by one: files, members of archives, rows of tables.

Up to `IN_MEMORY_BYTES` of them live in memory as one tensor. More are streamed: read from disk again every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import stream
from ltcompile.core.task import EVERYTHING, Part, Shard
from ltcompile.data._dataset import Dataset, DatasetOptions, describe, fits_in_memory, from_tensors, prescribed, statistics
from ltcompile.data._epochs import black_pixel
from ltcompile.data._files import decoded
from ltcompile.data._read import OnDisk, epoch, read_all
from ltcompile.data._split import stratified

TEST_SHARE = 0.2
DEFAULT_SIZE = 32
Items = tuple[list[Any], Tensor]  # `Item`s and labels (N,)


def from_items(
    name: str, classes: list[str], parts: list[Items], options: DatasetOptions, *, skip: bool, skipped: int = 0, home: str = ""
) -> Dataset:
    """A data set of the training, validation and test images.

    Args:
        skip: leave unreadable images out, with a notice; in a streamed data set the next readable image of the part takes their place.
        skipped: how many images were left out before.
        home: what errors and notices call all of them.

    Raises:
        InvalidData: an image cannot be read, unless `skip`.
    """
    size = options.size(DEFAULT_SIZE, DEFAULT_SIZE)
    read = partial(decoded, size=size, interpolation=options.interpolation)
    labels = [labels for _, labels in parts]
    stored = [OnDisk([(item,) for item in items], read, skip) for items, _ in parts]
    if fits(parts, options):
        there, broken = read_all(stored, home or name)
        train, val, test = ((pixels, each[rows]) for (rows, (pixels,)), each in zip(there, labels, strict=True))
        return from_tensors(name, classes, train, test, options, val=val, image_size=size, flip=True).without(skipped + broken)
    if not _mixed(stored[0].shards, labels[0]):
        notify(f"the shards of {name} hold few classes each, and are read row by row; shuffle them, and each will be read as a whole")
        stored[0].shards = None
    mean, std = prescribed(name, 3, options.preprocessing) or statistics(stored[0].sample(2000)[0])
    splits = [StreamedSplit(images, each, mean, std) for images, each in zip(stored, labels, strict=True)]
    return Dataset(describe(name, classes, (3, *size), mean, std, options), splits[0], splits[1], splits[2], flip=True).without(skipped)


def fits(parts: list[Items], options: DatasetOptions) -> bool:
    """Whether the pixels of all images fit in memory."""
    return fits_in_memory(sum(len(items) for items, _ in parts), 3, options.size(DEFAULT_SIZE, DEFAULT_SIZE))


def _mixed(shards: Tensor | None, labels: Tensor) -> bool:
    """Whether shards hold about as many classes as a random draw of their images would."""
    if shards is None:
        return True
    there = torch.stack([shards, labels]).unique(dim=1).shape[1]
    return bool(4 * there >= shards.bincount().clamp(max=len(labels.unique())).sum())


def all_parts(found: Mapping[Part, Items], options: DatasetOptions) -> list[Items]:
    """Training, validation and test images; parts that are not `found` are drawn from the training images by a fixed seed, class by class."""
    train = found["train"]
    if (test := found.get("test")) is None:
        rows, rest = stratified(train[1], (TEST_SHARE,), stream("test split", options.seed))
        train, test = take(train, rest), take(train, rows)
    if (val := found.get("val")) is None:
        rows, rest = stratified(train[1], (options.val_share,), stream("validation split", options.seed))
        train, val = take(train, rest), take(train, rows)
    return [train, val, test]


def take(items: Items, rows: Tensor) -> Items:
    return [items[0][i] for i in rows.tolist()], items[1][rows]


class StreamedSplit:
    """Images that do not fit in memory: decoded by worker processes, augmented on the device. `skipped` counts those that could not be read."""

    def __init__(self, images: OnDisk, labels: Tensor, mean: Tensor, std: Tensor) -> None:
        self.images, self.labels = images, labels
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def skipped(self) -> int:
        return self.images.skipped

    def relabelled(self, labels: Tensor) -> StreamedSplit:
        return StreamedSplit(self.images, labels, self._mean, self._std)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std, black = self._mean.to(device), self._std.to(device), black_pixel(self._mean, self._std)
        for rows, moves, (pixels,) in epoch(self.images, size, device, recipe, seed, shard):
            images = (pixels.float() / 255 - mean) / std
            yield moves.of_images(images, black) if moves else images, self.labels[rows].to(device)
