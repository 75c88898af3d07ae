"""Images in tar shards, as WebDataset lays them out: `webdataset:PATTERN`, such as shards/train-{000..099}.tar, shards/{train,val}-*.tar.

Files of a shard with one name up to the first dot are a sample: an image (KEY.jpg, KEY.png, ...) with its class in KEY.cls, a number or a name; or,
for segmentation, with a map of classes in KEY.mask.png or KEY.seg.png; or, from image to image, KEY.input.png with KEY.target.png; or, for
detection, with boxes in KEY.json in pixels, such as {"width": 640, "height": 480, "boxes": [[x, y, width, height]], "labels": ["cat"]}, labels as
in KEY.cls. `classes.txt` next to the first shard names numbered classes, one a line.
A shard belongs to the part (train, val, test) that its name or its folder's contains; parts without shards are drawn from the training samples by
a fixed seed.

Shards are read as they lie, and never extracted: the headers of each are read once, and kept in the user's cache while its size and time stay.
Samples are then read by their place in the file, in the order of `data._epochs`: each once an epoch, and by whole shards for each virtual rank.
Compressed shards and pickled members are refused. A missing or damaged shard or sample is an error unless `skip_damaged`.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ltcompile.core.fields import SchemaError, table
from ltcompile.core.notice import notify
from ltcompile.core.task import Part
from ltcompile.data import coco, folder
from ltcompile.data._dataset import Dataset, DatasetOptions
from ltcompile.data._files import SUFFIXES
from ltcompile.data._labelled import Items, all_parts, from_items
from ltcompile.data._listing import cached, counted, read_cached
from ltcompile.data._pairs import Kind
from ltcompile.errors import InvalidData
from ltcompile.paths import write_text

WORDS: dict[str, Part] = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MASKS = "mask.png", "seg.png"
PICKLED = {"pyd", "pickle", "pkl", "pth", "pt"}
MOST_SHARDS, MOST_TEXT, MOST_BOXES = 100_000, 4096, 1 << 20
LARGE_SHARD = 1 << 24  # bytes: a smaller one is listed faster than its list is read
BLOCK = 512


class Member(NamedTuple):
    """A file in a shard: `size` bytes from `offset` on; `text` is that of a class."""

    shard: str
    name: str
    offset: int
    size: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Sample(NamedTuple):
    """An image and what belongs to it: a class, or a file that holds a map of classes, another image or boxes."""

    image: Member
    kind: Literal["class", "mask", "target", "boxes"]
    label: str
    other: Member | None


@dataclass(frozen=True)
class Boxes:
    """What KEY.json holds."""

    width: int
    height: int
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[Any, ...]


def load(pattern: Path, options: DatasetOptions) -> Dataset:
    shards, skipped = _existing(str(pattern), options.skip_damaged), 0
    parts: dict[Part, list[Sample]] = {}
    for shard in counted(shards, f"listing {pattern}"):
        try:
            found = list(_samples(shard))
        except InvalidData as error:
            if not options.skip_damaged:
                raise
            notify(f"{error}; skipped")
            skipped += 1
            continue
        parts.setdefault(_part(shard), []).extend(found)
    if "train" not in parts:
        raise InvalidData(f"{pattern} names no shard to train on: write train into the names of those")
    name, home = f"webdataset:{pattern.name}", Path(shards[0]).parent
    skipped += len(_expanded(str(pattern))) - len(shards)
    kind = parts["train"][0].kind
    if other := next((sample for found in parts.values() for sample in found if sample.kind != kind), None):
        raise InvalidData(
            f"{other.image} comes with {other.kind}, and {parts['train'][0].image} with {kind}; shards hold one kind of samples"
        )
    if kind == "class":
        classes, items = _labelled(parts, home)
        return from_items(name, classes, all_parts(items, options), options, skip=options.skip_damaged, skipped=skipped)
    if kind == "boxes":
        return coco.from_sources(name, _annotated(parts, home), options).without(skipped)
    pairs = {part: [(sample.image, sample.other) for sample in found if sample.other] for part, found in parts.items()}
    targets: Kind = "masks" if kind == "mask" else "images"
    return folder.from_files(name, folder.all_parts(pairs, options), targets, options, home).without(skipped)  # type: ignore[arg-type]


def _existing(pattern: str, skip: bool) -> list[str]:
    """The shards that `pattern` names and that are there. Raises InvalidData."""
    names = _expanded(pattern)
    missing = [name for name in names if not Path(name).is_file()]
    if missing and (not skip or len(missing) == len(names)):
        there = f"{len(missing)} of the {len(names)} shards of {pattern} are missing: {', '.join(missing[:5])}"
        raise InvalidData(f"{there}{', ...' if len(missing) > 5 else ''}; add them, or pass skip_damaged=True to go without")
    if missing:
        notify(f"{len(missing)} of the {len(names)} shards of {pattern} are missing: {', '.join(missing[:5])}; skipped")
    if not names:
        raise InvalidData(f"{pattern} names no shard; write webdataset:PATTERN, as in webdataset:shards/train-{{000..099}}.tar")
    return [name for name in names if name not in set(missing)]


def _expanded(pattern: str) -> list[str]:
    """The paths that braces and wildcards stand for, in order: {a,b} and {000..099}, then *, ? and [...] of what is there."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if i % 2 == 0 else _choices(piece) for i, piece in enumerate(pieces)]
    names = ["".join(each) for each in itertools.islice(itertools.product(*choices), MOST_SHARDS)]
    return [found for name in names for found in (sorted(glob(name)) if re.search(r"[*?[]", name) else [name])]


