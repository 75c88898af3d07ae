"""The files of a run folder as checked, typed values; a wrong field raises InvalidFile, which names it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ltcompile.core.arm import ArmKind
from ltcompile.core.curve import CurvePoint, CurveTiming, Picked
from ltcompile.core.fields import SchemaError, short
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.reached import TOLERANCE, Reached
from ltcompile.core.records import Data, Measurement, TicketNote, Trained, Verdict
from ltcompile.core.result_file import kind_of, read_result
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import ACCURACY, Metric, MetricValue
from ltcompile.errors import InvalidFile


@dataclass(frozen=True)
class Provenance:
    versions: dict[str, str]
    machine: dict[str, Any]
    commit: str | None
    date: str
    command: str


@dataclass(frozen=True)
class Model:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Width:
    layer: str
    before: int
    after: int
    frozen: str | None


@dataclass(frozen=True)
class Dead:
    layer: str
    channels: int
    of: int


@dataclass(frozen=True)
class Spike:
    epoch: int
    loss: float
    lowest: float


@dataclass(frozen=True)
class Unhealthy:
    """A finished training with dead channels, jumps of its loss, or batches split for lack of memory."""

    seed: int
    arm: ArmKind
    level: int
    dead: list[Dead]
    spikes: list[Spike]
    parts: int


@dataclass(frozen=True)
class Search:
    name: str
    model: Model
    data: Data
    config: dict[str, Any]
    recipe: dict[str, Any]
    seeds: list[int]
    rows: list[Trained]
    widths: list[Width]
    verdict: Verdict
    ticket: TicketNote
    seconds: float
    provenance: Provenance
    health: list[Unhealthy] | None = None  # None in searches by versions that did not record it
    target: Reached | None = None
    metric: Metric = ACCURACY

    def arm(self, arm: str, level: int | None = None) -> list[Trained]:
        return [row for row in self.rows if row.arm == arm and level in (None, row.level)]

    @property
    def dense(self) -> Trained:
        return self.arm("dense")[0]

    @property
    def chosen(self) -> list[Trained]:
        """The rows of the ticket's level, one a seed; at level 0 the ticket is the dense network."""
        return self.arm("ticket" if self.ticket.level else "dense", self.ticket.level)

    @property
    def ticket_row(self) -> Trained:
        return next(row for row in self.chosen if row.seed == self.ticket.seed)


@dataclass(frozen=True)
class RepairedLayer:
    before: float | None
    after: float | None
    reason: str


@dataclass(frozen=True)
class Repaired:
    """What `shrink --repair` recorded: errors relative to the dense network's, by layer and of the outputs."""

    layers: dict[str, RepairedLayer]
    as_cut: float
    recalibrated: float
    repaired: float
    inputs: int
    agreement: dict[str, float]


@dataclass(frozen=True)
class Shrink:
    """The record of `shrink`; what only a dense network gives is None without one, and errors of files that do not run where they were written."""

    output: str
    precision: str
    bytes: int
    dense_bytes: int | None
    params: int
    dense_params: int | None
    macs: int
    dense_macs: int | None
    equality_error: float | None
    onnx_error: float | None
    tolerance: float | None
    recalibrated: bool
    folded_batch_norms: int
    seconds: float
    provenance: Provenance
    ticket_checksum: str = ""  # of a network without a ticket
    target: Reached | None = None
    repair: Repaired | None = None

    def figures(self) -> dict[str, Any]:
        """What a page shows; it lists all provenance in one place. `within_tolerance` is None where no file ran."""
        errors = [error for error in (self.equality_error, self.onnx_error) if error is not None]
        within = None if self.tolerance is None else max(errors) <= self.tolerance
        return {**{name: value for name, value in asdict(self).items() if name != "provenance"}, "within_tolerance": within}


@dataclass(frozen=True)
class Subject:
    params: int
    macs: int


@dataclass(frozen=True)
class Bench:
    subjects: dict[str, Subject]
    rows: list[Measurement]
    skipped: dict[str, str]
    images: str
    busy_share: float | None
    provenance: Provenance
    target: str | None = None  # None, as those below, in benchmarks by versions that did not record it
    file: NetworkFile | None = None  # also None where a ticket itself was timed
    ticket_checksum: str | None = None
    network_checksum: str | None = None
    metric: MetricValue | None = None  # of networks other than classifiers of a ticket


