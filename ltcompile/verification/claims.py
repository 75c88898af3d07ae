"""What report.json or bench.json claims of a network, as checked, typed values."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltcompile.core.fields import SchemaError, reject, short, table
from ltcompile.core.network_file import NetworkFile
from ltcompile.errors import InvalidFile
from ltcompile.paths import read_json

T = TypeVar("T")
FORMAT = 1
WHAT = "result of `ltcompile report`, `bench` or `shrink`"


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
class _Metric:
    name: str


@dataclass(frozen=True)
class _MetricValue:
    metric: _Metric
    value: float | None
    split: str

    def __str__(self) -> str:
        return f"{self.metric.name} {'unknown' if self.value is None else format(self.value, '.4g')} on {self.split} data"


@dataclass(frozen=True)
class _Subject:
    params: int


@dataclass(frozen=True)
class _Provenance:
    machine: dict[str, Any]
    command: str
    stage: str = ""


@dataclass(frozen=True)
class _Timed:
    """The part that a report and a benchmark share; older ones hold less."""

    subjects: dict[str, _Subject]
    rows: list[Timing]
    target: str | None = None
    file: NetworkFile | None = None
    ticket_checksum: str | None = None
    network_checksum: str | None = None
    metric: _MetricValue | None = None

    @property
    def checksum(self) -> str | None:
        return self.ticket_checksum or self.network_checksum

    @property
    def of_a_ticket(self) -> bool:
        return self.file is None and self.checksum is not None


@dataclass(frozen=True, kw_only=True)
class _Bench(_Timed):
    provenance: _Provenance


@dataclass(frozen=True)
class _Shrink:
    output: str
    precision: str
    bytes: int
    dense_params: int | None
    recalibrated: bool = False
    ticket_checksum: str | None = None
    network_checksum: str | None = None


@dataclass(frozen=True)
class _Ticket:
    checksum: str
    seed: int
    level: int


@dataclass(frozen=True)
class _Data:
    shape: list[int]
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Point:
    arm: str
    seed: int
    level: int
    test_score: float | None


@dataclass(frozen=True)
class _Report:
    ticket: _Ticket
    data: _Data
    points: list[_Point]
    shrinks: list[NetworkFile]
    bench: _Timed | None
    provenance: list[_Provenance]


def is_page_of_a_network(path: Path) -> bool:
    """Whether a report.json is of a network without a ticket: it repeats the figures of a bench.json, and claims nothing of its own."""
    value = read_json(path, WHAT)
    return isinstance(value, Mapping) and value.get("kind") == "own report"


def read_claims(path: Path) -> Claims:
    """The claims in `path`.

    Raises:
        InvalidFile: it is missing, damaged, or neither a report.json nor a bench.json nor the record of `shrink`.
    """
    value = read_json(path, WHAT)
    try:
        kind = value.get("kind") if isinstance(value, Mapping) else reject(value, "a table", "")
        if not isinstance(kind, str) or kind not in KINDS:
            raise SchemaError(f'it says "kind": {short(kind)}, not "report", "bench" or "shrink"')
        if value.get("format") != FORMAT:
            raise SchemaError(f"its format is {short(value.get('format'))}, this ltcompile reads format {FORMAT}")
        shape, claims_of = KINDS[kind]
        claims = claims_of(path.name, table(value, shape))
        _check_values(claims)
        return claims
    except (SchemaError, RecursionError) as error:
        raise InvalidFile(f"{path} cannot be read as a {WHAT}: {error}; make it again") from error


def _of_bench(name: str, bench: _Bench) -> Claims:
    return Claims(
        name,
        _small(bench.rows),
        bench.provenance.machine,
        _dense_params(bench),
        bench.target,
        bench.file,
        bench.of_a_ticket,
        bench.checksum,
        accuracy=bench.metric.value if bench.metric and (bench.metric.metric.name, bench.metric.split) == ("accuracy", "test") else None,
        metric=str(bench.metric) if bench.metric else None,
    )


def _of_report(name: str, report: _Report) -> Claims:
    stage = next((p for p in report.provenance if p.stage == "bench"), None)
    ticket, bench = report.ticket, report.bench or _Timed({}, [])
    arm = "ticket" if ticket.level else "dense"
    accuracies = [p.test_score for p in report.points if (p.arm, p.seed, p.level) == (arm, ticket.seed, ticket.level)]
    return Claims(
        name,
        _small(bench.rows),
        stage.machine if stage else {},
        _dense_params(bench),
        bench.target or (_target(stage.command, report.shrinks) if stage else None),
        bench.file,
        bench.of_a_ticket,
        ticket.checksum,
        tuple(report.data.shape),
        report.shrinks,
        next(iter(accuracies), None),
        report.data.sizes.get("test"),
    )


def _of_shrink(name: str, made: _Shrink) -> Claims:
    file = NetworkFile(made.output, made.precision, made.bytes, made.recalibrated, made.ticket_checksum or "")
    return Claims(name, [], {}, made.dense_params, None, checksum=made.ticket_checksum or made.network_checksum, files=[file])


KINDS: dict[str, tuple[type[Any], Callable[[str, Any], Claims]]] = {
    "report": (_Report, _of_report),
    "bench": (_Bench, _of_bench),
    "shrink": (_Shrink, _of_shrink),
}


def _small(rows: list[Timing]) -> list[Timing]:
    return [row for row in rows if row.subject != "dense"]


def _dense_params(timed: _Timed) -> int | None:
    return timed.subjects["dense"].params if "dense" in timed.subjects else None


def _target(command: str, files: list[NetworkFile]) -> str | None:
    """The file that a command line timed: older reports record it only there."""
    try:
        words = {Path(word).name for word in shlex.split(command)}
    except ValueError:
        return None
    return next((file.output for file in files if file.output in words), None)


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