def _choices(text: str) -> list[str]:
    if (numbers := re.fullmatch(r"(\d+)\.\.(\d+)", text)) is None:
        return text.split(",")
    first, last = numbers.groups()
    return [str(n).zfill(len(first)) for n in itertools.islice(range(int(first), int(last) + 1), MOST_SHARDS)]


def _part(shard: str) -> Part:
    path = Path(shard)
    words = [word for name in (path.stem, path.parent.name) for word in re.split(r"[^a-z]+", name.lower())]
    return next((WORDS[word] for word in words if word in WORDS), "train")


def _samples(shard: str) -> Iterator[Sample]:
    """The samples of a shard, in order. Raises InvalidData where it is damaged, or a sample lacks something."""
    grouped: dict[str, dict[str, Member]] = {}
    for member in _members(Path(shard)):
        before, _, name = member.name.rpartition("/")
        key, _, kind = name.partition(".")
        there = grouped.setdefault(f"{before}/{key}", {})
        if kind.lower() in there:
            raise InvalidData(f"{member} is there twice; write the shard again")
        there[kind.lower()] = member
    for key, there in grouped.items():
        image = _image(there, "") or _image(there, "input.")
        mask, target = next((there[kind] for kind in MASKS if kind in there), None), _image(there, "target.")
        boxes = there.get("json")  # else it is what a writer noted of the image
        if image is None or not (mask or target or "cls" in there or boxes):
            lacking = "an image" if image is None else "a class (.cls), a mask (.mask.png), a target (.target.png) or boxes (.json)"
            raise InvalidData(f"{shard}: the sample {key.lstrip('/')} has {', '.join(sorted(there))}, and lacks {lacking}")
        if mask or target:
            yield Sample(image, "mask" if mask else "target", "", mask or target)
        elif "cls" in there:
            yield Sample(image, "class", there["cls"].text, None)
        else:
            yield Sample(image, "boxes", "", boxes)


def _image(there: dict[str, Member], prefix: str) -> Member | None:
    """The first image among the files of a sample whose ending begins so."""
    return next((member for kind, member in there.items() if f".{kind.removeprefix(prefix)}" in SUFFIXES and kind.startswith(prefix)), None)


def _members(shard: Path) -> list[Member]:
    """The files of a shard, as its headers say or as a current list in the cache does."""
    facts = [str(shard.resolve()), (there := shard.stat()).st_size, there.st_mtime_ns]
    cache = cached(shard.resolve(), "shards")
    kept = read_cached(cache, _current, facts) if there.st_size >= LARGE_SHARD else None
    if kept is None:
        found = _read(shard, there.st_size)
        if there.st_size >= LARGE_SHARD:
            write_text(cache, json.dumps({"kind": facts, "members": [member[1:] for member in found]}))
        return found
    return [Member(str(shard), *row) for row in kept["members"]]


def _current(kept: Any, facts: list[Any]) -> bool:
    kinds, size = (str, int, int, str), facts[1]
    rows = kept["members"]
    return kept["kind"] == facts and all(tuple(map(type, row)) == kinds and 0 <= row[1] <= row[1] + row[2] <= size for row in rows)


