"""Images to learn from, one file a source: each gives train and test images, labels, and what is known of them.

`load_data` cuts a stratified validation split from the training images and normalises by the training images' own
mean and standard deviation. Nothing is downloaded unless `download` asks for it.
"""

from __future__ import annotations

from pathlib import Path

from ltcompile import registry
from ltcompile.data._dataset import Dataset, Description, Split
from ltcompile.errors import BadData

__all__ = ["Dataset", "Description", "Split", "load_data", "names"]

SPLIT_SEED = 20180309  # one split for all searches, so that their seeds compare on the same images


def load_data(
    name: str = "digits", root: str | Path = "data", image_size: int | None = None, val_share: float = 0.1, download: bool = False
) -> Dataset:
    """The data set `name` ("digits", "cifar10", "cifar100", "mnist" or "imagefolder:PATH").

    Args:
        root: the folder that holds it in torchvision's own layout.
        image_size: the side in pixels that networks see; by default the data set's own.
        val_share: the share of the training images that becomes the validation split, class by class.

    Raises:
        UnknownName: no such data set. BadData: it is missing, corrupt or unfit for training.
    """
    source, _, path = name.partition(":")
    module = registry.load(__name__, "data set", source)
    if (source == "imagefolder") != bool(path):
        raise BadData(f"{name!r} is no data set: write imagefolder:PATH for a folder of images, or one of {', '.join(names())}")
    if image_size is not None and not 4 <= image_size <= 1024:
        raise BadData(f"an image size of {image_size} pixels is outside 4..1024")
    dataset: Dataset = module.load(Path(path or root), image_size, val_share, SPLIT_SEED, download)
    dataset.check()
    return dataset


def names() -> list[str]:
    """The data sets there are."""
    return list(registry.modules(__name__))