@dataclass(frozen=True)
class Sweep:
    points: list[CurvePoint]
    rows: list[CurveTiming]
    pick: Picked
    skipped: dict[str, str]
    energy: str
    images: str
    busy_share: float | None
    ticket_checksum: str
    provenance: Provenance


@dataclass(frozen=True)
class Run:
    folder: Path
    search: Search
    shrinks: list[Shrink]
    bench: Bench | None
    sweep: Sweep | None = None


def read_run(folder: Path) -> Run:
    """Every result in a run folder.

    Raises:
        InvalidFile: no such folder, no search.json in it, or a file that is damaged.
    """
    if not folder.is_dir():
        raise InvalidFile(f"{folder} is not a run folder; name one that `ltcompile find` made")
    run = RunFolder(folder)
    if not run.summary.is_file():
        raise InvalidFile(f"{folder} is not a run folder: it has no {run.summary.name}; make it with `ltcompile find`")
    search = read_result(run.summary, {"search": Search}, "`ltcompile find`", _check_search)
    return Run(
        folder,
        search,
        read_shrinks(folder),
        read_result(run.bench, {"bench": Bench}, "`ltcompile bench`", check_bench) if run.bench.is_file() else None,
        read_result(run.sweep, {"sweep": Sweep}, "`ltcompile sweep`", partial(_check_sweep, metric=search.metric))
        if run.sweep.is_file()
        else None,
    )


def read_shrinks(folder: Path) -> list[Shrink]:
    """What `shrink` recorded in a folder. Raises InvalidFile where a record is damaged."""
    return [read_result(p, {"shrink": Shrink}, "`ltcompile shrink`", _check_shrink) for p in shrink_records(folder)]


def shrink_records(folder: Path) -> list[Path]:
    """The records of `shrink` in a folder, by name."""
    return [p for p in sorted(folder.glob("[!.]*.json")) if p.is_file() and kind_of(p) == "shrink"]


def _check_search(search: Search) -> None:
    """Raises SchemaError where the arithmetic of a report is impossible, although each field has its type."""
    if not search.arm("dense"):
        raise SchemaError('rows holds no "dense" network to compare with')
    if all(row.seed != search.ticket.seed for row in search.chosen):
        raise SchemaError(f"rows holds no network of the ticket's level {search.ticket.level} and seed {search.ticket.seed}")
    for i, row in enumerate(search.rows):
        _check_positive(f"rows[{i}]", filters=row.filters, params=row.params, macs=row.macs)
        _check_shares(f"rows[{i}]", train_accuracy=row.train_accuracy)
        if search.metric.is_share:
            _check_shares(f"rows[{i}]", val_score=row.val_score, test_score=row.test_score)
    for width in search.widths:
        _check_positive(f"widths of {width.layer}", before=width.before, after=width.after)
    _check_shares("verdict", confidence=search.verdict.confidence)
    for level, difference in search.verdict.differences.items():
        if not (level.isdecimal() and len(level) < 9) or not {"mean", "low", "n"} <= set(difference):
            raise SchemaError(f"verdict.differences[{short(level)}] is not a level with mean, low and n")
    for control, gap in search.verdict.gaps.items():
        if not {"mean", "low", "high"} <= set(gap) or (gap["low"] is None) != (gap["high"] is None):
            raise SchemaError(f"verdict.gaps[{short(control)}] is not a difference with mean, and low and high or neither")
    _check_target(search.target)
    _check_positive("data.sizes", **{name: search.data.sizes.get(name, 0) for name in ("train", "val", "test")})


def _check_target(target: Reached | None) -> None:
    if target is None:
        return
    if target.measure not in TOLERANCE:
        raise SchemaError(f"target is of {short(target.measure)}, which is none of {', '.join(TOLERANCE)}")
    _check_positive("target", requested=target.requested, found=1.0 if target.found is None else target.found)


