"""Every network on every runtime at every batch size: answers checked first, then accuracy, then time.

The networks are what is compared, so those of one runtime, device and batch size run in turns; runtimes take turns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltcompile import numerics
from ltcompile.core.deployment import DEVICES, Deployment
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.records import Measurement, provenance
from ltcompile.core.result_file import FORMAT
from ltcompile.errors import Crashed, Disagreement, InvalidData, InvalidSetting, Unavailable
from ltcompile.lower.answers import answers, extended, feeds, of_session
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import Answers
from ltcompile.paths import write_json, write_text
from ltcompile.runtimes import Feeds, Options, Session, Subject, available, load_apart, unavailable
from ltcompile.timing import Times, interleave, speedup

if TYPE_CHECKING:
    from ltcompile.benchmark.reference import Reference
    from ltcompile.graph import Size

CHECKED = 128  # inputs on which answers in another precision are compared, or a few more: at least numerics.LEAST_INPUTS
_Expected = tuple[Answers, Answers | None]  # exact, and with the rounding of a precision
TF32_TOLERANCE = 1e-2  # of the largest logit: TF32 keeps 10 bits, which are about 3e-4 a layer, 1e-3 after a dozen


@dataclass(frozen=True)
class BenchResult:
    """The rows; what was left out, such as "openvino (cpu)" or "compile (cpu): ticket", with the reason; and the settings of
    each runtime on each device."""

    rows: list[Measurement] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    details: dict[str, dict[str, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_csv(self) -> str:
        """The rows as CSV with a header; what is not known is left empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_json() for row in self.rows)
        return text.getvalue()


def write_result(
    path: Path, result: BenchResult, sizes: Mapping[str, Size], busy: float | None, *, file: NetworkFile | None, **more: Any
) -> None:
    """Write bench.json to `path`, and the rows to its .csv; `file` is what was timed, `more` are further fields. Raises InvalidFile."""
    described = {"file": file and dataclasses.asdict(file), "subjects": {n: {"params": s.params, "macs": s.macs} for n, s in sizes.items()}}
    known = {"kind": "bench", "format": FORMAT, **more, **described, "busy_share": busy, "provenance": provenance()}
    write_json(path, known | result.to_json())
    write_text(path.with_suffix(".csv"), result.to_csv())


@dataclass(frozen=True)
class _Job:
    """What stays the same over all runtimes."""

    subjects: Sequence[Subject]
    references: Mapping[str, Reference]  # by subject
    reference: str
    inputs: Mapping[int, Inputs]  # by batch size
    expected: Mapping[tuple[str, int], _Expected]  # by subject and batch size
    checked: Inputs  # on which all answers in another precision than fp32 are compared, in batches of the largest size
    expected_of_checked: Mapping[str, _Expected]  # of subjects in another precision
    labelled: Inputs
    labels: NDArray[np.integer[Any]] | None
    untrained: Collection[str]

    @property
    def largest(self) -> int:
        return max(self.inputs)


@dataclass(frozen=True)
class _Loaded:
    """A subject in one runtime, checked: sessions, errors and peaks by batch size."""

    sessions: dict[int, Session]
    max_error: dict[int, float]
    peak_bytes: dict[int, int | None]
    accuracy: float | None


