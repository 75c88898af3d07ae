"""Labelled images that are read one by one: files, members of archives, rows of tables.

Up to `IN_MEMORY_BYTES` of them live in memory as one tensor. More are streamed: a DataLoader's workers decode them again every epoch, in an order and
with moves that are drawn in the main process, so that workers decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ltcompile import ranks
from ltcompile.core.notice import notify
from ltcompile.core.preprocessing import Interpolation
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import EVERYTHING, Part, Shard
from ltcompile.data._dataset import (
    IN_MEMORY_BYTES,
    Dataset,
    DatasetOptions,
    black_pixel,
    describe,
    epoch_rows,
    from_tensors,
    prescribed,
    statistics,
)
from ltcompile.data._files import Item, decode, decode_all
from ltcompile.data._split import stratified
from ltcompile.errors import InvalidData

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
    if not fits(parts, options):
        found = _streamed(name, classes, parts, size, options, skip)
    else:
        (train, val, test), broken = _readable(home or name, parts, size, options.interpolation, skip)
        found = from_tensors(name, classes, train, test, options, val=val, image_size=size, flip=True)
        skipped += broken
    return replace(found, description=replace(found.description, skipped=skipped))


def fits(parts: list[Items], options: DatasetOptions) -> bool:
    """Whether the pixels of all images fit in memory."""
    height, width = options.size(DEFAULT_SIZE, DEFAULT_SIZE)
    return sum(len(items) for items, _ in parts) * 3 * height * width <= IN_MEMORY_BYTES


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


def _readable(
    home: str, parts: list[Items], size: tuple[int, int], interpolation: Interpolation, skip: bool
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Pixels (N, 3, height, width) and labels (N,) of every part, without the images that cannot be read, and how many those are."""
    read: list[tuple[Tensor, Tensor]] = []
    broken: list[Item] = []
    reasons: list[InvalidData] = []
    for items, labels in parts:
        pixels = decode_all(items, size, interpolation)
        broken += [item for item, p in zip(items, pixels, strict=True) if isinstance(p, InvalidData)]
        reasons += [p for p in pixels if isinstance(p, InvalidData)]
        good = [p for p in pixels if isinstance(p, Tensor)]
        kept = torch.tensor([isinstance(p, Tensor) for p in pixels], dtype=torch.bool)
        read.append((torch.stack(good) if good else torch.empty(0, 3, *size, dtype=torch.uint8), labels[kept]))
    if broken:
        count = sum(len(items) for items, _ in parts)
        names = ", ".join(str(item).removeprefix(f"{home}/") for item in broken[:5])
        problem = f"{len(broken)} of {count} images in {home} cannot be read: {names}{', ...' if len(broken) > 5 else ''}"
        if not skip:
            raise InvalidData(f"{problem}; {reasons[0]}, or pass skip_damaged=True or leave strict= out to skip such images")
        notify(f"{problem}; skipped")
    return read, len(broken)


class _Pixels(torch.utils.data.Dataset[tuple[Tensor, int, bool]]):
    """Pixels, label, and whether another image had to take its place."""

    def __init__(self, items: Items, size: tuple[int, int], interpolation: Interpolation, skip: bool) -> None:
        self.items, self.size, self.interpolation, self.skip = items, size, interpolation, skip

    def __len__(self) -> int:
        return len(self.items[0])

    def __getitem__(self, i: int) -> tuple[Tensor, int, bool]:
        for after in range(len(self)):
            row = (i + after) % len(self)
            try:
                return decode(self.items[0][row], self.size, self.interpolation), int(self.items[1][row]), after > 0
            except InvalidData:
                if not self.skip:
                    raise
        raise InvalidData(f"no image of {len(self)} can be read")


class StreamedSplit:
    """Images that do not fit in memory: decoded by worker processes, augmented on the device. `skipped` counts those that could not be read."""

    def __init__(
        self, items: Items, size: tuple[int, int], interpolation: Interpolation, mean: Tensor, std: Tensor, skip: bool = False
    ) -> None:
        self._pixels, self._labels, self.skipped = _Pixels(items, size, interpolation, skip), items[1], 0
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def images(self) -> list[Item]:
        return self._pixels.items[0]

    def relabelled(self, labels: Tensor) -> StreamedSplit:
        pixels = self._pixels
        return StreamedSplit((pixels.items[0], labels), pixels.size, pixels.interpolation, self._mean, self._std, pixels.skip)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Tensor]]:
        rng = generator(seed)
        torch.empty((), dtype=torch.int64).random_(generator=rng)  # as a DataLoader that shuffles draws first, for its workers
        found = list(epoch_rows(len(self), size, recipe, seed, shard, rng))
        loader: Any = torch.utils.data.DataLoader(
            self._pixels,
            batch_sampler=[rows.tolist() for rows, _ in found],
            generator=generator(seed),
            num_workers=max(1, ranks.processors() * ranks.world() // shard.count),
            pin_memory=device.type == "cuda",
        )
        mean, std, black = self._mean.to(device), self._std.to(device), black_pixel(self._mean, self._std)
        for (pixels, labels, replaced), (_, moves) in zip(loader, found, strict=True):
            self.skipped += int(replaced.sum())
            images = (pixels.to(device).float() / 255 - mean) / std
            yield moves.of_images(images, black) if moves else images, labels.to(device)


def _streamed(name: str, classes: list[str], parts: list[Items], size: tuple[int, int], options: DatasetOptions, skip: bool) -> Dataset:
    mean, std = prescribed(name, 3, options.preprocessing) or statistics(_sample(parts[0][0], size, options.interpolation, skip))
    description = describe(name, classes, (3, *size), mean, std, options)
    train, val, test = (StreamedSplit(items, size, options.interpolation, mean, std, skip) for items in parts)
    return Dataset(description, train, val, test, flip=True)


def _sample(items: list[Item], size: tuple[int, int], interpolation: Interpolation, skip: bool) -> Tensor:
    """At most 2000 images (N, 3, height, width), evenly spread. Raises InvalidData."""
    rows = torch.linspace(0, len(items) - 1, min(2000, len(items))).long().tolist()
    pixels = decode_all([items[i] for i in rows], size, interpolation)
    good = [p for p in pixels if isinstance(p, Tensor)]
    if not good or (len(good) < len(pixels) and not skip):
        raise next(p for p in pixels if isinstance(p, InvalidData))
    return torch.stack(good)
