"""The protocol of devices that engines are compiled for, and the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ltcompile.engine.engine import Run
from ltcompile.engine.file import EngineFile, EngineVariant
from ltcompile.engine.signature import Signature
from ltcompile.errors import InvalidSetting
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.program import Program

Progress = Callable[[str], None]
TUNE_SECONDS = 30.0


@dataclass(frozen=True)
class CompiledArtifacts:
    """What is saved for each batch size, what runs it, and the network's ONNX form and program for one image, where these may be used."""

    variants: tuple[EngineVariant, ...]
    runs: Mapping[int, Run]
    onnx: Callable[[], bytes] | None = None
    single: Program | None = None


@dataclass(frozen=True)
class Settings:
    """In int8, the per cent of images that may change their class; the seconds that measuring tiles of generated C++ may take."""

    max_drop: float
    tune_seconds: float


class Device(Protocol):
    """A kind of machine that engines are compiled for, in one precision."""

    precision: str

    def machine(self) -> dict[str, str]:
        """The hardware and versions for which an engine's decisions hold."""

    def make(
        self, model: nn.Module, inputs: Inputs, signature: Signature, batches: Sequence[int], settings: Settings, on_progress: Progress
    ) -> CompiledArtifacts:
        """The fastest candidate for each batch size, checked on the example."""

    def load(self, contents: EngineFile) -> Mapping[int, Run]:
        """The decided variants, ready to run."""

    def recompile(self, contents: EngineFile, settings: Settings, on_progress: Progress) -> CompiledArtifacts:
        """Decide again on this machine, from a file alone."""


def find(device: str, precision: str | None) -> Device:
    """The device, in a precision that it computes in.

    Raises:
        InvalidSetting: no such device, or not in that precision. Unavailable: it is not here.
    """
    if device == "cpu":
        from ltcompile.engine.host import Host

        return Host(precision or "fp32")
    if device == "cuda":
        from ltcompile.engine.gpu import Gpu

        return Gpu(precision or "fp16")
    raise InvalidSetting(f"unknown device {device!r} for engines; choose cpu or cuda")
