"""What a benchmark of competitors gives: rows, refusals with their reasons, layers, and the claims that were checked; to JSON and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcompile.benchmark.competitors.competitor import ENGINE
from ltcompile.benchmark.competitors.layers import Layer
from ltcompile.benchmark.competitors.peaks import Peaks
from ltcompile.core.records import Record
from ltcompile.core.result_file import FORMAT, read_result


@dataclass(frozen=True)
class Row(Record):
    """One competitor on one network and batch.

    `max_error` is relative to fp32 eager's largest magnitude; `top1` the share of images whose best class is the same. `how` is what the
    competitor chose by itself. `behind` is the 95 % interval of the engine's time over its fastest peer's. `joules_per_image` is measured for the
    engine and of the fastest peer, where a driver counts.
    """

    subject: str
    competitor: str
    precision: str
    batch: int
    ms_p20: float
    ms_p50: float
    ms_p80: float
    runs: int
    max_error: float
    top1: float
    joules_per_image: float | None
    build_s: float
    how: str
    behind: tuple[float, float] | None = None


@dataclass(frozen=True)
class Refusal(Record):
    """A competitor that was not timed, and why; `competitor` is "" where none was."""

    subject: str
    batch: int
    competitor: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Check(Record):
    """A claim, the number that was found for it (None: not measured), and whether it holds (None: undecided)."""

    claim: str
    found: float | None
    holds: bool | None


@dataclass
class CompetitorsResult:
    """`subjects` are parameters and MACs by network; `settings` those of each competitor; `energy` says why no joules are measured, or "";
    `busy_share` of all processors' time was other work's before it began, the most where it was resumed.
    """

    device: str
    machine: str
    images: str
    energy: str = ""
    busy_share: float | None = None
    subjects: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    peaks: list[Peaks] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def case(self, subject: str, batch: int) -> list[Row]:
        """The rows of one network and batch, fastest first."""
        return sorted((row for row in self.rows if (row.subject, row.batch) == (subject, batch)), key=lambda row: row.ms_p50)

    def cases(self) -> list[tuple[str, int]]:
        """The cases that were run, in order."""
        return list(dict.fromkeys((row.subject, row.batch) for row in self.rows))

    def row(self, subject: str, batch: int, competitor: str, precision: str) -> Row | None:
        return next((r for r in self.case(subject, batch) if (r.competitor, r.precision) == (competitor, precision)), None)

    def fastest_peer(self, engine: Row) -> Row | None:
        """The fastest competitor that ran the same in the same precision."""
        return next(
            (r for r in self.case(engine.subject, engine.batch) if r.competitor != ENGINE and r.precision == engine.precision), None
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": "competitors", "format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def load(cls, path: str | Path) -> CompetitorsResult:
        """What was written to `path`. Raises InvalidFile where it is missing, or something else."""
        found: CompetitorsResult = read_result(path, {"competitors": cls}, "`ltcompile bench --competitors`")
        return found
