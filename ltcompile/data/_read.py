"""Images that stay on disk until their turn comes: worker processes decode them, in an order that is drawn in this one, so that workers decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ltcompile import ranks
from ltcompile.core.notice import notify
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Shard
from ltcompile.data._epochs import Moves, epoch_rows
from ltcompile.data._files import Item, shard_numbers
from ltcompile.errors import InvalidData
from ltcompile.processors import processors


class OnDisk(torch.utils.data.Dataset[tuple[int, tuple[Tensor, ...]]]):
    """Rows of images that are decoded whenever they are read.

    Args:
        rows: the files, or parts of files, that each row is made of.
        read: makes the row's tensors of them, such as uint8 (C, H, W) and (H, W). Raises InvalidData.
        skip: where a row cannot be read, the next one that can takes its place; else that is an error.

    Attributes:
        shards: the number of the shard that each row is in (N,); None where rows are read in any order.
        skipped: how many rows of trainings and evaluations could not be read so far.
    """

    def __init__(self, rows: Sequence[tuple[Item, ...]], read: Callable[..., tuple[Tensor, ...]], skip: bool) -> None:
        self.rows, self.read, self.skip, self.skipped = rows, read, skip, 0
        self.shards = shard_numbers([row[0] for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Tensor) -> OnDisk:
        """The images of these rows."""
        return OnDisk([self.rows[i] for i in rows.tolist()], self.read, self.skip)

    def attempt(self, row: int) -> tuple[Tensor, ...] | InvalidData:
        """The tensors of a row, or why there are none."""
        try:
            return self.read(*self.rows[row])
        except InvalidData as error:
            return error

    def __getitem__(self, row: int) -> tuple[int, tuple[Tensor, ...]]:
        """A row that can be read, and its tensors. Raises InvalidData."""
        for found in ((row + after) % len(self) for after in range(len(self))):
            if not isinstance(tensors := self.attempt(found), InvalidData):
                return found, tensors
            if not self.skip:
                raise tensors
        raise InvalidData(f"no image of {len(self)} can be read")

    def sample(self, most: int) -> list[Tensor]:
        """At most so many rows, evenly spread. Raises InvalidData."""
        rows = torch.linspace(0, len(self) - 1, min(most, len(self))).long()
        ((_, tensors),), _ = read_all([self.part(rows)], "a sample of the training images")
        return tensors

    def batches(self, rows: Sequence[Tensor], device: torch.device, workers: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """For each batch of `rows`, those that were read, and their tensors on `device`."""
        loader: Any = torch.utils.data.DataLoader(
            self,
            batch_sampler=[few.tolist() for few in rows],
            generator=torch.Generator().manual_seed(0),  # workers draw nothing
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        batches = iter(loader)
        for requested in rows:
            try:
                found, tensors = next(batches)
            except InvalidData as error:  # its text is the worker's traceback
                raise InvalidData(str(error).strip().rpartition("InvalidData: ")[2]) from None
            self.skipped += int((found != requested).sum())
            yield found, [tensor.to(device) for tensor in tensors]


def epoch(
    source: Sequence[Tensor] | OnDisk, size: int, device: torch.device, recipe: Recipe | None, seed: int, shard: Shard = EVERYTHING
) -> Iterator[tuple[Tensor, Moves | None, list[Tensor]]]:
    """The batches of an epoch: rows, how they are moved, and their tensors on `device`. The source is on disk, or tensors in memory."""
    if isinstance(source, OnDisk):
        found = list(epoch_rows(len(source), size, recipe, seed, shard, source.shards))
        workers = max(1, ranks.own_processors() * ranks.world() // shard.count)
        read = source.batches([rows for rows, _ in found], device, workers)
        yield from ((rows, moves, tensors) for (rows, tensors), (_, moves) in zip(read, found, strict=True))
        return
    for rows, moves in epoch_rows(len(source[0]), size, recipe, seed, shard):
        yield rows, moves, [tensor[rows].to(device) for tensor in source]


def read_all(parts: Sequence[OnDisk], home: str) -> tuple[list[tuple[Tensor, list[Tensor]]], int]:
    """For each part the rows that can be read and their tensors; and how many cannot, over all parts. Raises InvalidData where that is an error."""
    found, broken, reasons = list[tuple[Tensor, list[Tensor]]](), list[Item](), list[InvalidData]()
    with ThreadPoolExecutor(processors()) as pool:
        for part in parts:
            read = list(pool.map(part.attempt, range(len(part))))
            good = [row for row, each in enumerate(read) if not isinstance(each, InvalidData)]
            broken += [part.rows[row][0] for row, each in enumerate(read) if isinstance(each, InvalidData)]
            reasons += [each for each in read if isinstance(each, InvalidData)]
            if not read:
                raise InvalidData(f"{home}: the training, validation or test part has no image; add images, at least three of each class")
            if not good:
                raise InvalidData(f"{home}: no image of {len(part)} can be read: {reasons[-1]}")
            columns = zip(*(each for each in read if not isinstance(each, InvalidData)), strict=True)
            found.append((torch.tensor(good, dtype=torch.long), [torch.stack(column) for column in columns]))
    if broken:
        names = ", ".join(str(item).removeprefix(f"{home}/") for item in broken[:5])
        count = sum(map(len, parts))
        problem = f"{len(broken)} of {count} images in {home} cannot be read: {names}{', ...' if len(broken) > 5 else ''}"
        if not parts[0].skip:
            raise InvalidData(f"{problem}; {reasons[0]}, or pass skip_damaged=True to skip such images")
        notify(f"{problem}; skipped")
    return found, len(broken)