class _Bounded(io.FileIO):
    """A file of which no more is read, and allocated, than there is, whatever its headers say."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, Path(str(self.name)).stat().st_size - self.seek(0, io.SEEK_CUR))
        return super().read(left if size is None or size < 0 else min(size, left))


def _read(shard: Path, size: int) -> list[Member]:
    found = []
    try:
        with _Bounded(str(shard)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for header in archive:
                if not header.isdir():
                    found.append(_member(shard, header, file, size))
                archive.members = []  # type: ignore[attr-defined]  # of which there may be millions
            file.seek(archive.offset)  # tarfile takes a damaged header for the end
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"its headers end at byte {archive.offset:,} of {size:,}")
    except (tarfile.TarError, OSError, ValueError, EOFError, MemoryError, RecursionError) as error:
        after = f" after {found[-1].name}" if found else ""
        raise InvalidData(
            f"{shard} is damaged{after} ({error}), or compressed; write it again as a plain tar, or pass skip_damaged=True"
        ) from error
    return found


def _member(shard: Path, header: tarfile.TarInfo, file: io.FileIO, size: int) -> Member:
    found = Member(str(shard), header.name, header.offset_data, header.size)
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise InvalidData(f"{found} is a link or a device; a shard holds plain files alone")
    kind = header.name.lower().rpartition(".")[2]
    if kind in PICKLED:
        raise InvalidData(f"{found} is a pickle, which could run code; write classes as .cls and images as .jpg or .png")
    if header.offset_data + header.size > size:
        raise tarfile.ReadError(f"it ends within {header.name}")
    if kind != "cls":
        return found
    if header.size > MOST_TEXT:
        raise InvalidData(f"{found} has {header.size:,} bytes; a class is a number or a name")
    before = file.seek(0, io.SEEK_CUR)
    file.seek(header.offset_data)
    text = file.read(header.size).decode("utf-8").strip()
    file.seek(before)
    return found._replace(text=text)


def _labelled(parts: dict[Part, list[Sample]], home: Path) -> tuple[list[str], dict[Part, Items]]:
    """The names of the classes, and images with labels of each part. Raises InvalidData."""
    names, numbers = _classes({sample.label for found in parts.values() for sample in found}, home)
    return names, {part: ([s.image for s in found], torch.tensor([numbers[s.label] for s in found])) for part, found in parts.items()}


def _annotated(parts: dict[Part, list[Sample]], home: Path) -> dict[Part, coco.Source]:
    """The objects of each part. Raises InvalidData."""
    read = {part: [(sample.image, _boxes(sample)) for sample in found] for part, found in parts.items()}
    names, numbers = _classes({str(label) for found in read.values() for _, there in found for label in there.labels}, home)
    sources: dict[Part, coco.Source] = {}
    for part, found in read.items():
        images = [(image, coco.Image(at, image.name, there.width, there.height)) for at, (image, there) in enumerate(found)]
        objects = {
            at: [
                coco.Annotation(k, at, numbers[str(label)], box)
                for k, (box, label) in enumerate(zip(there.boxes, there.labels, strict=True))
            ]
            for at, (_, there) in enumerate(found)
        }
        for at, (image, size) in enumerate(images):
            for annotation in objects[at]:
                coco.check_inside(Path(image.shard), annotation, size)
        sources[part] = coco.Source(home, images, objects, dict(enumerate(names)))
    return sources


def _boxes(sample: Sample) -> Boxes:
    """Raises InvalidData."""
    member = sample.other
    assert member is not None
    if member.size > MOST_BOXES:
        raise InvalidData(f"{member} has {member.size:,} bytes, too many for the boxes of one image")
    try:
        found = table(json.loads(member.read()), Boxes, "")
        if (
            min(found.width, found.height) < 1
            or len(found.boxes) != len(found.labels)
            or not all(type(x) in (str, int) for x in found.labels)
        ):
            raise SchemaError("it needs a width and a height in pixels, and a label, a number or a name, for each box")
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{member} does not hold boxes: {error}") from error
    return found


def _classes(texts: set[str], home: Path) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and the number of each text. Raises InvalidData."""
    numbered = all(text.isascii() and text.isdigit() and len(text) < 7 for text in texts)
    names = sorted(texts) if not numbered else [str(n) for n in range(max(map(int, texts), default=-1) + 1)]
    if numbered and (file := home / "classes.txt").is_file():
        names = folder.read_classes(file, len(names), MOST_SHARDS)
    return names, {text: int(text) if numbered else names.index(text) for text in texts}
