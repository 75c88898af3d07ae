"""The engine: one network for some batch sizes, each run by the candidate that measured fastest on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ltcompile.engine import file
from ltcompile.engine.file import EngineFile
from ltcompile.errors import InvalidData

Run = Callable[[Tensor], Tensor]


class Engine:
    """(N, C, H, W) float32 images -> (N, classes) float32, on `device`, for any N: in batches that it was compiled for.

    A batch that is not full is filled up with zeros, whose answers are dropped. Any number of threads may call one engine at the same
    time: each gets the answers to its own images, in memory of its own. On a GPU the calls run one after the other.
    """

    def __init__(self, contents: EngineFile, runs: Mapping[int, Run]) -> None:
        self.device, self.precision, self.input_shape = contents.device, contents.precision, contents.input_shape
        self.decisions = {variant.decision.batch: variant.decision for variant in contents.variants}
        self._contents, self._runs = contents, dict(sorted(runs.items()))

    @property
    def batches(self) -> list[int]:
        """The batch sizes that it was compiled for."""
        return list(self._runs)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Raises InvalidData where images are not float32 (N, C, H, W) of the network's shape."""
        if images.dtype != torch.float32 or images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape or len(images) == 0:
            raise InvalidData(
                f"images must be float32 (N, {', '.join(map(str, self.input_shape))}), not {images.dtype} {tuple(images.shape)}"
            )
        images = images.detach()
        images = (images.cpu() if self.device == "cpu" else images).contiguous()  # a GPU's graph copies from anywhere
        if len(images) in self._runs:
            return self._runs[len(images)](images)
        return torch.cat([self._padded(rest) for rest in images.split(self.batches[-1])])

    def save(self, path: str | Path) -> None:
        """Write the engine to one file of data, which `load_engine` reads. Raises InvalidFile where it cannot be written."""
        file.save(self._contents, path)

    def _padded(self, images: Tensor) -> Tensor:
        batch = next(b for b in self.batches if b >= len(images))
        filled = torch.cat([images, images.new_zeros(batch - len(images), *self.input_shape)])
        return self._runs[batch](filled)[: len(images)]
