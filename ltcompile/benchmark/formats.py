"""One table of all formats: what each file holds and answers, and what it takes in its own runtime, in turns with the dense network's file."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share
from ltcompile.core.records import FormatRow, provenance
from ltcompile.core.task import Task
from ltcompile.core.ticket import Ticket
from ltcompile.deploy import formats, shrink
from ltcompile.deploy.job import ShrinkJob
from ltcompile.deploy.judges import TaskJudge
from ltcompile.errors import Disagreement, InvalidSetting, LtcompileError, Unavailable, unknown
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.lower.answers import feeds, of_file, of_network, probe
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import compare
from ltcompile.paths import write_json
from ltcompile.pruned import Pruned, pruned_of
from ltcompile.runtimes import Feeds, Options, Session, Subject, Workers, declared, load_apart, unavailable
from ltcompile.timing import interleave, level, speedup

IN_PROCESS = {".pt2": "PyTorch", ".safetensors": "PyTorch", ".so": "C interface"}  # formats that this process runs itself
SKIPPED = {".cpp": "it is the source of .so, which is timed", ".html": "a browser runs it: the page shows its error and its time"}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class FormatsResult:
    """The rows; the metric of the fp32 network in PyTorch, where a task measures it; and which rows lose more than is allowed."""

    rows: list[FormatRow]
    metric: str = ""
    reference: float | None = None
    dropped: list[str] = field(default_factory=list)
    test_images: int | None = None  # on which the metric was measured


@dataclass(frozen=True)
class _Opened:
    """A file in its runtime: its call, its record, and what opening it took."""

    call: Callable[[], object]
    record: Mapping[str, Any]
    start_s: float
    peak_bytes: Callable[[], int | None]
    run: Callable[[Inputs], Mapping[str, Any]]
    session: Session | None  # held as long as its call


def bench_formats(
    target: str | Path | Ticket | Pruned,
    names: Sequence[str] | None = None,
    *,
    precisions: Sequence[str] = ("fp32",),
    threads: int = 1,
    batch: int = 1,
    task: Task | None = None,
    max_drop: float | None = None,
    seconds: float = 2.0,
    output: str | Path | None = None,
    on_row: Callable[[FormatRow], None] = lambda row: None,
) -> FormatsResult:
    """Write a ticket or `Pruned` in each format, read every file back, and time it next to the dense network in the same format.

    A format that cannot be written, answers wrongly, crashes or hangs is a row with its reason.

    Args:
        names: endings, such as ".xml"; None for all formats.
        precisions: "fp32", "fp16" or "int8", each for the formats that hold it; int8 takes its ranges from `task`.
        threads: of one operation, where the runtime takes a number.
        batch: rows of one call.
        task: measures the metric on its test split.
        max_drop: points of accuracy, or units of the metric, below the fp32 network that a row may lose; `dropped` names those that do.
        output: the JSON file to write.

    Raises:
        InvalidSetting: `max_drop` has no task, or is not finite. UnknownName: no such format or precision.
    """
    known = formats.by_suffix()
    for name in names or ():
        if name not in known:
            raise unknown("format", name, list(known))
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, list(PRECISIONS))
    if max_drop is not None and not math.isfinite(max_drop):
        raise InvalidSetting(f"max_drop={max_drop} allows any loss; name points of accuracy, or units of the metric")
    if max_drop is not None and task is None:
        raise InvalidSetting(f"max_drop={max_drop} compares the task's metric; pass a ticket whose data is here, or leave it out")
    busy, pruned = busy_share(), pruned_of(target)
    judge = TaskJudge(pruned.small, task, chooses=False) if task is not None else None
    with in_eval_mode(pruned.small):
        reference = judge.test({"dense": of_network(pruned.small)})["dense"] if judge else None
    rows: list[FormatRow] = []
    for name in names or known:
        held = [precision for precision in precisions if precision in getattr(known[name], "PRECISIONS", PRECISIONS)]
        for precision in held[:1] if _why_not(known[name]) else held:
            for runtime in _runtimes(known[name], precision):
                with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
                    rows.append(_row(pruned, name, runtime, precision, Path(folder), judge, threads, batch, seconds))
                on_row(rows[-1])
    dropped = [
        row.title
        for row in rows
        if task is not None and max_drop is not None and reference is not None and row.metric is not None
        if -task.metric.gain(reference, row.metric) > max_drop
    ]
    result = FormatsResult(rows, task.metric.name if task else "", reference, dropped, task.sizes["test"] if task else None)
    if output is not None:
        settings = {"batch": batch, "max_drop": max_drop, "metric": result.metric, "reference": reference, "dropped": dropped}
        settings["test_images"] = result.test_images
        value = {"kind": "formats", "format": 1, **settings, "rows": [row.to_json() for row in rows], "busy_share": busy}
        origin = {"ticket_checksum": None if pruned.ticket is None else pruned.ticket.checksum, "network_checksum": pruned.checksum}
        write_json(output, {**value, **origin, "provenance": provenance()})
    return result


def _why_not(kind: ModuleType) -> str | None:
    """Why files of a format are not measured, in any precision, or None."""
    return SKIPPED.get(kind.SUFFIX) or formats.unavailable(kind)


def _runtimes(kind: ModuleType, precision: str) -> list[str]:
    """What runs files of a format: its own runtime, then others that are installed."""
    also = [name for name in getattr(kind, "ALSO_RUN_BY", ()) if precision == "fp32" and unavailable(name, "cpu") is None]
    return [str(getattr(kind, "RUNTIME", IN_PROCESS.get(kind.SUFFIX, "none here"))), *also]


def _row(
    pruned: Pruned,
    name: str,
    runtime: str,
    precision: str,
    folder: Path,
    judge: TaskJudge | None,
    threads: int,
    batch: int,
    seconds: float,
) -> FormatRow:
    takes_threads = name not in IN_PROCESS and runtime != "none here" and declared(runtime, "THREADS")
    row = FormatRow(name, runtime, precision, threads if takes_threads else 0)
    if reason := _why_not(formats.by_suffix()[name]):
        return replace(row, reason=reason)
    try:
        small = _opened(pruned, folder / f"small{name}", row, judge, batch)
        row = replace(row, bytes=small.record["bytes"])
        if "not_run" in small.record:
            return replace(row, reason=small.record["not_run"])
        row = replace(row, max_error=small.record["onnx_error"], start_s=small.start_s, peak_bytes=small.peak_bytes())
        if judge is not None:
            row = replace(row, metric=judge.test({"small": small.run})["small"])
        calls, reason = {"small": small}, ""
        if pruned.dense is not None:
            try:
                calls["dense"] = _opened(
                    replace(pruned, small=pruned.dense, dense=None, plan=None), folder / f"dense{name}", row, judge, batch
                )
            except LtcompileError as error:
                reason = f"no speedup: the dense network: {error}"
        times = interleave({key: one.call for key, one in calls.items()}, seconds=seconds)
    except LtcompileError as error:
        return replace(row, reason=str(error).replace(f"{folder}/", ""))
    at, low, high = level(times["small"])
    row = replace(row, ms=at, ms_low=low, ms_high=high, reason=reason)
    if "dense" not in times:
        return row
    ratio, low, high = speedup(times["dense"], times["small"])
    return replace(row, speedup=ratio, speedup_low=low, speedup_high=high)


def _opened(pruned: Pruned, path: Path, row: FormatRow, judge: TaskJudge | None, batch: int) -> _Opened:
    """A file that `shrink` wrote and compared, opened by its runtime and compared again at this batch. Raises LtcompileError."""
    if row.precision == "int8" and judge is None:
        raise Unavailable("int8 takes its ranges from the images of a ticket's data, which are not here")
    task = judge.task if judge is not None and row.precision == "int8" else None
    done = shrink(pruned, path, precision=row.precision, calibrate=task)  # type: ignore[arg-type]
    if "not_run" in done.record:
        return _Opened(lambda: None, done.record, 0.0, lambda: None, lambda _: {}, None)
    inputs = probe(done.module, pruned.example, batch)
    kind, job = formats.of(path), ShrinkJob(path, row.precision)  # type: ignore[arg-type]
    fixed = replace(pruned, small=done.module, dense=None, plan=None)
    names = pruned.input_names or Inputs.of(pruned.small, pruned.example).names
    own = row.format in IN_PROCESS or row.runtime == kind.RUNTIME
    began = time.perf_counter()
    run = kind.reader(done.module, fixed, job) if own else of_file(path, names, row.runtime)
    if row.format in IN_PROCESS:
        run(inputs)
        return _Opened(lambda: run(inputs), done.record, time.perf_counter() - began, lambda: None, run, None)
    subject = Subject(path.name, onnx=path) if row.format == ".onnx" else Subject(path.name, file=path)
    began = time.perf_counter()
    deployment = Deployment(formats.device(kind), row.runtime, batch, row.precision, row.threads)
    session = load_apart(subject, deployment)
    arrays = feeds(inputs, pruned.input_names)
    given = arrays if row.runtime in formats.NAMED else list(arrays.values())
    bound = session.bind(given)
    bound.call()
    start_s, found = time.perf_counter() - began, bound.read()
    expected = {name: value.numpy() for name, value in run(inputs).items()}
    ordered = {name: found[name] for name in expected} if expected.keys() == found.keys() else found
    if (compared := compare({name: np.asarray(value) for name, value in ordered.items()}, expected)).refusal:
        raise Disagreement(f"{row.runtime} answers otherwise with {row.threads} threads at batch {batch}: {compared.refusal}")
    return _Opened(bound.call, done.record, start_s, lambda: _peak_bytes(subject, deployment, given), run, session)


def _peak_bytes(subject: Subject, deployment: Deployment, given: Feeds) -> int | None:
    """What the first answer takes in a process that has opened nothing before: other sessions leave memory behind that would not count.

    None on a GPU.
    """
    if deployment.device != "cpu":
        return None
    with Workers() as fresh:
        session = fresh.load(subject, deployment, Options(watch=True))
        session.run(given)
        return session.peak_bytes()
