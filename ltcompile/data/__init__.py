"""Images to learn from, one file a source: each gives train and test images, labels, and what is known of them.

`load_data` cuts a stratified validation split from the training images and normalises by the training images' own
mean and standard deviation, or those that a network's weights were trained with. Nothing is downloaded unless `download` asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcompile import registry
from ltcompile.core.description import Description
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.data._dataset import Dataset, Split, Wanted
from ltcompile.errors import BadData

__all__ = ["Dataset", "Description", "Split", "load_data", "load_like", "names"]

SPLIT_SEED = 20180309  # one split for all searches, so that their seeds compare on the same images


def load_data(
    name: str = "digits",
    root: str | Path = "data",
    image_size: int | None = None,
    val_share: float = 0.1,
    download: bool = False,
    *,
    preprocessing: Preprocessing | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set `name` ("digits", "cifar10", "cifar100", "mnist" or "imagefolder:PATH").

    Args:
        root: the folder that holds it in torchvision's own layout.
        image_size: the side in pixels that networks see; by default the preprocessing's, or else the data set's own.
        val_share: the share of the training images that becomes the validation split, class by class.
        preprocessing: how images are resized and normalised, for weights that were trained so.
        strict: refuse a folder with unreadable images; otherwise they are skipped, with a `Notice`.

    Raises:
        UnknownName: no such data set. BadData: it is missing, corrupt, unfit for training or for the preprocessing.
    """
    source, _, path = name.partition(":")
    module = registry.load(__name__, "data set", source)
    if (source == "imagefolder") != bool(path):
        raise BadData(f"{name!r} is no data set: write imagefolder:PATH for a folder of images, or one of {', '.join(names())}")
    if image_size is not None and not 4 <= image_size <= 1024:
        raise BadData(f"an image size of {image_size} pixels is outside 4..1024")
    dataset: Dataset = module.load(Path(path or root), Wanted(image_size, val_share, SPLIT_SEED, download, strict, preprocessing))
    dataset.check()
    return dataset


def load_like(description: Mapping[str, Any], name: str, root: str | Path = "data") -> Dataset:
    """The data set `name`, its images resized and normalised as `description` (`Description.to_json()`) says. Raises as `load_data`."""
    interpolation = description.get("interpolation", "bilinear")  # tickets before it knew no other
    prepared = Preprocessing(description["shape"][-1], description["mean"], description["std"], interpolation)
    return load_data(name, root, preprocessing=prepared)


def names() -> list[str]:
    """The data sets there are."""
    return list(registry.modules(__name__))