def _check_shrink(shrink: Shrink) -> None:
    _check_target(shrink.target)
    if (shrink.onnx_error is None) != (shrink.tolerance is None):
        raise SchemaError("onnx_error and tolerance are both numbers, or none of them is, where no file ran")
    sizes = {name: getattr(shrink, name) for name in ("bytes", "dense_bytes", "params", "dense_params", "macs", "dense_macs")}
    _check_positive("it", **{name: value for name, value in sizes.items() if value is not None})


def check_bench(bench: Bench) -> None:
    if bench.file is not None:
        _check_positive("file", bytes=bench.file.bytes)
    for name, subject in bench.subjects.items():
        _check_positive(f"subjects.{name}", params=subject.params, macs=subject.macs)
    for i, row in enumerate(bench.rows):
        if {row.subject, *(["dense"] if row.speedup is not None or bench.ticket_checksum else [])} - set(bench.subjects):
            raise SchemaError(f"rows[{i}] times {row.subject!r}, but subjects lacks it or dense")
        _check_timing(f"rows[{i}]", row)


def _check_sweep(sweep: Sweep, metric: Metric) -> None:
    known = {point.name for point in sweep.points}
    if len(known) < len(sweep.points) or "dense" not in known:
        raise SchemaError("points are not networks of different names, one of them dense")
    for point in sweep.points:
        where = f"points of {short(point.name)}"
        _check_positive(where, params=point.params, macs=point.macs, bytes=point.bytes)
        if metric.is_share:
            _check_shares(where, val_score=point.val_score, val_min=point.val_min, val_max=point.val_max)
        if not point.seeds or point.level < 0 or point.val_min > point.val_max or (point.val_sd or 0) < 0:
            raise SchemaError(f"{where}: its seeds, level or spread are impossible")
    timed = [(row.subject, row.runtime, row.device, row.dtype, row.batch) for row in sweep.rows]
    for i, row in enumerate(sweep.rows):
        if row.subject not in known or timed.count(timed[i]) > 1:
            raise SchemaError(f"rows[{i}] times {short(row.subject)}, which is none of the points, or is timed twice")
        if row.accuracy is not None:
            raise SchemaError(f"rows[{i}] has an accuracy, but a sweep never evaluates the test set")
        _check_timing(f"rows[{i}]", row)
        if (row.joules_per_image or 0) < 0:
            raise SchemaError(f"rows[{i}]: joules_per_image is {short(row.joules_per_image)}, below 0")
    if sweep.pick.name not in (None, *known):
        raise SchemaError(f"pick names {short(sweep.pick.name)}, which is none of the points")
    again = ("ms_p50", "speedup", "speedup_low", "speedup_high", "lead", "lead_low", "lead_high")
    _check_positive("pick", batch=sweep.pick.batch, **{name: value for name in again if (value := getattr(sweep.pick, name)) is not None})
    if sweep.pick.runner_up not in (None, *known):
        raise SchemaError(f"pick names {short(sweep.pick.runner_up)}, which is none of the points")


def _check_timing(where: str, row: Measurement) -> None:
    _check_positive(where, batch=row.batch, ms_p20=row.ms_p20, ms_p50=row.ms_p50, ms_p80=row.ms_p80)
    if not row.ms_p20 <= row.ms_p50 <= row.ms_p80:
        raise SchemaError(f"{where}: its latencies do not rise from p20 over p50 to p80")
    _check_shares(where, accuracy=row.accuracy)
    _check_speedup(where, (row.speedup_low, row.speedup, row.speedup_high))


def _check_speedup(where: str, interval: tuple[float | None, ...]) -> None:
    known = [value for value in interval if value is not None]
    if len(known) not in (0, 3) or (known and known[0] > known[2]):
        raise SchemaError(f"{where} has the speedup {short(interval)}, not a low bound, a value and a high bound")
    for value in known:
        _check_positive(where, speedup=value)


def _check_positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise SchemaError(f"{where}: {name} is {short(value)}, not above 0")


def _check_shares(where: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise SchemaError(f"{where}: {name} is {short(value)}, not a share between 0 and 1")
