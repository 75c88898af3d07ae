"""One's own images with boxes, as COCO's JSON describes them: DIR/annotations/instances_train*.json with the images in DIR/train*, or
DIR/images/train*, or DIR/images; DIR/train/_annotations.coco.json next to its images, as Roboflow exports; or one JSON file in DIR.

Images are stretched to `image_size` with their boxes, which changes no overlap of two boxes. Crowds are left out, images without objects stay.
Boxes are clipped to their image, and those without an area are left out. Files are data: names that leave DIR are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltcompile.core.fields import SchemaError, table
from ltcompile.core.notice import notify
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import Part
from ltcompile.data._annotated import Objects, from_files, stretched
from ltcompile.data._dataset import Dataset, DatasetOptions
from ltcompile.data._files import Item
from ltcompile.data._labelled import TEST_SHARE
from ltcompile.errors import InvalidData, InvalidFile
from ltcompile.paths import read_json

DEFAULT_SIZE = 320
MOST_BYTES = 1 << 30  # of a JSON file: COCO's own has 450 MB
PARTS: dict[Part, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class Image:
    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class Annotation:
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class Source:
    """One JSON file: `images` with the place of each file, and what is in them, by image and in the file's pixels."""

    path: Path
    images: Sequence[tuple[Item, Image]]
    annotations: dict[int, list[Annotation]]
    categories: dict[int, str]


def load(root: Path, options: DatasetOptions) -> Dataset:
    if not root.is_dir():
        raise InvalidData(f"there is no folder {root}; write coco:DIR with the folder of your images and their annotations")
    return from_sources(f"coco:{root.name}", {part: _read(root, path) for part, path in _files(root).items()}, options)


def from_sources(name: str, sources: Mapping[Part, Source], options: DatasetOptions) -> Dataset:
    """Images with the objects of each part; parts without a source are drawn from the training images. Raises InvalidData."""
    used = {id for source in sources.values() for found in source.annotations.values() for id in (a.category_id for a in found)}
    names = _categories(sources, used)
    labels = {id: label for label, id in enumerate(sorted(names))}
    size = options.size(DEFAULT_SIZE, DEFAULT_SIZE)
    items = {part: [(path, _objects(source, image, labels, size)) for path, image in source.images] for part, source in sources.items()}
    return from_files(name, [names[id] for id in sorted(names)], _split(name, items, options), size, options)


def _files(root: Path) -> dict[Part, Path]:
    """The JSON file of each part that has one; a single file is of the training images. Raises InvalidData."""
    found: dict[Part, Path] = {}
    for part, prefixes in PARTS.items():
        for prefix in prefixes:
            named = [*sorted((root / "annotations").glob(f"instances_{prefix}[!a-z]*json")), *sorted(root.glob(f"{prefix}*/{ROBOFLOW}"))]
            if len(named) > 1:
                raise InvalidData(f"{root} has {len(named)} files for the {part} images: {', '.join(map(str, named))}; keep one of them")
            if named and part not in found:
                found[part] = named[0]
    if found and "train" not in found:
        raise InvalidData(f"{root} has annotations for {', '.join(found)}, and none for training; add annotations/instances_train.json")
    if not found:
        single = sorted({*root.glob("*.json"), *root.glob("annotations/*.json")})
        if len(single) != 1:
            raise InvalidData(
                f"{root} has {len(single)} JSON files; it needs annotations/instances_train*.json, train/{ROBOFLOW}, or one JSON file"
            )
        found["train"] = single[0]
    return found


