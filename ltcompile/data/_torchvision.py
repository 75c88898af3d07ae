"""CIFAR and MNIST in torchvision's own layout on disk, checked there against the published md5 sums."""

from __future__ import annotations

from pathlib import Path

import torch

from ltcompile.data._dataset import Dataset, DatasetOptions, from_tensors
from ltcompile.errors import InvalidData


def load(kind: str, root: Path, options: DatasetOptions) -> Dataset:
    """The torchvision data set class `kind` from `root`; `options.download` fetches it when it is not there."""
    import torchvision

    parts = []
    for train in (True, False):
        try:
            part = getattr(torchvision.datasets, kind)(str(root), train=train, download=options.download)
        except RuntimeError as error:
            raise InvalidData(
                f"{kind} is missing or corrupt in {root}: pass the folder that holds it in torchvision's layout as data_root=, "
                "or download=True to fetch it"
            ) from error
        except Exception as error:  # it asserts, indexes and looks up what the files contain
            raise InvalidData(f"{kind} in {root} cannot be read: {error!r}; remove it, and fetch it again with download=True") from error
        images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets)
        classes = [str(c) for c in part.classes]
        if len(images) != len(labels) or not set(labels.unique().tolist()) <= set(range(len(classes))):
            raise InvalidData(f"{kind} in {root} has {len(images)} images and {len(labels)} labels, or labels of no class; fetch it again")
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        parts.append((images.contiguous(), labels))
    flip = kind != "MNIST"  # a mirrored digit is another sign
    size = options.size(*parts[0][0].shape[-2:])
    return from_tensors(kind.lower(), classes, parts[0], parts[1], options, image_size=size, flip=flip)
