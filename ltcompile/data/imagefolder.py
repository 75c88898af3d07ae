"""One's own images: PATH/train, PATH/val, PATH/test with a folder per class, or one folder per class, split by seed.

Images are resized to a square. Up to `IN_MEMORY_BYTES` they live in memory as one tensor; larger folders are streamed by
torchvision and a DataLoader, decoded again every epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.recipe import Recipe
from ltcompile.data._dataset import Dataset, Description, augment, from_tensors
from ltcompile.data._split import stratified
from ltcompile.errors import BadData

IN_MEMORY_BYTES = 1 << 30
TEST_SHARE = 0.2
DEFAULT_SIZE = 32
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}

Files = tuple[list[Path], Tensor]  # paths and labels (N,)


def load(root: Path, image_size: int | None, val_share: float, seed: int, download: bool) -> Dataset:
    if not root.is_dir():
        raise BadData(f"there is no folder {root}")
    side = image_size or DEFAULT_SIZE
    classes, train, val, test = _parts(root, val_share, seed)
    name = f"imagefolder:{root.name}"
    total = sum(len(paths) for paths, _ in (train, val, test))
    if total * 3 * side * side > IN_MEMORY_BYTES:
        return _streamed(name, classes, train, val, test, side)
    decoded = [(_decode_all(paths, side), labels) for paths, labels in (train, val, test)]
    return from_tensors(name, classes, decoded[0], decoded[2], val=decoded[1], image_size=side, val_share=val_share, seed=seed, flip=True)


def _parts(root: Path, val_share: float, seed: int) -> tuple[list[str], Files, Files, Files]:
    """Class names and the files of train, val and test; what the folder does not separate is split by seed."""
    if not (root / "train").is_dir():
        classes, everything = _list(root)
        test_rows, val_rows, train_rows = stratified(everything[1], (TEST_SHARE, val_share * (1 - TEST_SHARE)), seed)
        return classes, _take(everything, train_rows), _take(everything, val_rows), _take(everything, test_rows)
    classes, train = _list(root / "train")
    if not (root / "test").is_dir():
        test_rows, rest = stratified(train[1], (TEST_SHARE,), seed)
        train, test = _take(train, rest), _take(train, test_rows)
    else:
        test = _list(root / "test", classes)[1]
    if (root / "val").is_dir():
        return classes, train, _list(root / "val", classes)[1], test
    val_rows, rest = stratified(train[1], (val_share,), seed)
    return classes, _take(train, rest), _take(train, val_rows), test


def _list(folder: Path, classes: list[str] | None = None) -> tuple[list[str], Files]:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(found) < 2:
        raise BadData(f"{folder} has {len(found)} class folder{'s' * (len(found) != 1)} ({', '.join(found)}); two at least are needed")
    if classes is not None and found != classes:
        raise BadData(f"{folder} has the classes {', '.join(found)}, the training folder {', '.join(classes)}")
    paths, labels = [], []
    for label, name in enumerate(found):
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES)
        if not files:
            raise BadData(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    return found, (paths, torch.tensor(labels))


def _take(files: Files, rows: Tensor) -> Files:
    return [files[0][i] for i in rows.tolist()], files[1][rows]


def _decode(path: Path, side: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            pixels: Tensor = pil_to_tensor(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
            return pixels
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} is no readable image ({error}); mend or remove it") from error


def _decode_all(paths: list[Path], side: int) -> Tensor:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(lambda path: _decode(path, side), paths)))


class _Files(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, files: Files, side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files[0])

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return _decode(self.files[0][i], self.side), int(self.files[1][i])


class StreamedSplit:
    """Images that do not fit in memory: decoded by worker processes, augmented on the device."""

    def __init__(self, files: Files, side: int, mean: Tensor, std: Tensor) -> None:
        self._files, self._labels = _Files(files, side), files[1]
        self._mean, self._std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> Tensor:
        return self._labels

    def batches(self, size: int, device: torch.device, recipe: Recipe | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        loader: Any = torch.utils.data.DataLoader(
            self._files,
            size,
            shuffle=recipe is not None,
            drop_last=recipe is not None,
            generator=generator,
            num_workers=os.cpu_count() or 1,
            pin_memory=device.type == "cuda",
        )
        for pixels, labels in loader:
            images = (pixels.to(device).float() / 255 - self._mean.to(device)) / self._std.to(device)
            yield (augment(images, recipe, generator) if recipe else images), labels.to(device)


def _streamed(name: str, classes: list[str], train: Files, val: Files, test: Files, side: int) -> Dataset:
    from ltcompile.data._dataset import statistics

    sample = torch.linspace(0, len(train[0]) - 1, min(2000, len(train[0]))).long()
    mean, std = statistics(_decode_all(_take(train, sample)[0], side))
    description = Description(name, tuple(classes), (3, side, side), tuple(mean.tolist()), tuple(std.tolist()))
    parts = [StreamedSplit(files, side, mean, std) for files in (train, val, test)]
    return Dataset(description, parts[0], parts[1], parts[2], flip=True)
