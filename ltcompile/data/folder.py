"""One's own pairs of images: DIR/images with DIR/masks (a map of classes for each image), or DIR/input with DIR/target (another image).

A pair has one name in both folders, whatever its ending. DIR/train, DIR/val and DIR/test may hold such folders each; what the folder does not
separate is split by seed. A mask is a grey or palette image whose pixels are numbers of classes, with 255 for none. DIR/classes.txt names the
classes, one a line, from number 0 on; without it the largest number in the masks says how many there are. Images and masks are stretched to
`image_size`, masks to the nearest pixel; without a size all must have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ltcompile.core.image_size import to_text
from ltcompile.core.preprocessing import Interpolation
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import Part
from ltcompile.data._dataset import Dataset, DatasetOptions, fits_in_memory
from ltcompile.data._files import SUFFIXES, Item, decode, read_image
from ltcompile.data._pairs import IGNORED, Kind, from_pairs
from ltcompile.data._read import OnDisk, read_all
from ltcompile.errors import InvalidData

TEST_SHARE = 0.2
PARTS: tuple[Part, ...] = ("train", "val", "test")
FOLDERS = {"masks": ("images", "masks"), "images": ("input", "target")}
Pairs = list[tuple[Item, Item]]  # an image and its target
T = TypeVar("T")


def load(root: Path, options: DatasetOptions) -> Dataset:
    """Raises InvalidData where pairs are missing, cannot be read, differ in size, or hold other classes."""
    if not root.is_dir():
        raise InvalidData(f"there is no folder {root}; write folder:DIR with the folder of your images and masks, or of inputs and targets")
    first = root / "train" if (root / "train").is_dir() else root
    kind: Kind = "images" if (first / "input").is_dir() else "masks"
    return from_files(f"folder:{root.name}", _parts(root, kind, options), kind, options, root)


def from_files(name: str, pairs: dict[Part, Pairs], kind: Kind, options: DatasetOptions, root: Path) -> Dataset:
    """A data set of the pairs of each part; `root` holds classes.txt, where there is one. Raises InvalidData."""
    size = _size([image for part in pairs.values() for image, _ in part], options)
    file = root / "classes.txt"
    names = read_classes(file) if kind == "masks" and file.is_file() else []
    read = partial(_pair, kind=kind, size=size, interpolation=options.interpolation, classes=len(names), listed=file)
    stored = {part: OnDisk(there, read, options.skip_damaged) for part, there in pairs.items()}
    if not fits_in_memory(sum(map(len, stored.values())), 6, size):
        if kind == "masks" and not names:
            raise InvalidData(f"{name} does not fit in memory: name the classes of its masks in {file}, one a line")
        return from_pairs(name, names, stored, options, flip=True)
    there, broken = read_all(list(stored.values()), str(root))
    found = {part: (tensors[0], tensors[1]) for part, (_, tensors) in zip(stored, there, strict=True)}
    names = names or (_numbers(root, [masks for _, masks in found.values()]) if kind == "masks" else [])
    return from_pairs(name, names, found, options, flip=True).without(broken)


def _parts(root: Path, kind: Kind, options: DatasetOptions) -> dict[Part, Pairs]:
    if not (root / "train").is_dir():
        test, val, train = _drawn(
            _pairs(root, kind), (TEST_SHARE, options.val_share * (1 - TEST_SHARE)), stream("test split", options.seed)
        )
        return {"train": train, "val": val, "test": test}
    return all_parts({part: _pairs(root / part, kind) for part in PARTS if (root / part).is_dir()}, options)


def all_parts(found: Mapping[Part, list[T]], options: DatasetOptions) -> dict[Part, list[T]]:
    """All three parts; those that are not `found` are drawn from the training items by a fixed seed."""
    train = found["train"]
    if (test := found.get("test")) is None:
        test, train = _drawn(train, (TEST_SHARE,), stream("test split", options.seed))
    if (val := found.get("val")) is None:
        val, train = _drawn(train, (options.val_share,), stream("validation split", options.seed))
    return {"train": train, "val": val, "test": test}


def _drawn(pairs: list[T], shares: tuple[float, ...], seed: int) -> list[list[T]]:
    """Disjoint parts, each of at least one pair: `shares` of all, and the rest."""
    order, parts = torch.randperm(len(pairs), generator=generator(seed)).tolist(), []
    for share in shares:
        count = max(1, round(share * len(pairs)))
        parts.append([pairs[i] for i in sorted(order[:count])])
        order = order[count:]
    return [*parts, [pairs[i] for i in sorted(order)]]


def _pairs(folder: Path, kind: Kind) -> Pairs:
    """The pairs of a folder, by name. Raises InvalidData where one of the two is missing."""
    files = []
    for name in FOLDERS[kind]:
        if not (folder / name).is_dir():
            raise InvalidData(
                f"{folder} has no folder {name}; it must hold images and masks for segmentation, or input and target for images"
            )
        found = [f for f in sorted((folder / name).iterdir()) if f.suffix.lower() in SUFFIXES and f.is_file()]
        files.append({f.stem: f for f in found})
        if len(files[-1]) < len(found):
            double = next(f for f in found if files[-1][f.stem] != f)
            raise InvalidData(
                f"{double} has the name of {files[-1][double.stem].name}; a pair has one name, whatever its ending: rename one"
            )
    images, targets = files
    if alone := sorted(images.keys() ^ targets.keys()):
        there, missing = FOLDERS[kind] if alone[0] in images else FOLDERS[kind][::-1]
        raise InvalidData(f"{folder}: {len(alone)} files have no partner: {there}/{alone[0]} has none in {missing}; add or remove it")
    if not images:
        raise InvalidData(f"{folder / FOLDERS[kind][0]} holds no image ({', '.join(sorted(SUFFIXES))})")
    return [(images[name], targets[name]) for name in sorted(images)]


def _size(files: Sequence[Item], options: DatasetOptions) -> tuple[int, int]:
    """The (height, width) of all images. Raises InvalidData where they differ and none is given."""
    if options.image_size or options.preprocessing:
        return options.size(0, 0)
    sizes: dict[Item, tuple[int, int]] = {}
    for path in files:
        try:
            sizes[path] = image_shape(path)
        except InvalidData:
            if not options.skip_damaged or (path == files[-1] and not sizes):
                raise
    first = next(iter(sizes))
    other = next((path for path, size in sizes.items() if size != sizes[first]), None)
    if other is not None:
        raise InvalidData(
            f"{first} has {to_text(sizes[first])} pixels, {getattr(other, 'name', other)} {to_text(sizes[other])}; pass an image_size= for all"
        )
    return sizes[first]


def image_shape(path: Item) -> tuple[int, int]:
    """(height, width), from the start of the file. Raises InvalidData."""
    return read_image(path, lambda image: (image.height, image.width))


def _pair(
    image: Item, target: Item, *, kind: Kind, size: tuple[int, int], interpolation: Interpolation, classes: int, listed: Path
) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) and its target, uint8; `classes` are named in the file `listed`. Raises InvalidData."""
    if (one := image_shape(image)) != (other := image_shape(target)):
        raise InvalidData(f"{image} has {to_text(one)} pixels and {target} {to_text(other)}; a pair has one size")
    pixels = decode(image, size, interpolation, stretch=True)
    if kind == "images":
        return pixels, decode(target, size, interpolation, stretch=True)
    mask = _mask(target, size)
    if classes and len(beyond := mask[(mask >= classes) & (mask != IGNORED)]):
        raise InvalidData(
            f"{target} holds class {int(beyond.max())}, and {listed} names {classes} (0 to {classes - 1}); {IGNORED} stands for no class"
        )
    return pixels, mask


