"""What every source of images becomes: three splits and a description that travels with tickets and ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.core.description import Description
from ltcompile.core.image_size import height_width, to_text
from ltcompile.core.preprocessing import Interpolation, Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import EVERYTHING, Shard
from ltcompile.data._epochs import black_pixel, epoch_rows
from ltcompile.errors import InvalidData

IN_MEMORY_BYTES = 1 << 30  # of pixels, as uint8
PART_SEED = 0  # of the choice of training images, where not all are used


@dataclass(frozen=True)
class DatasetOptions:
    """The requested options of a data set; without an image size, the preprocessing's counts, and without that the data's own."""

    image_size: tuple[int, int] | None  # (height, width)
    val_share: float
    seed: int
    download: bool = False
    strict: bool = False
    preprocessing: Preprocessing | None = None
    skip_damaged: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The images' (height, width) in pixels, where the data has its own."""
        return self.image_size or (height_width(self.preprocessing.image_size) if self.preprocessing else (height, width))

    @property
    def interpolation(self) -> Interpolation:
        return self.preprocessing.interpolation if self.preprocessing else "bilinear"


class Split(Protocol):
    """Some images with labels, in memory or on disk."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor: ...

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Any]]:
        """Normalised images (N, C, H, W) and their annotations, such as labels (N,), on `device`.

        With a recipe: shuffled by `seed`, augmented, whole batches only. Without: in order, all of them. `shard` is the part that is read.
        """
        ...

    def relabelled(self, labels: Tensor) -> Split:
        """The same images with other labels (N,)."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test images of one source, and how its size changes a network's usual recipe."""

    description: Description
    train: Split
    val: Split
    test: Split
    flip: bool
    small: bool = False  # hundreds of images rather than ten thousands
    annotations: tuple[str, ...] = ("labels",)  # what the splits give with images: labels, or boxes and perhaps masks

    def adapt(self, recipe: Recipe) -> Recipe:
        """`recipe` for this data: no mirrored digits; many small steps where there are few images, the rate scaled with the batch."""
        if not self.small:
            return replace(recipe, flip=self.flip)
        batch = min(32, recipe.batch)
        lr = recipe.lr * batch / recipe.batch  # linear scaling (Goyal et al. 2017)
        crop = min(3, max(1, 3 * self.description.shape[-1] // 32))  # 3 of 32 pixels; the same 3 would hide half of a small digit
        return replace(recipe, flip=self.flip, epochs=12, batch=batch, lr=lr, schedule="cosine", warmup_epochs=1, crop_pixels=crop)

    def with_train_images(self, count: int) -> Dataset:
        """The same with about `count` of its training images, as many of every class, which its name contains; as it is where it has no more.

        Raises InvalidData where they are streamed from disk.
        """
        from ltcompile.data._split import stratified

        if count >= len(self.train):
            return self
        train: Any = self.train
        seed = stream("training images", PART_SEED)
        if "labels" not in self.annotations:
            rows = torch.randperm(len(self.train), generator=generator(seed))[:count].sort().values
        elif isinstance(self.train, TensorSplit):
            rows, _ = stratified(self.train.labels, (count / len(self.train),), seed)
        else:
            raise InvalidData(f"{self.description.name} does not fit in memory: it trains on all of its images; choose other data")
        named = replace(self.description, name=f"{self.description.name}, {len(rows)} training images")
        return replace(self, description=named, train=train.part(rows))

    def check(self) -> None:
        """Raises InvalidData where a split lacks images or a class; of other data, where it lacks images or what is in them."""
        if "labels" not in self.annotations:
            for name, split in (("train", self.train), ("validation", self.val), ("test", self.test)):
                if not len(split) or not len(split.labels):
                    raise InvalidData(
                        f"{self.description.name}: the {name} split has {len(split)} images and no object in them; add some, or take a larger share"
                    )
            return
        for name, split in (("train", self.train), ("validation", self.val), ("test", self.test)):
            missing = set(range(self.description.classes)) - set(split.labels.unique().tolist())
            if missing:
                lacking = ", ".join(self.description.class_names[c] for c in sorted(missing)[:5])
                raise InvalidData(f"{self.description.name}: the {name} split has no image of class {lacking}")

    def without(self, skipped: int) -> Dataset:
        """The same, which says that so many images or shards more were left out."""
        return replace(self, description=replace(self.description, skipped=self.description.skipped + skipped))

    @property
    def example(self) -> Tensor:
        """Two validation images (2, C, H, W), normalised, on the CPU."""
        images, _ = next(iter(self.val.batches(2, torch.device("cpu"), None, 0)))
        return images


class TensorSplit:
    """Images that fit in memory: one uint8 tensor (N, C, H, W) on the device, augmented there batch by batch."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor) -> None:
        self._images, self._labels = images, labels.long()
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W)."""
        return self._images

    def part(self, rows: Tensor) -> TensorSplit:
        """The images of these rows, normalised as all are."""
        return TensorSplit(self._images[rows], self._labels[rows], self._mean, self._std)

    def relabelled(self, labels: Tensor) -> TensorSplit:
        return TensorSplit(self._images, labels, self._mean, self._std)

    def _normalised(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:
            mean, std = self._mean.to(device), self._std.to(device)
            images = (self._images.to(device).to(torch.get_default_dtype()) / 255 - mean) / std
            self._on[device] = images.contiguous(memory_format=torch.channels_last), self._labels.to(device)
        return self._on[device]

    def batches(
        self, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._normalised(device)
        if recipe is None:
            yield from islice(zip(images.split(size), labels.split(size), strict=True), shard.index, None, shard.count)
            return
        black = black_pixel(self._mean, self._std)
        for rows, moves in epoch_rows(len(self), size, recipe, seed, shard):
            there = rows.to(device)
            yield moves.of_images(images[there], black) if moves else images[there], labels[there]


def from_tensors(
    name: str,
    class_names: list[str],
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    options: DatasetOptions,
    *,
    image_size: tuple[int, int],
    val: tuple[Tensor, Tensor] | None = None,
    flip: bool,
) -> Dataset:
    """A data set from uint8 images (N, C, H, W) and labels (N,), resized to `image_size`, split and normalised."""
    from ltcompile.data._split import stratified

    if val is None:
        if not 0 < options.val_share < 1:
            raise InvalidData(f"the validation share must be between 0 and 1, not {options.val_share}")
        val_rows, train_rows = stratified(train[1], (options.val_share,), stream("validation split", options.seed))
        val, train = (train[0][val_rows], train[1][val_rows]), (train[0][train_rows], train[1][train_rows])
    parts = (train, val, test)
    if options.image_size is None:
        _check_memory(name, sum(len(labels) for _, labels in parts), train[0].shape[1], image_size)
    splits = [(_resize(images, image_size, options.interpolation), labels) for images, labels in parts]
    if not len(splits[0][1]):
        raise InvalidData(f"{name}: no image is left to train on")
    channels = train[0].shape[1]
    mean, std = prescribed(name, channels, options.preprocessing) or statistics(splits[0][0])
    description = describe(name, class_names, (channels, *image_size), mean, std, options)
    tensors = [TensorSplit(images, labels, mean, std) for images, labels in splits]
    return Dataset(description, tensors[0], tensors[1], tensors[2], flip=flip, small=len(splits[0][1]) < 5000)


def describe(
    name: str, class_names: list[str], shape: tuple[int, int, int], mean: Tensor, std: Tensor, options: DatasetOptions, **task: Any
) -> Description:
    """The description of images that were prepared by `options`; `task` are the fields of a task other than classification."""
    rounded_mean, rounded_std = (tuple(round(v, 6) for v in values.tolist()) for values in (mean, std))  # 0.485, and not 0.48500001
    return Description(name, tuple(class_names), shape, rounded_mean, rounded_std, options.interpolation, **task)


def prescribed(name: str, channels: int, preprocessing: Preprocessing | None) -> tuple[Tensor, Tensor] | None:
    """The preprocessing's mean and deviation per channel; None where the images' own count. Raises InvalidData."""
    if preprocessing is None:
        return None
    if len(preprocessing.mean) != channels:
        raise InvalidData(f"the weights are for images of {len(preprocessing.mean)} channels, {name} has {channels}; choose other data")
    return torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)


def fits_in_memory(count: int, channels: int, size: tuple[int, int]) -> bool:
    """Whether the pixels of so many images do."""
    return count * channels * size[0] * size[1] <= IN_MEMORY_BYTES


def _check_memory(name: str, count: int, channels: int, size: tuple[int, int]) -> None:
    """Raises InvalidData where the weights' own image size, used by default, would fill the memory."""
    needed = count * channels * size[0] * size[1]
    if needed > IN_MEMORY_BYTES:
        raise InvalidData(
            f"{count} images of {name} at the {to_text(size)} pixels of the weights take {needed / 2**30:.1f} GiB of memory, "
            f"and four times as much in training; pass a smaller image_size= (up to {int((IN_MEMORY_BYTES / count / channels) ** 0.5)} is light)"
        )


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel of pixels scaled to 0..1."""
    pixels = images[:: max(1, len(images) // 10_000)].double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)
    return mean.mul(1e4).round().div(1e4).float(), std.mul(1e4).round().div(1e4).float()


def _resize(images: Tensor, size: tuple[int, int], mode: Interpolation) -> Tensor:
    if images.shape[-2:] == size:
        return images
    shrunk = images.shape[-2] > size[0] or images.shape[-1] > size[1]
    resized = [F.interpolate(part.float(), size, mode=mode, antialias=shrunk) for part in images.split(4096)]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)
