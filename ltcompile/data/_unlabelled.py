"""Images without labels: all files of a folder, in batches as a network takes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ltcompile.core.image_size import height_width
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.streams import generator, stream
from ltcompile.data._files import SUFFIXES, decoded
from ltcompile.data._read import OnDisk
from ltcompile.errors import InvalidData
from ltcompile.processors import processors

MOST = 2048
BATCH = 64


def unlabelled(folder: Path, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """At most MOST images below `folder`, in a shuffled order, normalised: (N, 3, height, width). Unreadable ones are left out.

    Raises InvalidData where there is no readable image.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    order = torch.randperm(len(paths), generator=generator(stream("repair", 0))).tolist()[:MOST]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    read = partial(decoded, size=height_width(preprocessing.image_size), interpolation=preprocessing.interpolation)
    images, found = OnDisk([(paths[i],) for i in order], read, skip=True), 0
    for rows in torch.arange(len(order)).split(BATCH):
        with ThreadPoolExecutor(processors()) as pool:
            there = list(pool.map(images.attempt, rows.tolist()))
        if pixels := [image[0] for image in there if not isinstance(image, InvalidData)]:
            found += len(pixels)
            yield (torch.stack(pixels).float() / 255 - mean) / std
    if not found:
        raise InvalidData(f"{folder} holds no readable image ({', '.join(sorted(SUFFIXES))})")