def _read(root: Path, path: Path) -> Source:
    """Raises InvalidData where the file is damaged, contradicts itself, or names images that are not there."""
    try:
        value = read_json(path, "file of COCO annotations", MOST_BYTES)
        if not isinstance(value, Mapping):
            raise SchemaError("it is not a table of images, annotations and categories")
        images = _rows(value, "images", Image)
        annotations, categories = _rows(value, "annotations", Annotation), _rows(value, "categories", Category)
    except (SchemaError, InvalidFile) as error:
        raise InvalidData(f"{path} cannot be read as COCO annotations: {error}") from error
    known = {image.id: image for image in images}
    names = {category.id: category.name for category in categories}
    if len(known) != len(images) or len(names) != len(categories):
        raise InvalidData(f"{path}: two images or two categories have the same id; export the annotations again")
    if wrong := [image for image in images if min(image.width, image.height) < 1]:
        raise InvalidData(f"{path}: image {wrong[0].file_name!r} has the size {wrong[0].width}x{wrong[0].height}")
    by_image: dict[int, list[Annotation]] = {}
    for annotation in annotations:
        if annotation.image_id not in known or annotation.category_id not in names:
            kind, id = ("category", annotation.category_id) if annotation.image_id in known else ("image", annotation.image_id)
            raise InvalidData(f"{path}: annotation {annotation.id} is of {kind} {id}, which the file does not list")
        check_inside(path, annotation, known[annotation.image_id])
        if not annotation.iscrowd:
            by_image.setdefault(annotation.image_id, []).append(annotation)
    return Source(path, _located(root, path, images), by_image, names)


def _rows(value: Mapping[str, Any], name: str, shape: type[Any]) -> list[Any]:
    rows = value.get(name)
    if not isinstance(rows, list):
        raise SchemaError(f"it has no list of {name}")
    return [table(row, shape, f"{name}[{i}]") for i, row in enumerate(rows)]


def check_inside(path: Path, annotation: Annotation, image: Image) -> None:
    """Raises InvalidData where a box lies outside its image."""
    x, y, width, height = annotation.bbox
    if width < 0 or height < 0 or x >= image.width or y >= image.height or x + width < 0 or y + height < 0:
        raise InvalidData(
            f"{path}: the box {list(annotation.bbox)} of annotation {annotation.id} lies outside its image {image.file_name!r}, which is "
            f"{image.width}x{image.height}; a box is x, y, width and height in pixels"
        )


def _located(root: Path, path: Path, images: list[Image]) -> list[tuple[Path, Image]]:
    """Each image with its file: next to the JSON file, or in a folder of the part's name. Raises InvalidData where files are missing."""
    part = path.stem.removeprefix("instances_")
    folders = [f for f in (path.parent, root / part, root / "images" / part, root / "images", root) if f.is_dir()]
    found, missing, inside = [], [], root.resolve()
    for image in images:
        places = [folder / image.file_name for folder in folders]
        place = next((p for p in places if p.is_file() and p.resolve().is_relative_to(inside)), None)
        if place is None:
            missing.append(image.file_name)
        else:
            found.append((place, image))
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise InvalidData(
            f"{len(missing)} of the {len(images)} images of {path} are in none of {', '.join(map(str, folders))}: {names}; add them, or "
            "remove them from the file"
        )
    return found


def _categories(sources: Mapping[Part, Source], used: set[int]) -> dict[int, str]:
    """Id -> name of the categories that have an object. Raises InvalidData where two files give an id different names."""
    names: dict[int, str] = {}
    for source in sources.values():
        for id, name in source.categories.items():
            if id in used and names.setdefault(id, name) != name:
                raise InvalidData(f"{source.path}: category {id} is {name!r}, and {names[id]!r} in another file; number them alike")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice or not names:
        raise InvalidData(f"the categories of the annotations are {names}: there must be one at least, and no name twice")
    return names


def _objects(source: Source, image: Image, labels: Mapping[int, int], size: tuple[int, int]) -> Objects:
    """What is in an image that is stretched to `size` (height, width)."""
    found = source.annotations.get(image.id, [])
    return stretched([a.bbox for a in found], [labels[a.category_id] for a in found], (image.height, image.width), size)


def _split(name: str, items: dict[Part, list[Any]], options: DatasetOptions) -> dict[Part, list[Any]]:
    """All three parts; those without a file are a fixed choice of the training images, which a notice states."""
    train = items["train"]
    order = [train[i] for i in torch.randperm(len(train), generator=generator(stream("test split", options.seed))).tolist()]
    for part, share in (("test", TEST_SHARE), ("val", options.val_share)):
        if part not in items:
            count = max(1, round(share * len(train)))
            items[part], order = order[:count], order[count:]  # type: ignore[index]
            notify(f"{name} has no {part} images of its own: they are {count} of its {len(train)} training images, chosen by a fixed seed")
    if not order:
        raise InvalidData(f"{name}: no image is left to train on")
    return {"train": order, "val": items["val"], "test": items["test"]}
