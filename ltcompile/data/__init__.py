"""Images to learn from, one file a source: each gives train and test images, labels, and what is known of them.

`load_data` cuts a stratified validation split from the training images and normalises by the training images' own
mean and standard deviation, or those that a network's weights were trained with. Nothing is downloaded unless `download` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcompile import registry
from ltcompile.core.description import Description
from ltcompile.core.image_size import ImageSize, height_width, to_text
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.data._dataset import Dataset, DatasetOptions, Split, TensorSplit
from ltcompile.errors import InvalidData, InvalidSetting

__all__ = ["Dataset", "DatasetOptions", "Description", "Split", "TensorSplit", "load_data", "load_like", "names"]

FOLDERS = "imagefolder", "coco", "folder", "webdataset", "hf"
VAL_SHARE = 0.1
SPLIT_SEED = 20180309  # one split for all searches, so that their seeds compare on the same images


def load_data(
    name: str = "digits",
    root: str | Path = "data",
    image_size: ImageSize | None = None,
    val_share: float = VAL_SHARE,
    download: bool = False,
    *,
    preprocessing: Preprocessing | None = None,
    strict: bool = False,
    skip_damaged: bool = False,
) -> Dataset:
    """The data set `name` ("digits", "scenes", "cifar10", "cifar100", "mnist", "imagefolder:PATH", "coco:DIR", "folder:DIR", "webdataset:PATTERN" or
    "hf:DIR").

    Args:
        root: the folder that holds it in torchvision's own layout.
        image_size: what networks see, the side of a square or (height, width) in pixels; by default the preprocessing's, or else the
            data set's own. Images from files are cut to that shape around their middle; others are stretched.
        val_share: the share of the training images that becomes the validation split, class by class.
        preprocessing: how images are resized and normalised, for weights that were trained so.
        strict: refuse a folder with unreadable images; otherwise they are skipped, with a `Notice`.
        skip_damaged: go without shards that are missing or damaged, and without images that cannot be read of data that is streamed.

    Raises:
        UnknownName: no such data set. InvalidData: it is missing, corrupt, unfit for training or for the preprocessing. InvalidSetting: an image
            size outside 4..1024 pixels.
    """
    source, _, path = name.partition(":")
    module = registry.load(__name__, "data set", source)
    if (source in FOLDERS) != bool(path):
        raise InvalidData(
            f"{name!r} is not a data set: write imagefolder:PATH, coco:DIR, folder:DIR, webdataset:PATTERN or hf:DIR, or one of {', '.join(names())}"
        )
    size = None if image_size is None else height_width(image_size)
    if size is not None and not all(4 <= n <= 1024 for n in size):
        raise InvalidSetting(f"an image size of {to_text(size)} pixels is outside 4..1024")
    dataset: Dataset = module.load(
        Path(path or root), DatasetOptions(size, val_share, SPLIT_SEED, download, strict, preprocessing, skip_damaged)
    )
    dataset.check()
    return dataset


def load_like(description: Mapping[str, Any], name: str, root: str | Path = "data") -> Dataset:
    """The data set `name`, its images resized and normalised as `description` (`Description.to_json()`) says, and without what is damaged where
    that went without something. Raises as `load_data`.
    """
    interpolation = description.get("interpolation", "bilinear")  # tickets before it knew no other
    prepared = Preprocessing(description["shape"][-2:], description["mean"], description["std"], interpolation)
    return load_data(name, root, preprocessing=prepared, skip_damaged=description.get("skipped", 0) > 0)


def names() -> list[str]:
    """The data sets there are."""
    return list(registry.modules(__name__))
