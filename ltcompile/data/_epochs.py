"""The order of an epoch's images, how each is moved, and which of them a virtual rank reads: functions of a seed alone.

Images of their own files, and those in memory, are shuffled all together, and each batch is dealt out to the virtual ranks row by row. Images that
lie in shards (tar or parquet files) are read shard by shard: in each epoch the shards are shuffled and laid end to end, and this row of images is
cut into as many stretches of one length as there are virtual ranks. Each virtual rank reads its stretch, in which MIXED images at a time are
shuffled. A shard has one reader, but for those that a cut falls into. Fewer shards than virtual ranks are read row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator, stream
from ltcompile.core.task import EVERYTHING, Shard

MIXED = 2048  # images of shards that are shuffled together


def black_pixel(mean: Tensor, std: Tensor) -> Tensor:
    """What a pixel of 0 is after normalisation, channel by channel: (C,)."""
    return (-mean / std).flatten()


@dataclass(frozen=True)
class Moves:
    """How images are moved, each by its own draw: shifted by `pad` - `dx` to the right and `pad` - `dy` down, then mirrored where `mirrored`
    says so; all are (N,), and `mirrored` is None where none is.
    """

    pad: int
    dx: Tensor
    dy: Tensor
    mirrored: Tensor | None

    @classmethod
    def draw(cls, n: int, recipe: Recipe, rng: torch.Generator) -> Moves:
        pad = recipe.crop_pixels
        dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=rng) if pad else torch.zeros(2, n, dtype=torch.long)
        return cls(pad, dx, dy, torch.randint(0, 2, (n,), generator=rng).bool() if recipe.flip else None)

    def of_images(self, images: Tensor, black: Tensor) -> Tensor:
        """Images (N, C, H, W), moved within a padding of `black` (C,)."""
        n, channels, height, width = images.shape
        if pad := self.pad:
            padded = black.to(images).expand(n, height + 2 * pad, width + 2 * pad, channels).clone()
            padded[:, pad : pad + height, pad : pad + width] = images.permute(0, 2, 3, 1)
            windows = padded.unfold(1, height, 1).unfold(2, width, 1).movedim(3, -1)  # (N, shifts down, shifts right, H, W, C)
            rows, dy, dx = (index.to(images.device) for index in (torch.arange(n), self.dy, self.dx))
            images = windows[rows, dy, dx].permute(0, 3, 1, 2)
        if self.mirrored is not None:
            images = torch.where(self.mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        return images.contiguous(memory_format=torch.channels_last)

    def of_boxes(self, boxes: Tensor, image: int, height: int, width: int) -> Tensor:
        """Boxes (K, 4) of one image, as x0, y0, x1, y1 in pixels, moved and clipped to it."""
        right, down = self.pad - int(self.dx[image]), self.pad - int(self.dy[image])
        x0, y0, x1, y1 = (boxes + boxes.new_tensor([right, down, right, down])).unbind(1)
        if self.mirrored is not None and self.mirrored[image]:
            x0, x1 = width - x1, width - x0
        return torch.stack([x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)], 1)


def epoch_rows(
    count: int, size: int, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING, files: Tensor | None = None
) -> Iterator[tuple[Tensor, Moves | None]]:
    """The rows of each batch of `count` images, as `Split.batches` gives them, and how their images are moved (None without a recipe).

    A function of its arguments alone: the moves of batches before `shard.start` are drawn and dropped. `files` (count,) numbers the shards that
    images lie in, from 0 on.
    """
    if recipe is None:
        yield from ((rows, None) for rows in islice(torch.arange(count).split(size), shard.index, None, shard.count))
        return
    rng = generator(seed)  # on the CPU: the same stream for every device
    part, kept = size // shard.count, count // size * size
    if files is not None and _whole(files, shard.count):
        own = _stretch(files, kept, seed, shard)
    else:
        own = torch.randperm(count, generator=rng)[:kept].view(-1, shard.count, part)[:, shard.index].flatten()
    alternates = recipe.flip and recipe.alternate_flip and shard.epoch is not None
    first = torch.randint(0, 2, (count,), generator=generator(stream("alternate flips", 0))) if alternates else None
    if shard.count > 1:
        rng = generator(stream("augmentation", seed, level=shard.index))
    for step, rows in enumerate(own.split(part)):
        moves = Moves.draw(part, recipe, rng)
        if step >= shard.start:
            yield rows, moves if first is None else replace(moves, mirrored=(first[rows] + (shard.epoch or 0)) % 2 == 1)


def _whole(files: Tensor, ranks: int) -> bool:
    """Whether there are shards enough for each virtual rank to read its own."""
    if (shards := int(files.max()) + 1) >= ranks:
        return True
    notify(
        f"{shards} shards are read row by row by each of {ranks} virtual ranks; with {ranks} shards or more, each rank would read its own"
    )
    return False


def _stretch(files: Tensor, kept: int, seed: int, shard: Shard) -> Tensor:
    """What a virtual rank reads of the first `kept` images of an epoch, which passes through all shards: rows, in order."""
    places = torch.randperm(int(files.max()) + 1, generator=generator(stream("shards", seed)))
    own = places[files].argsort(stable=True)[:kept].view(shard.count, -1)[shard.index]
    rng = generator(stream("shuffled shards", seed, level=shard.index))
    return torch.cat([few[torch.randperm(len(few), generator=rng)] for few in own.split(MIXED)])
