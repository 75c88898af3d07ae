"""Images with objects in them: boxes with classes and, where they are known, a map of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Part, Shard
from ltcompile.data._dataset import Dataset, DatasetOptions, describe, fits_in_memory, prescribed, statistics
from ltcompile.data._epochs import Moves, black_pixel
from ltcompile.data._files import Item, decoded
from ltcompile.data._read import OnDisk, epoch, read_all

Targets = dict[str, Any]  # "boxes": a list of (K, 4), "labels": a list of (K,); where there are maps, "masks": (N, H, W)


@dataclass(frozen=True)
class Objects:
    """What is in one image: `boxes` (K, 4) float as x0, y0, x1, y1 in pixels, `labels` (K,) from 0 on."""

    boxes: Tensor
    labels: Tensor


def stretched(boxes: Any, labels: Sequence[int], before: tuple[int, int], after: tuple[int, int]) -> Objects:
    """The objects of an image of size `before` (height, width) that is stretched to `after`, where boxes are x, y, width, height in pixels of
    the image; without boxes that are empty then.
    """
    found = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
    (height, width), (wanted_height, wanted_width) = before, after
    scale, limits = torch.tensor([wanted_width / width, wanted_height / height]), torch.tensor([wanted_width, wanted_height])
    corners = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1) * scale.repeat(2)
    corners = corners.clamp(torch.zeros(4), limits.repeat(2))
    solid = (corners[:, 2:] > corners[:, :2]).all(1)
    return Objects(corners[solid], torch.tensor(labels, dtype=torch.long)[solid])


class AnnotatedSplit:
    """Some images with their objects.

    Args:
        images: uint8 (N, C, H, W), or how to read them.
        objects: of each image, in pixels of these images.
        masks: uint8 (N, H, W): 0 for background, 1 + class elsewhere. None where only boxes are known.
        mean, std: of each channel.
    """

    def __init__(self, images: Tensor | OnDisk, objects: Sequence[Objects], masks: Tensor | None, mean: Tensor, std: Tensor) -> None:
        self.images, self.objects, self.masks = images, objects, masks
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def labels(self) -> Tensor:
        """The classes of all objects: (objects,)."""
        return torch.cat([torch.zeros(0, dtype=torch.long), *(objects.labels for objects in self.objects)])

    @property
    def skipped(self) -> int:
        return self.images.skipped if isinstance(self.images, OnDisk) else 0

    def part(self, rows: Tensor) -> AnnotatedSplit:
        """The images of these rows."""
        images = self.images.part(rows) if isinstance(self.images, OnDisk) else self.images[rows]
        masks = None if self.masks is None else self.masks[rows]
        return AnnotatedSplit(images, [self.objects[i] for i in rows], masks, self._mean, self._std)

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Targets]]:
        """Normalised images (N, C, H, W) and `Targets`, on `device`.

        With a recipe: shuffled by `seed`, mirrored and shifted with their boxes and maps, whole batches only. Without: in order, all images.
        """
        mean, std, source = self._mean.to(device), self._std.to(device), self.images if isinstance(self.images, OnDisk) else [self.images]
        for rows, moves, (pixels,) in epoch(source, size, device, recipe, seed, shard):
            images = (pixels.to(torch.get_default_dtype()) / 255 - mean) / std
            found = [self.objects[i] for i in rows]
            targets: Targets = {"boxes": [o.boxes.to(device) for o in found], "labels": [o.labels.to(device) for o in found]}
            if self.masks is not None:
                targets["masks"] = self.masks[rows].to(device).long()
            if moves is not None:
                images, targets = _moved(images, targets, moves, black_pixel(self._mean, self._std))
            yield images.contiguous(memory_format=torch.channels_last), targets


def from_files(
    name: str, class_names: list[str], parts: Mapping[Part, Sequence[tuple[Item, Objects]]], size: tuple[int, int], options: DatasetOptions
) -> Dataset:
    """A data set of images that are stretched to `size` (height, width), in memory where they fit. Raises InvalidData."""
    read = partial(decoded, size=size, interpolation=options.interpolation, stretch=True)
    stored = [OnDisk([(item,) for item, _ in found], read, options.skip_damaged) for found in parts.values()]
    objects = [[there for _, there in found] for found in parts.values()]
    if not fits_in_memory(sum(map(len, stored)), 3, size):
        return from_annotated(name, class_names, dict(zip(parts, zip(stored, objects, strict=True), strict=True)), options, flip=True)
    there, broken = read_all(stored, name)
    found = {part: (pixels, [each[row] for row in rows]) for part, (rows, (pixels,)), each in zip(parts, there, objects, strict=True)}
    return from_annotated(name, class_names, found, options, flip=True).without(broken)


def from_annotated(
    name: str,
    class_names: list[str],
    parts: Mapping[Part, tuple[Tensor | OnDisk, Sequence[Objects]]],
    options: DatasetOptions,
    *,
    masks: Mapping[Part, Tensor] | None = None,
    flip: bool,
) -> Dataset:
    """A data set of the images of each part and what is in them; they have their size, and are normalised by the training images."""
    images = parts["train"][0]
    sample = images if isinstance(images, Tensor) else images.sample(500)[0]
    mean, std = prescribed(name, sample.shape[1], options.preprocessing) or statistics(sample)
    shape = sample.shape[1], sample.shape[2], sample.shape[3]
    description = describe(name, class_names, shape, mean, std, options, task="detection")
    splits: dict[Part, Any] = {
        part: AnnotatedSplit(there, objects, masks[part] if masks else None, mean, std) for part, (there, objects) in parts.items()
    }
    kinds = ("boxes", "masks") if masks else ("boxes",)
    small = len(splits["train"]) < 5000
    return Dataset(description, splits["train"], splits["val"], splits["test"], flip=flip, small=small, annotations=kinds)


def _moved(images: Tensor, targets: Targets, moves: Moves, black: Tensor) -> tuple[Tensor, Targets]:
    """Images, boxes and maps, moved together; a box goes where less than a quarter of it is still to be seen."""
    height, width = images.shape[-2:]
    boxes, labels = [], []
    for i, (before, classes) in enumerate(zip(targets["boxes"], targets["labels"], strict=True)):
        after = moves.of_boxes(before, i, height, width)
        seen = _area(after) >= _area(before) / 4
        boxes.append(after[seen])
        labels.append(classes[seen])
    found: Targets = {"boxes": boxes, "labels": labels}
    if "masks" in targets:
        found["masks"] = moves.of_images(targets["masks"][:, None], torch.zeros(1))[:, 0]
    return moves.of_images(images, black), found


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