def _mask(path: Item, size: tuple[int, int]) -> Tensor:
    """A map of classes (H, W), uint8. Raises InvalidData where its pixels are not numbers."""
    from PIL import Image

    mode, pixels = read_image(path, lambda image: (image.mode, np.array(image.resize(size[::-1], Image.Resampling.NEAREST))))
    if mode not in ("L", "P", "1"):
        raise InvalidData(f"{path} is a picture of mode {mode}; a mask is grey or has a palette, and its pixels are the numbers of classes")
    return torch.from_numpy(pixels).to(torch.uint8)


def _numbers(root: Path, masks: list[Tensor]) -> list[str]:
    """The numbers of the classes that masks hold. Raises InvalidData where there are less than two."""
    used = max(int(found[found != IGNORED].max()) if (found != IGNORED).any() else 0 for found in masks)
    if used < 1:
        raise InvalidData(f"{root}: all masks hold class 0 alone; there must be two classes at least")
    return [str(number) for number in range(used + 1)]


def read_classes(file: Path, least: int = 2, most: int = IGNORED) -> list[str]:
    """The names of the classes, one a line. Raises InvalidData where there are fewer than `least` or more than `most`."""
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{file} cannot be read as text: {error}") from error
    if not least <= len(names) <= most:
        raise InvalidData(f"{file} names {len(names)} classes; there must be {least} to {most}, one a line")
    return names
