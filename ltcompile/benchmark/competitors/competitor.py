"""A competitor, and what it is given: a network in every form that runtimes read, each made once."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltcompile import runtimes
from ltcompile.engine.agreement import Agreement, agreement
from ltcompile.engine.cpu import Source
from ltcompile.engine.file import EngineVariant
from ltcompile.engine.host import make_source
from ltcompile.lower import HalfInside, export_onnx, fold_batch_norm
from ltcompile.lower.lower import lower
from ltcompile.lower.passes import precision as precisions
from ltcompile.lower.program import Program
from ltcompile.numerics import tile
from ltcompile.runtimes import Subject

ENGINE = "engine"
MAX_DROP = 10.0  # per cent of images that may change their class


class Ready(NamedTuple):
    """A competitor with its images in place.

    `call` computes their answers once; on a GPU it may return before they are there. `answer` fetches what the last call gave, float32
    (N, classes). `write` puts other images, on the CPU, in the place of the first. `how` is what the competitor chose by itself, and `variant`
    what an engine decided.
    """

    call: Callable[[], object]
    answer: Callable[[], Tensor]
    write: Callable[[Tensor], object]
    how: str = ""
    variant: EngineVariant | None = None


@dataclass(frozen=True)
class Competitor:
    """A way to run networks in one precision on one device.

    `build` takes a network and float32 images (N, C, H, W) on the CPU, and may raise anything: what it says is written into the result.
    `settings` are what a reader needs to repeat it.
    """

    name: str
    precision: str
    settings: str
    build: Callable[[Network, Tensor], Ready]

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


class Network:
    """One network to compare: an fp32 `module`, folded and in eval mode on the CPU here, and real `images` (N, C, H, W).

    Raises:
        InvalidModel: it cannot be traced.
    """

    def __init__(self, name: str, module: nn.Module, images: Tensor) -> None:
        self.name, self.images = name, images
        self.module = fold_batch_norm(copy.deepcopy(module).cpu().eval(), images[:2])[0]
        self._scratch = tempfile.TemporaryDirectory(prefix="ltcompile-")
        self._sources: dict[str, Source] = {}

    @functools.cache  # noqa: B019  (a benchmark holds its networks to its end)
    def lowered(self, batch: int) -> Program:
        """The network as a program of fused operations, in fp32."""
        return lower(self.module, tile(self.images, batch)).program

    def source(self, precision: str, batch: int) -> Source:
        """The network as data for the runtimes of a CPU; int8 takes its ranges from all images."""
        if precision not in self._sources:
            self._sources[precision] = make_source(self.module, self.images, [], precision)
        if precision == "int8":
            return self._sources[precision]
        return replace(self._sources[precision], programs={batch: precisions.rewrite(self.lowered(batch), precision)})

    def subject(self, runtime: str, precision: str) -> Subject:
        """What `runtime` reads, in `precision`."""
        if runtimes.declared(runtime, "READS_ONNX"):
            if precision == "fp16":
                return Subject(self.name, None, self.half_onnx(), precision)
            onnx = self.source(precision, 1).onnx
            return Subject(self.name, None, onnx() if onnx else None, precision)
        module = self.module if precision == "fp32" else HalfInside(self.module, precisions.DTYPES[precision]).eval()
        return Subject(self.name, module, None, precision)

    @functools.cache  # noqa: B019
    def agreement(self, precision: str) -> Agreement | None:
        """What competitors in `precision` have to answer to all images; None in fp32."""
        source = self.source(precision, 1) if precision == "int8" else Source(precision)
        return agreement(self.module, self.images, source, MAX_DROP)

    @functools.cache  # noqa: B019
    def half_onnx(self) -> Path:
        """An ONNX file in float16 between float32 images and answers, any batch size."""
        path = Path(self._scratch.name) / "half.onnx"
        export_onnx(HalfInside(self.module), self.images[:2], path)
        return path

    @torch.no_grad()
    def expected(self, images: Tensor) -> Tensor:
        """The fp32 answers (N, classes), by eager PyTorch on the CPU."""
        answer: Tensor = self.module(images)
        return answer
