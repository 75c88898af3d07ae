"""What tasks on a `Dataset` have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ltcompile import ranks
from ltcompile.core.description import Description
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Batch, Part, Shard, Task
from ltcompile.data import Dataset, Split
from ltcompile.data._contents import contents
from ltcompile.errors import InvalidData


class DataTask(Task):
    """Data that has what the task learns from, with what it says of itself and of its size. Raises InvalidData for other data."""

    annotation = "labels"
    description: Description

    def __init__(self, data: Dataset) -> None:
        if self.annotation not in data.annotations:
            raise InvalidData(
                f"{data.description.name} has {' and '.join(data.annotations)}, and no {self.annotation}; choose another task, or other data"
            )
        self.data, self.description = data, data.description
        self._splits: dict[Part, Split] = {"train": data.train, "val": data.val, "test": data.test}

    @cached_property
    def example(self) -> Tensor:
        """Two validation images (2, C, H, W), normalised, on the CPU."""
        return self.data.example

    @property
    def sizes(self) -> Mapping[Part, int]:
        return {part: len(split) for part, split in self._splits.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Of the images and of what belongs to them, in all parts."""
        digest = hashlib.sha256()
        for split in self._splits.values():
            for part in chain(contents(split), self._truth(split)):
                digest.update(part)
        return digest.hexdigest()[:16]

    def _truth(self, split: Any) -> Iterator[bytes]:
        """What the task learns of a split's images, as bytes."""
        yield split.labels.numpy().tobytes()

    @property
    def skipped(self) -> int:
        """How many training items could not be read so far, and were replaced by others."""
        return int(getattr(self.data.train, "skipped", 0))

    def adapt(self, recipe: Recipe) -> Recipe:
        return self.data.adapt(recipe)

    def batches(
        self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0, shard: Shard = EVERYTHING
    ) -> Iterator[Batch]:
        if shard == EVERYTHING:  # a split of the caller's own need not know of shards
            return self._splits[part].batches(size, device, recipe, seed)
        return self._splits[part].batches(size, device, recipe, seed, shard)

    def evaluation_batches(self, part: Part, size: int, device: torch.device) -> Iterator[Batch]:
        """This process's share of a part's batches, in order: all of them where there is one process. `ranks.gathered` brings results together."""
        return self.batches(part, size, device, shard=Shard(ranks.rank(), ranks.world()))
