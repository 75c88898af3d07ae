"""What report.json or bench.json claims of a network, as checked, typed values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcompile.core.fields import SchemaError, short
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.records import Data, TicketNote
from ltcompile.core.result_file import kind_of, read_result
from ltcompile.core.task import MetricValue


@dataclass(frozen=True)
class Timing:
    """A row of a benchmark: milliseconds a batch, and how many times as fast as the dense network, with a 95 % interval."""

    subject: str
    runtime: str
    device: str
    batch: int
    ms_p20: float
    ms_p50: float
    ms_p80: float
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Claims:
    """What is claimed, by a JSON file called `name`; what it does not hold is None or empty.

    `target` is the name of what was timed: the file `timed`, or a ticket or network in fp32 (`of_a_ticket`), on `machine`. `metric` says in words how
    good a network without a ticket is. `files` were shrunk from the
    ticket; `accuracy` is the ticket's own, on `test_images` images.
    """

    name: str
    timings: list[Timing]
    machine: dict[str, Any]
    dense_params: int | None
    target: str | None
    timed: NetworkFile | None = None
    of_a_ticket: bool = False
    checksum: str | None = None
    shape: tuple[int, ...] | None = None
    files: list[NetworkFile] = field(default_factory=list)
    accuracy: float | None = None
    test_images: int | None = None
    metric: str | None = None


@dataclass(frozen=True)
class _Subject:
    params: int


@dataclass(frozen=True)
class _Provenance:
    machine: dict[str, Any]
    stage: str = ""


@dataclass(frozen=True)
class _Timed:
    """The part that a report and a benchmark share."""

    subjects: dict[str, _Subject]
    rows: list[Timing]
    target: str | None = None
    file: NetworkFile | None = None
    ticket_checksum: str | None = None
    network_checksum: str | None = None
    metric: MetricValue | None = None

    @property
    def small(self) -> list[Timing]:
        return [row for row in self.rows if row.subject != "dense"]

    @property
    def dense_params(self) -> int | None:
        return self.subjects["dense"].params if "dense" in self.subjects else None

    @property
    def checksum(self) -> str | None:
        return self.ticket_checksum or self.network_checksum

    @property
    def of_a_ticket(self) -> bool:
        return self.file is None and self.checksum is not None


@dataclass(frozen=True, kw_only=True)
class _Bench(_Timed):
    provenance: _Provenance

    def claims(self, name: str) -> Claims:
        return Claims(
            name,
            self.small,
            self.provenance.machine,
            self.dense_params,
            self.target,
            self.file,
            self.of_a_ticket,
            self.checksum,
            accuracy=self.metric.value if self.metric and (self.metric.metric.name, self.metric.split) == ("accuracy", "test") else None,
            metric=str(self.metric) if self.metric else None,
        )


@dataclass(frozen=True)
class _Shrink:
    output: str
    precision: str
    bytes: int
    dense_params: int | None
    recalibrated: bool = False
    ticket_checksum: str | None = None
    network_checksum: str | None = None

    def claims(self, name: str) -> Claims:
        file = NetworkFile(self.output, self.precision, self.bytes, self.recalibrated, self.ticket_checksum or "")
        return Claims(name, [], {}, self.dense_params, None, checksum=self.ticket_checksum or self.network_checksum, files=[file])


@dataclass(frozen=True)
class _Point:
    arm: str
    seed: int
    level: int
    test_score: float | None


@dataclass(frozen=True)
class _Report:
    ticket: TicketNote
    data: Data
    points: list[_Point]
    shrinks: list[NetworkFile]
    bench: _Timed | None
    provenance: list[_Provenance]

    def claims(self, name: str) -> Claims:
        stage = next((p for p in self.provenance if p.stage == "bench"), None)
        ticket, bench = self.ticket, self.bench or _Timed({}, [])
        arm = "ticket" if ticket.level else "dense"
        accuracies = [p.test_score for p in self.points if (p.arm, p.seed, p.level) == (arm, ticket.seed, ticket.level)]
        return Claims(
            name,
            bench.small,
            stage.machine if stage else {},
            bench.dense_params,
            bench.target,
            bench.file,
            bench.of_a_ticket,
            ticket.checksum,
            tuple(self.data.shape),
            self.shrinks,
            next(iter(accuracies), None),
            self.data.sizes.get("test"),
        )


def is_page_of_a_network(path: Path) -> bool:
    """Whether a report.json is of a network without a ticket: it repeats the figures of a bench.json, and claims nothing of its own."""
    return bool(kind_of(path) == "own report")


def read_claims(path: Path) -> Claims:
    """The claims in `path`.

    Raises:
        InvalidFile: it is missing, damaged, or neither a report.json nor a bench.json nor the record of `shrink`.
    """
    shapes = {"report": _Report, "bench": _Bench, "shrink": _Shrink}
    found = read_result(path, shapes, "`ltcompile report`, `bench` or `shrink`", lambda found: _check_values(found.claims(path.name)))
    claims: Claims = found.claims(path.name)
    return claims


def _check_values(claims: Claims) -> None:
    """Raises SchemaError for values that no measurement can give."""
    for i, row in enumerate(claims.timings):
        speedups = (row.speedup_low, row.speedup, row.speedup_high)
        if len({value is None for value in speedups}) == 2:
            raise SchemaError(f"timing {i} has the speedup {short(speedups)}, not a low bound, a value and a high bound")
        positive = (row.batch, row.ms_p20, row.ms_p50, row.ms_p80, *(value for value in speedups if value is not None))
        if min(positive) <= 0:
            raise SchemaError(f"timing {i} holds {short(min(positive))}, which is not above 0")
    for share in (claims.accuracy, *(row.accuracy for row in claims.timings)):
        if share is not None and not 0 <= share <= 1:
            raise SchemaError(f"it claims the accuracy {short(share)}, not a share between 0 and 1")
    sizes = [file.bytes for file in (*claims.files, *([claims.timed] if claims.timed else []))]
    sizes += [n for n in (claims.dense_params, claims.test_images) if n is not None]
    if min(sizes, default=1) <= 0:
        raise SchemaError(f"it claims a size of {short(min(sizes))}")