def measure(
    subjects: Sequence[Subject],
    inputs: Inputs,
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    reference: str = "dense",
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    seconds_per_row: float = 2.0,
    references: Mapping[str, Reference] | None = None,
    untrained: Collection[str] = (),
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Measure `subjects` on real `inputs`, in the order of the rows that `on_row` sees.

    Behind the rows of `inputs` follows noise like them where a batch is larger. With `labels` (N,), the classes of all rows, every runtime's
    accuracy is measured, but for subjects that are `untrained`. Speedups are against the subject named `reference` (None where
    a runtime cannot run that one). None for `runtimes` or `devices` takes what works and records why the others do not; a runtime or device that
    is requested must work somewhere.

    Before anything is timed, the answers at every batch size are compared with the subject's reference, fp32 by PyTorch: with its module,
    or without one with its file's own graph, or with what `references` has under its name. Subjects whose files are in another precision are
    compared within its rounding, on 128 inputs or more, as `numerics` says.

    Raises:
        Unavailable: a runtime or device that was requested does not work here, or not for one of the subjects.
        UnknownName: there is no such runtime.
        Disagreement: a runtime's answers are not the network's.
        InvalidSetting, InvalidData: settings or inputs that make no sense.
    """
    _check(subjects, inputs, labels, reference, batches)
    result = BenchResult()
    pairs = _working(runtimes, devices, result.skipped)
    job = _job(subjects, references or {}, inputs, batches, reference, labels, untrained)
    loaded = []
    for runtime, device in pairs:
        _load_libraries(job, runtime, device)
        loads = {subject.name: partial(_load, job, subject, runtime, device) for subject in subjects}
        loaded.append(_load_all(loads, f"{runtime} ({device})", result, required=runtimes is not None))
    for row in (row for group in loaded for row in _rows(job, group, seconds_per_row, result.skipped)):
        result.rows.append(row)
        if on_row:
            on_row(row)
    return result


def _job(
    subjects: Sequence[Subject],
    references: Mapping[str, Reference],
    inputs: Inputs,
    batches: Sequence[int],
    reference: str,
    labels: NDArray[np.integer[Any]] | None,
    untrained: Collection[str],
) -> _Job:
    from ltcompile.benchmark.reference import reference_of

    largest = max(batches)
    found = {s.name: references.get(s.name) or reference_of(s) for s in subjects}
    timed = {batch: extended(inputs, batch) for batch in batches}
    rounded = {name: one for name, one in found.items() if one.rounded is not None}
    checked = extended(inputs, -(-CHECKED // largest) * largest) if rounded else inputs
    expected = {(name, batch): one.expected(some, batch) for name, one in found.items() for batch, some in timed.items()}
    of_checked = {name: one.expected(checked, largest) for name, one in rounded.items()}
    return _Job(subjects, found, reference, timed, expected, checked, of_checked, inputs, labels, untrained)


def _check(
    subjects: Sequence[Subject], inputs: Inputs, labels: NDArray[np.integer[Any]] | None, reference: str, batches: Sequence[int]
) -> None:
    names = [s.name for s in subjects]
    if len(set(names)) != len(names):
        raise InvalidSetting(f"two subjects have one name: {', '.join(names)}")
    if reference not in names:
        raise InvalidSetting(f"the reference {reference!r} is none of the subjects: {', '.join(names)}")
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InvalidSetting(f"batch sizes must be different and at least 1, not {list(batches)}")
    fractions = [tensor for tensor in inputs.tensors if tensor.is_floating_point()]
    bad = (lambda t: ~t.isfinite()) if inputs.is_one_tensor else torch.isnan  # a mask of attention next to images holds -inf
    if fractions and (not any(t.any() for t in fractions) or any(bad(t).any() for t in fractions)):
        raise InvalidData("inputs are all zero or not finite; measure on real ones")
    if labels is not None and labels.shape != (inputs.batch,):
        raise InvalidData(f"{inputs.batch} inputs need labels ({inputs.batch},), not {labels.shape}")


def _working(runtimes: Sequence[str] | None, devices: Sequence[str] | None, skipped: dict[str, str]) -> list[tuple[str, str]]:
    """The (runtime, device) pairs that work; the reasons of the others go to `skipped`."""
    reasons = {(b, d): reason for d in devices or DEVICES for b, reason in _reasons(runtimes, d).items()}
    for wanted in [*(runtimes or []), *(devices or [])]:
        here = {pair: reason for pair, reason in reasons.items() if wanted in pair}
        if all(here.values()):
            raise Unavailable("; ".join(f"{b} ({d}): {reason}" for (b, d), reason in here.items()))
    skipped.update({f"{b} ({d})": reason for (b, d), reason in reasons.items() if reason})
    return [pair for pair, reason in reasons.items() if reason is None]


def _reasons(runtimes: Sequence[str] | None, device: str) -> dict[str, str | None]:
    return available(device, every=False) if runtimes is None else {b: unavailable(b, device) for b in runtimes}


def _load_all(loads: Mapping[str, Callable[[], _Loaded]], place: str, result: BenchResult, *, required: bool) -> dict[str, _Loaded]:
    """The subjects, by name, that load at `place`; why the others do not, and the settings there, go to `result`.

    Raises:
        Unavailable: one cannot be loaded and all are `required`; a crash is a reason.
    """
    loaded = {}
    for name, load in loads.items():
        try:
            loaded[name] = load()
        except Unavailable as error:
            if required and not isinstance(error, Crashed):
                raise
            result.skipped[f"{place}: {name}"] = str(error)
        else:
            result.details[place] = next(iter(loaded[name].sessions.values())).details
    return loaded


def _open(job: _Job, subject: Subject, runtime: str, device: str, batch: int) -> Session:
    return load_apart(subject, Deployment(device, runtime, batch, job.references[subject.name].precision), Options(watch=True))


def _load_libraries(job: _Job, runtime: str, device: str) -> None:
    """Run one network and throw it away, so that what a runtime loads on its first run counts as no subject's memory."""
    batch = min(job.inputs)
    try:
        _open(job, job.subjects[-1], runtime, device, batch).run(feeds(job.inputs[batch]))
    except Unavailable:
        return  # _load meets it again, and says so


def _load(job: _Job, subject: Subject, runtime: str, device: str) -> _Loaded:
    loaded = _Loaded({}, {}, {}, None)
    for batch in sorted(job.inputs):
        session = loaded.sessions[batch] = _open(job, subject, runtime, device, batch)
        found = answers(of_session(session), job.inputs[batch], batch)
        loaded.peak_bytes[batch] = session.peak_bytes()
        loaded.max_error[batch] = _agree(subject, session, found, job.expected[subject.name, batch], f"at batch {batch}")
    largest = of_session(session := loaded.sessions[job.largest])
    if (expected := job.expected_of_checked.get(subject.name)) is not None:
        found = answers(largest, job.checked, job.largest)
        _agree(subject, session, found, expected, f"on {job.checked.batch} inputs")
    if job.labels is None or subject.name in job.untrained:
        return loaded
    outputs = next(iter(answers(largest, _filled(job.labelled, job.largest), job.largest).values()))
    return dataclasses.replace(loaded, accuracy=float((outputs[: len(job.labels)].argmax(1) == job.labels).mean()))


def _filled(inputs: Inputs, batch: int) -> Inputs:
    """`inputs`, their rows repeated where they are fewer than a batch."""
    return inputs.resized(max(batch, inputs.batch))


def _agree(subject: Subject, session: Session, found: Answers, expected: _Expected, where: str) -> float:
    """The largest difference to fp32 by PyTorch, relative to the largest magnitude of the output. Raises Disagreement."""
    exact, rounded = expected
    tolerance = TF32_TOLERANCE if session.dtype == "tf32" else numerics.FP32_TOLERANCE
    if reason := numerics.compare(found, exact, rounded, tolerance).refusal:
        raise Disagreement(
            f"{session.deployment.runtime} ({session.deployment.device}) and the reference disagree on {subject.name!r} {where}: {reason}; "
            "export the network again, or leave this runtime out"
        )
    return numerics.compare(found, exact).error


def _rows(job: _Job, loaded: dict[str, _Loaded], seconds: float, skipped: dict[str, str]) -> Iterator[Measurement]:
    for batch, inputs in job.inputs.items() if loaded else ():
        times = _timed(loaded, feeds(inputs), batch, seconds, skipped)
        if times is None:
            return
        for name, one in loaded.items():
            yield _measurement(name, one, batch, times[name], None if name == job.reference else times.get(job.reference))


def _timed(loaded: Mapping[str, _Loaded], inputs: Feeds, batch: int, seconds: float, skipped: dict[str, str]) -> dict[str, Times] | None:
    """The times of subjects in turns; None where their process ended, with its reason in `skipped`."""
    try:
        return interleave({name: one.sessions[batch].bind(inputs).call for name, one in loaded.items()}, seconds=seconds)
    except Crashed as error:
        deployment = next(iter(loaded.values())).sessions[batch].deployment
        skipped[f"{deployment.runtime} ({deployment.device}): batch {batch}"] = str(error)
        return None


def _dtype(session: Session) -> str:
    """What products are computed in. On CPUs runtimes multiply integers, and cast half precision to single first; on GPUs ONNX Runtime's
    providers do it the other way around."""
    precision, device = session.deployment.precision, session.deployment.device
    if precision == "int8" and device == "cpu":
        return "int8"
    return "float16" if precision == "fp16" and device == "cuda" else session.dtype


def _measurement(name: str, one: _Loaded, batch: int, ms: Times, reference_ms: Times | None) -> Measurement:
    p20, p50, p80 = (float(q) for q in np.quantile(ms, [0.2, 0.5, 0.8]))
    ratio, low, high = speedup(reference_ms, ms) if reference_ms is not None else (None, None, None)
    deployment = one.sessions[batch].deployment
    return Measurement(
        subject=name,
        runtime=deployment.runtime,
        device=deployment.device,
        dtype=_dtype(one.sessions[batch]),
        batch=batch,
        ms_p20=p20,
        ms_p50=p50,
        ms_p80=p80,
        runs=ms.size,
        speedup=ratio,
        speedup_low=low,
        speedup_high=high,
        peak_bytes=one.peak_bytes[batch],
        accuracy=one.accuracy,
        max_error=one.max_error[batch],
    )
