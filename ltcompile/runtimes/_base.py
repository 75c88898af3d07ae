"""What goes into a backend and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltcompile.errors import BadFile, BadSetting, Unavailable

if TYPE_CHECKING:
    from torch import nn

DEVICES = ("cpu", "cuda")
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """One network to run: an fp32 module in eval mode, (N, C, H, W) -> (N, classes), its ONNX file, or both.

    The ONNX file has one input and one output, both with a dynamic first dimension.

    Raises:
        BadSetting: neither is given, or the module is in training mode or not in fp32.
        BadFile: there is no ONNX file at that path.
    """

    name: str
    module: nn.Module | None = None
    onnx: Path | None = None

    def __post_init__(self) -> None:
        if self.module is None and self.onnx is None:
            raise BadSetting(f"{self.name!r} has neither a module nor an ONNX file; give one of them")
        if self.onnx is not None and not self.onnx.is_file():
            raise BadFile(f"there is no ONNX file at {self.onnx}; export {self.name!r} first")
        if self.module is not None:
            self._check_module(self.module)

    def _check_module(self, module: nn.Module) -> None:
        if module.training:
            raise BadSetting(f"{self.name!r} is in training mode; call .eval() on it first")
        if odd := {str(p.dtype) for p in module.parameters() if p.is_floating_point()} - {"torch.float32"}:
            raise BadSetting(f"{self.name!r} has {', '.join(sorted(odd))} parameters; call .float() on it first")

    def need_module(self, backend: str) -> nn.Module:
        """The module. Raises Unavailable where there is none."""
        if self.module is None:
            raise Unavailable(f"{backend} needs a torch module, and {self.name!r} is an ONNX file only; use another backend")
        return self.module

    def need_onnx(self, backend: str) -> Path:
        """The ONNX file. Raises Unavailable where there is none."""
        if self.onnx is None:
            raise Unavailable(f"{backend} needs an ONNX file, and {self.name!r} has none; export it first")
        return self.onnx


class Bound(NamedTuple):
    """An artifact with its input in place: `call` runs it and waits for it, `read` fetches what the last call gave.

    It belongs to one thread; others bind their own images, and get the answers to these.
    """

    call: Callable[[], None]
    read: Callable[[], Array]  # (N, classes)


@dataclass(frozen=True)
class Artifact:
    """What a backend made of a subject.

    `dtype` is what the products are computed in ("float32", or "tf32" on NVIDIA GPUs since Ampere). `details` are the
    settings that a reader needs to repeat a timing. `bind` places images (N, C, H, W) on the device and does all work that
    depends on their shape; answers and timings both come from its call, so what is timed is what was checked.
    """

    backend: str
    device: str
    dtype: str
    details: dict[str, str]
    bind: Callable[[Array], Bound]

    def run(self, images: Array) -> Array:
        """The logits (N, classes) of float32 images (N, C, H, W).

        Raises:
            Unavailable: the backend cannot compile the network for this shape.
        """
        bound = self.bind(images)
        bound.call()
        return bound.read()

    def prepare(self, images: Array) -> Callable[[], None]:
        """A call that runs the network on float32 images (N, C, H, W), already on the device, and waits for the answer.

        Raises:
            Unavailable: the backend cannot compile the network for this shape.
        """
        return self.bind(images).call


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
