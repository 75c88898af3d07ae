"""One's own images: PATH/train, PATH/val, PATH/test with a folder per class, or one folder per class, split by seed.

The middle of an image is cut to the shape of `image_size` and resized, so nothing is distorted. Up to
`IN_MEMORY_BYTES` of images live in memory as one tensor, and unreadable ones are skipped with a notice, or refused if `strict`; larger
folders are streamed by torchvision and a DataLoader, decoded again every epoch, and an unreadable image is an error when its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.notice import notify
from ltcompile.core.preprocessing import Interpolation
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.data._dataset import (
    IN_MEMORY_BYTES,
    Dataset,
    DatasetOptions,
    augment,
    black_pixel,
    describe,
    from_tensors,
    prescribed,
    statistics,
)
from ltcompile.data._files import decode, decode_all
from ltcompile.data._split import stratified
from ltcompile.errors import InvalidData

TEST_SHARE = 0.2
DEFAULT_SIZE = 32
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}

Files = tuple[list[Path], Tensor]  # paths and labels (N,)


def load(root: Path, options: DatasetOptions) -> Dataset:
    if not root.is_dir():
        raise InvalidData(f"there is no folder {root}; write imagefolder:PATH with the folder of your images")
    size = options.size(DEFAULT_SIZE, DEFAULT_SIZE)
    classes, *parts = _parts(root, options.val_share, options.seed)
    name = f"imagefolder:{root.name}"
    if sum(len(paths) for paths, _ in parts) * 3 * size[0] * size[1] > IN_MEMORY_BYTES:
        return _streamed(name, classes, parts, size, options)
    train, val, test = _readable(root, parts, size, options)
    return from_tensors(name, classes, train, test, options, val=val, image_size=size, flip=True)


def _readable(root: Path, parts: list[Files], size: tuple[int, int], options: DatasetOptions) -> list[tuple[Tensor, Tensor]]:
    """Pixels (N, 3, height, width) and labels (N,) of every part, without the images that cannot be read. Raises InvalidData if strict."""
    read: list[tuple[Tensor, Tensor]] = []
    broken: list[Path] = []
    for paths, labels in parts:
        pixels = decode_all(paths, size, options.interpolation)
        broken += [path for path, p in zip(paths, pixels, strict=True) if isinstance(p, InvalidData)]
        good = [p for p in pixels if isinstance(p, Tensor)]
        kept = torch.tensor([isinstance(p, Tensor) for p in pixels], dtype=torch.bool)
        read.append((torch.stack(good) if good else torch.empty(0, 3, *size, dtype=torch.uint8), labels[kept]))
    if broken:
        count = sum(len(paths) for paths, _ in parts)
        names = ", ".join(str(path.relative_to(root)) for path in broken[:5])
        problem = f"{len(broken)} of {count} images in {root} cannot be read: {names}{', ...' if len(broken) > 5 else ''}"
        if options.strict:
            raise InvalidData(f"{problem}; repair or remove them, or leave strict= out to skip them")
        notify(f"{problem}; skipped")
    return read


def _parts(root: Path, val_share: float, seed: int) -> tuple[list[str], Files, Files, Files]:
    """Class names and the files of train, val and test; what the folder does not separate is split by seed."""
    if not (root / "train").is_dir():
        classes, everything = _list(root)
        test_rows, val_rows, train_rows = stratified(everything[1], (TEST_SHARE, val_share * (1 - TEST_SHARE)), stream("test split", seed))
        return classes, _take(everything, train_rows), _take(everything, val_rows), _take(everything, test_rows)
    classes, train = _list(root / "train")
    if not (root / "test").is_dir():
        test_rows, rest = stratified(train[1], (TEST_SHARE,), stream("test split", seed))
        train, test = _take(train, rest), _take(train, test_rows)
    else:
        test = _list(root / "test", classes)[1]
    if (root / "val").is_dir():
        return classes, train, _list(root / "val", classes)[1], test
    val_rows, rest = stratified(train[1], (val_share,), stream("validation split", seed))
    return classes, _take(train, rest), _take(train, val_rows), test


def _list(folder: Path, classes: list[str] | None = None) -> tuple[list[str], Files]:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(found) < 2:
        example = f" ({found[0]})" if found else ""
        raise InvalidData(
            f"{folder} has {len(found)} class folders{example}; two at least are needed: make one for each class, with its images"
        )
    if classes is not None and found != classes:
        raise InvalidData(f"{folder} has the classes {', '.join(found)}, the training folder {', '.join(classes)}")
    paths, labels = [], []
    for label, name in enumerate(found):
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not files:
            raise InvalidData(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    return found, (paths, torch.tensor(labels))


def _take(files: Files, rows: Tensor) -> Files:
    return [files[0][i] for i in rows.tolist()], files[1][rows]


class _Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, files: Files, size: tuple[int, int], interpolation: Interpolation) -> None:
        self.files, self.size, self.interpolation = files, size, interpolation

    def __len__(self) -> int:
        return len(self.files[0])

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return decode(self.files[0][i], self.size, self.interpolation), int(self.files[1][i])


class StreamedSplit:
    """Images that do not fit in memory: decoded by worker processes, augmented on the device."""

    def __init__(self, files: Files, size: tuple[int, int], interpolation: Interpolation, mean: Tensor, std: Tensor) -> None:
        self._files, self._labels = _Files(files, size, interpolation), files[1]
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        return self._labels

    def relabelled(self, labels: Tensor) -> StreamedSplit:
        files = self._files
        return StreamedSplit((files.files[0], labels), files.size, files.interpolation, self._mean, self._std)

    def batches(self, size: int, device: torch.device, recipe: Recipe | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = generator(seed)
        loader: Any = torch.utils.data.DataLoader(
            self._files,
            size,
            shuffle=recipe is not None,
            drop_last=recipe is not None,
            generator=rng,
            num_workers=os.cpu_count() or 1,
            pin_memory=device.type == "cuda",
        )
        for pixels, labels in loader:
            images = (pixels.to(device).float() / 255 - self._mean.to(device)) / self._std.to(device)
            yield (augment(images, recipe, rng, black_pixel(self._mean, self._std)) if recipe else images), labels.to(device)


def _streamed(name: str, classes: list[str], parts: list[Files], size: tuple[int, int], options: DatasetOptions) -> Dataset:
    mean, std = prescribed(name, 3, options.preprocessing) or statistics(_sample(parts[0][0], size, options.interpolation))
    description = describe(name, classes, (3, *size), mean, std, options)
    train, val, test = (StreamedSplit(files, size, options.interpolation, mean, std) for files in parts)
    return Dataset(description, train, val, test, flip=True)


def _sample(paths: list[Path], size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """At most 2000 images (N, 3, height, width), evenly spread. Raises InvalidData."""
    rows = torch.linspace(0, len(paths) - 1, min(2000, len(paths))).long().tolist()
    pixels = decode_all([paths[i] for i in rows], size, interpolation)
    if unreadable := [p for p in pixels if isinstance(p, InvalidData)]:
        raise unreadable[0]
    return torch.stack([p for p in pixels if isinstance(p, Tensor)])
