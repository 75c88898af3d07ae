"""The curve to choose from as plain rows: what `sweep` writes and `report` reads."""

from __future__ import annotations

from dataclasses import dataclass

from ltcompile.core.arm import ArmKind
from ltcompile.core.records import Measurement, Record


@dataclass(frozen=True)
class CurvePoint(Record):
    """A network of the curve. Its size is that of the first seed's, which is timed; the validation metric is over `seeds`.

    `bytes` is the size of its ONNX file, in fp32.
    """

    name: str
    arm: ArmKind
    level: int
    filters: int
    params: int
    macs: int
    bytes: int
    seeds: list[int]
    val_score: float
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
    """What a rule picked, if it picked a level, and where it looked at latency; `checksum` is that of picked.pt.

    Figures are of a fresh run, in which it was not picked: its median latency and its speedup over dense, with the 95 % interval. Where
    speed decided, `lead` is how many times as long the runner-up takes, and `tie` says whether its interval holds 1. Where no level is
    accurate enough, `missed_by_points` is what the most accurate one lacks.
    """

    rule: str
    name: str | None
    level: int | None
    reason: str
    runtime: str
    device: str
    batch: int
    checksum: str | None
    ms_p50: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    runner_up: str | None = None
    lead: float | None = None
    lead_low: float | None = None
    lead_high: float | None = None
    tie: bool = False
    missed_by_points: float | None = None
