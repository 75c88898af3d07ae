"""Every network on every runtime at every batch size: answers checked first, then accuracy, then time.

The networks are what is compared, so those of one runtime, device and batch size run in turns; runtimes take turns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ltcompile import numerics
from ltcompile.core.deployment import DEVICES, Deployment
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.records import Measurement, provenance
from ltcompile.core.result_file import FORMAT
from ltcompile.errors import Crashed, Disagreement, InvalidData, InvalidSetting, Unavailable
from ltcompile.numerics import Expected, tile
from ltcompile.paths import write_json, write_text
from ltcompile.runtimes import Array, Feeds, Options, Session, Subject, available, load_apart, unavailable
from ltcompile.timing import Times, interleave, speedup

if TYPE_CHECKING:
    from ltcompile.benchmark.reference import Reference
    from ltcompile.graph import Size

CHECKED = 128  # images on which answers in another precision are compared: at least numerics.LEAST_INPUTS
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
    images: Array
    labels: NDArray[np.integer[Any]] | None
    reference: str
    batches: Sequence[int]
    references: Mapping[str, Reference]  # by subject
    checked: Array  # the images that all answers in another precision than fp32 are compared on
    expected: Mapping[str, Expected]  # by subject, for the images that are timed
    expected_of_checked: Mapping[str, Expected]  # of subjects in another precision


@dataclass(frozen=True)
class Loaded:
    """A subject in one runtime, checked: sessions, errors and peaks by batch size."""

    sessions: dict[int, Session]
    max_error: dict[int, float]
    peak_bytes: dict[int, int | None]
    accuracy: float | None


def measure(
    subjects: Sequence[Subject],
    images: Array,
    labels: NDArray[np.integer[Any]] | None = None,
    *,
    reference: str = "dense",
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    seconds_per_row: float = 2.0,
    references: Mapping[str, Reference] | None = None,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Measure `subjects` on real float32 `images` (N, C, H, W), in the order of the rows that `on_row` sees.

    A batch larger than N repeats images. With `labels` (N,), every runtime's accuracy on all images is measured. Speedups
    are against the subject named `reference` (None where a runtime cannot run that one). None for `runtimes` or `devices` takes what works
    and records why the others do not; a runtime or device that is requested must work somewhere.

    Before anything is timed, the answers at every batch size are compared with the subject's reference, fp32 by PyTorch: with its module,
    or without one with its file's own graph, or with what `references` has under its name. Subjects whose files are in another precision are
    compared within its rounding, on 128 images, as `numerics` says: where there are fewer, noise like these follows.

    Raises:
        Unavailable: a runtime or device that was requested does not work here, or not for one of the subjects.
        UnknownName: there is no such runtime.
        Disagreement: a runtime's answers are not the network's.
        InvalidSetting, InvalidData: settings or images that make no sense.
    """
    _check(subjects, images, labels, reference, batches)
    result = BenchResult()
    pairs = working(runtimes, devices, result.skipped)
    job = _job(subjects, images, labels, reference, batches, references or {})
    loaded = []
    for runtime, device in pairs:
        _load_libraries(job, runtime, device)
        loads = {subject.name: partial(_load, job, subject, runtime, device) for subject in subjects}
        loaded.append(load_all(loads, f"{runtime} ({device})", result, required=runtimes is not None))
    for row in (row for group in loaded for row in _rows(job, group, seconds_per_row, result.skipped)):
        result.rows.append(row)
        if on_row:
            on_row(row)
    return result


def _job(
    subjects: Sequence[Subject],
    images: Array,
    labels: NDArray[np.integer[Any]] | None,
    reference: str,
    batches: Sequence[int],
    references: Mapping[str, Reference],
) -> _Job:
    from ltcompile.benchmark.reference import reference_of

    found = {s.name: references.get(s.name) or reference_of(s) for s in subjects}
    timed = images[: max(batches)]
    checked = _with_noise(images[: max(CHECKED, *batches)])
    of_checked = {name: one.expected(checked) for name, one in found.items() if one.rounded is not None}
    expected = {name: of_checked.get(name) or one.expected(timed) for name, one in found.items()}
    return _Job(subjects, images, labels, reference, batches, found, checked, expected, of_checked)


def _with_noise(images: Array) -> Array:
    """`images` (N, C, H, W), and behind fewer than CHECKED of them seeded noise with their mean and spread a channel."""
    missing = CHECKED - len(images)
    if missing <= 0:
        return images
    noise = np.random.default_rng(0).standard_normal((missing, *images.shape[1:]), dtype=np.float32)
    mean, spread = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    return np.concatenate([images, mean + spread * noise])


