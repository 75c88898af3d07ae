"""The engine: one network for some batch sizes, each run by the candidate that measured fastest on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltcompile.engine import file
from ltcompile.engine.file import EngineFile
from ltcompile.engine.signature import Tensors, outputs
from ltcompile.errors import InvalidData

Run = Callable[..., Tensor | Tensors]  # tensors in the signature's order -> the output, or all outputs where there are several


class Engine:
    """Called as the network is, for any number of rows N: in batches that it was compiled for.

    It gives the network's output where that is one tensor, else its outputs by name: float32 (N, C, H, W) -> (N, classes) of a classifier.
    A batch that is not full is filled up with zeros, whose answers are dropped. Any number of threads may call one engine at the same
    time: each gets the answers to its own inputs, in memory of its own. On a GPU the calls run one after the other.
    """

    def __init__(self, contents: EngineFile, runs: Mapping[int, Run]) -> None:
        self.device, self.precision, self.signature = contents.device, contents.precision, contents.signature
        self.decisions = {variant.decision.batch: variant.decision for variant in contents.variants}
        self._contents, self._runs = contents, dict(sorted(runs.items()))

    @property
    def batches(self) -> list[int]:
        """The batch sizes that it was compiled for."""
        return list(self._runs)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InvalidData where the inputs are not of the network's names, dtypes and shapes."""
        tensors = [t.detach() for t in self.signature.arrange(args, kwargs)]
        tensors = [(t.cpu() if self.device == "cpu" else t).contiguous() for t in tensors]  # a GPU's graph copies from anywhere
        rows = self.signature.rows(tensors)
        if rows in self._runs:
            found = outputs(self._runs[rows](*tensors))
        else:
            found = self._in_batches(tensors, rows)
        return found[0] if len(found) == 1 else dict(zip(self.signature.outputs, found, strict=True))

    def save(self, path: str | Path) -> None:
        """Write the engine to one file of data, which `load_engine` reads. Raises InvalidFile where it cannot be written."""
        file.save(self._contents, path)

    def _in_batches(self, tensors: list[Tensor], rows: int) -> Tensors:
        if not all(self.signature.outputs_batched):
            name = self.signature.outputs[self.signature.outputs_batched.index(False)]
            raise InvalidData(
                f"output {name!r} has no row for each input: call with {' or '.join(map(str, self.batches))} rows, not {rows}"
            )
        size = self.batches[-1]
        parts = [self._padded([t[at : at + size] if has else t for t, has in self._pairs(tensors)]) for at in range(0, rows, size)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _padded(self, tensors: list[Tensor]) -> Tensors:
        rows = self.signature.rows(tensors)
        batch = next(b for b in self.batches if b >= rows)
        filled = [torch.cat([t, t.new_zeros(batch - rows, *t.shape[1:])]) if has else t for t, has in self._pairs(tensors)]
        return tuple(found[:rows] for found in outputs(self._runs[batch](*filled)))

    def _pairs(self, tensors: list[Tensor]) -> list[tuple[Tensor, bool]]:
        return list(zip(tensors, self.signature.batched, strict=True))
