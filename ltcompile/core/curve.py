"""The curve to choose from as plain rows: what `sweep` writes and `report` reads."""

from __future__ import annotations

from dataclasses import dataclass

from ltcompile.core.records import Arm, Measurement, Record


@dataclass(frozen=True)
class CurvePoint(Record):
    """A network of the curve. Its size is that of the first seed's, which is timed; validation accuracy, a share, is over `seeds`.

    `bytes` is the size of its ONNX file, in fp32.
    """

    name: str
    arm: Arm
    level: int
    filters: int
    params: int
    macs: int
    bytes: int
    seeds: list[int]
    val_accuracy: float
    val_min: float
    val_max: float
    val_sd: float | None


@dataclass(frozen=True)
class CurveTiming(Measurement):
    """A timing of a point. Its accuracy is None: nothing here looks at test labels. `on_front` is among dense and tickets."""

    joules_per_image: float | None
    on_front: bool


@dataclass(frozen=True)
class Picked(Record):
    """What a rule picked, if it picked a level, and where it looked at latency; `checksum` is that of picked.pt."""

    rule: str
    name: str | None
    level: int | None
    reason: str
    backend: str
    device: str
    batch: int
    checksum: str | None