def _check(
    subjects: Sequence[Subject], images: Array, labels: NDArray[np.integer[Any]] | None, reference: str, batches: Sequence[int]
) -> None:
    names = [s.name for s in subjects]
    if len(set(names)) != len(names):
        raise InvalidSetting(f"two subjects have one name: {', '.join(names)}")
    if reference not in names:
        raise InvalidSetting(f"the reference {reference!r} is none of the subjects: {', '.join(names)}")
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InvalidSetting(f"batch sizes must be different and at least 1, not {list(batches)}")
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise InvalidData(f"images must be float32 (N, C, H, W), not {images.dtype} {images.shape}")
    if not images.any() or not np.isfinite(images).all():
        raise InvalidData("images are all zero or not finite; measure on real ones")
    if labels is not None and labels.shape != images.shape[:1]:
        raise InvalidData(f"{len(images)} images need labels ({len(images)},), not {labels.shape}")


def working(runtimes: Sequence[str] | None, devices: Sequence[str] | None, skipped: dict[str, str]) -> list[tuple[str, str]]:
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


def load_all(loads: Mapping[str, Callable[[], Loaded]], place: str, result: BenchResult, *, required: bool) -> dict[str, Loaded]:
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
    batch = min(job.batches)
    try:
        _open(job, job.subjects[-1], runtime, device, batch).run(tile(job.images, batch))
    except Unavailable:
        return  # _load meets it again, and says so


def _load(job: _Job, subject: Subject, runtime: str, device: str) -> Loaded:
    loaded = Loaded({}, {}, {}, None)
    for batch in sorted(job.batches):
        session = loaded.sessions[batch] = _open(job, subject, runtime, device, batch)
        outputs = session.answers(tile(job.images, batch))
        loaded.peak_bytes[batch] = session.peak_bytes()
        loaded.max_error[batch] = _agree(job, subject, session, outputs)
    largest = loaded.sessions[max(job.batches)]
    _agree_on_checked(job, subject, largest)
    if job.labels is None:
        return loaded
    return dataclasses.replace(loaded, accuracy=float((largest.answers(job.images).argmax(1) == job.labels).mean()))


def _agree(job: _Job, subject: Subject, session: Session, outputs: Array) -> float:
    """The largest difference of one batch to fp32 by PyTorch, relative to the largest magnitude. Raises Disagreement."""
    expected, there = job.expected[subject.name], min(len(job.images), len(job.expected[subject.name].exact))
    exact = tile(expected.exact[:there], len(outputs))
    error = numerics.largest_error(outputs, exact)
    if session.dtype == "tf32" and expected.rounded is None:
        reason = "" if error <= TF32_TOLERANCE else f"outputs are off by {error:.1e} of the largest ({TF32_TOLERANCE:.0e} is allowed)"
    else:
        reason = expected.refusal(outputs, there)
    if reason:
        raise _disagreement(subject, session, f"at batch {len(outputs)}", reason)
    return error


def _agree_on_checked(job: _Job, subject: Subject, session: Session) -> None:
    """Raises Disagreement where a subject in another precision than fp32 computes something else."""
    expected = job.expected_of_checked.get(subject.name)
    if expected is not None and (reason := expected.refusal(session.answers(job.checked))):
        raise _disagreement(subject, session, f"on {len(job.checked)} images", reason)


def _disagreement(subject: Subject, session: Session, where: str, reason: str) -> Disagreement:
    return Disagreement(
        f"{session.deployment.runtime} ({session.deployment.device}) and the reference disagree on {subject.name!r} {where}: {reason}; "
        "export the network again, or leave this runtime out"
    )


def _rows(job: _Job, loaded: dict[str, Loaded], seconds: float, skipped: dict[str, str]) -> Iterator[Measurement]:
    for batch in job.batches if loaded else ():
        times = timed(loaded, tile(job.images, batch), batch, seconds, skipped)
        if times is None:
            return
        for name, one in loaded.items():
            yield measurement(name, one, batch, times[name], None if name == job.reference else times.get(job.reference))


def timed(loaded: Mapping[str, Loaded], inputs: Feeds, batch: int, seconds: float, skipped: dict[str, str]) -> dict[str, Times] | None:
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


def measurement(name: str, one: Loaded, batch: int, ms: Times, reference_ms: Times | None) -> Measurement:
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
