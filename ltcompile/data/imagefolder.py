"""One's own images: PATH/train, PATH/val, PATH/test with a folder per class, or one folder per class, split by seed.

The middle of an image is cut to the shape of `image_size` and resized, so nothing is distorted. Unreadable images of a folder that fits in memory
are skipped with a notice, or refused if `strict`; in a larger one, an unreadable image is an error when its turn comes, unless `skip_damaged`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ltcompile.core.streams import stream
from ltcompile.core.task import Part
from ltcompile.data import _labelled
from ltcompile.data._dataset import Dataset, DatasetOptions
from ltcompile.data._files import SUFFIXES
from ltcompile.data._labelled import TEST_SHARE, Items, all_parts, from_items, take
from ltcompile.data._listing import listed
from ltcompile.data._split import stratified
from ltcompile.errors import InvalidData

PARTS: tuple[Part, ...] = ("val", "test")


def load(root: Path, options: DatasetOptions) -> Dataset:
    if not root.is_dir():
        raise InvalidData(f"there is no folder {root}; write imagefolder:PATH with the folder of your images")
    classes, parts = _parts(root, options)
    fits = _labelled.fits(parts, options)
    skip = options.skip_damaged or (fits and not options.strict)
    return from_items(f"imagefolder:{root.name}", classes, parts, options, skip=skip, home=str(root))


def _parts(root: Path, options: DatasetOptions) -> tuple[list[str], list[Items]]:
    """Class names and the files of train, val and test; what the folder does not separate is split by seed."""
    if not (root / "train").is_dir():
        classes, everything = _list(root)
        shares = TEST_SHARE, options.val_share * (1 - TEST_SHARE)
        test, val, train = stratified(everything[1], shares, stream("test split", options.seed))
        return classes, [take(everything, rows) for rows in (train, val, test)]
    classes, train_items = _list(root / "train")
    found: dict[Part, Items] = {"train": train_items}
    for part in PARTS:
        if (root / part).is_dir():
            found[part] = _list(root / part, classes)[1]
    return classes, all_parts(found, options)


def _list(folder: Path, classes: list[str] | None = None) -> tuple[list[str], Items]:
    files = listed(folder, SUFFIXES)
    found = sorted(name for name in files if not name.startswith("."))
    if len(found) < 2:
        example = f" ({found[0]})" if found else ""
        raise InvalidData(
            f"{folder} has {len(found)} class folders{example}; two at least are needed: make one for each class, with its images"
        )
    if classes is not None and found != classes:
        raise InvalidData(f"{folder} has the classes {', '.join(found)}, the training folder {', '.join(classes)}")
    paths, labels = [], []
    for label, name in enumerate(found):
        if not files[name]:
            raise InvalidData(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        paths += [folder / file for file in files[name]]
        labels += [label] * len(files[name])
    return found, (paths, torch.tensor(labels))
