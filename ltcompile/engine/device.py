"""What an engine's device has to offer, and which devices there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ltcompile.engine.engine import Run
from ltcompile.engine.file import Contents, Part
from ltcompile.errors import BadSetting

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What is saved of each batch size, and what runs it; the network's ONNX form where someone may run that."""

    parts: tuple[Part, ...]
    runs: Mapping[int, Run]
    onnx: bytes = b""


class Device(Protocol):
    """A kind of machine that engines are made for, in one precision."""

    precision: str

    def machine(self) -> dict[str, str]:
        """What must be the same for an engine's decisions to hold."""

    def make(self, model: nn.Module, example: Tensor, batches: Sequence[int], max_drop: float, on_progress: Progress) -> Made:
        """The fastest for each batch size, its answers checked on the example; in int8 `max_drop` per cent may change their class."""

    def load(self, contents: Contents) -> Mapping[int, Run]:
        """What was decided, ready to run."""

    def again(self, contents: Contents, on_progress: Progress) -> Made:
        """Decided anew on this machine, from a file alone."""


def find(device: str, precision: str | None) -> Device:
    """The device, in a precision that it computes in.

    Raises:
        BadSetting: no such device, or not in that precision. Unavailable: it is not here.
    """
    if device == "cpu":
        from ltcompile.engine.host import Host

        return Host(precision or "fp32")
    if device == "cuda":
        from ltcompile.engine.gpu import Gpu

        return Gpu(precision or "fp16")
    raise BadSetting(f"there is no device {device!r} for engines; known: cpu, cuda")
