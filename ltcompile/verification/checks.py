"""The checks of a file on this machine: its answers, ticket, size, accuracy and speed, each compared with its claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share, is_busy
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.records import cpu_name
from ltcompile.errors import InvalidSetting, Unavailable, unknown
from ltcompile.numerics import compare
from ltcompile.paths import check_writable, write_json
from ltcompile.runtimes import unavailable
from ltcompile.timing import Times, interleave
from ltcompile.verification.answers import Recorded, read_answers
from ltcompile.verification.claims import Claims, Timing, read_claims
from ltcompile.verification.images import Labels
from ltcompile.verification.matching import (
    RUNTIME,
    RUNTIMES,
    check_belongs,
    default_claims,
    deployment,
    images,
    open_dense,
    origin,
    selected,
)
from ltcompile.verification.network import Array, Feed, Network, gpu_name, missing, open_network
from ltcompile.verification.result import CLAIMS, Check, Value, Verified, share_of
from ltcompile.verification.rules import judge_accuracy, judge_latency, judge_speedup

SECONDS = 6.0  # of a run, a network
BLOCKS = 40  # more than a benchmark has, since a verdict depends on them


@dataclass(frozen=True)
class _Job:
    """What all checks share."""

    small: Network
    claims: Claims
    timings: list[Timing]
    dense: Network | None
    images: tuple[Array, Labels] | None
    recorded: Recorded | str | None  # a text says why it is of no use
    seconds: float
    required: Sequence[str]
    busy: str | None  # the reason, if nothing is timed
    times: dict[tuple[str, int], dict[str, Times] | str] = field(default_factory=dict)  # by device and batch

    @property
    def inputs(self) -> Feed | None:
        """The recorded ones."""
        return self.recorded.inputs if isinstance(self.recorded, Recorded) else None


def verify(
    target: str | Path,
    claims: str | Path | None = None,
    *,
    dense: str | Path | None = None,
    on: Deployment | None = None,
    data: str | Path | None = None,
    require: Sequence[str] = (),
    seconds: float = SECONDS,
    output: str | Path | None = None,
    runtime: str = RUNTIME,
) -> Verified:
    """Repeat on this machine what a report.json or bench.json claims of the ONNX file `target`; by default the one in its folder.

    With `dense`, the ONNX file of the network that it was cut from, both run in turns and speedups are compared; without it, latencies
    are compared, if they were measured on the same type of machine. Accuracy takes `data`, a .npz file with images (N, C, H, W), float32 and
    ready for the network, and labels (N,), and is of networks that turn images into logits. All others are checked by the answers that
    `shrink` recorded next to the file (`verification.answers`), and by their times. `on` leaves out all other deployments. Each run takes
    about `seconds` a network. `require` names kinds of claims ("answers", "accuracy", "latency", "speedup"), all of which must be confirmed
    for the whole to be. All of it runs on `runtime`: "onnxruntime", "openvino" or "tract", which shares no code with the others.

    A claim is confirmed by repeating it alone, by the rules and margins in `verification.rules`. While other work takes more than 30 % of
    the machine, nothing is timed. `verification.network` says what a file can do while it is examined.

    Raises:
        InvalidFile, InvalidData: a file is damaged or of another kind. TicketMismatch: the files do not belong together.
        InvalidSetting: nothing is claimed for `on`. UnknownName: no such kind of claims. Unavailable: onnxruntime or `runtime` does not load.
    """
    if runtime not in RUNTIMES:
        raise unknown("runtime to verify with", runtime, list(RUNTIMES))
    if reason := unavailable(runtime, "cpu"):
        raise Unavailable(f"{runtime}: {reason}")
    for what in require:
        if what not in CLAIMS:
            raise unknown("kind of claims to require", what, list(CLAIMS))
    if not isinstance(target, str | Path):
        raise InvalidSetting(f"verify takes the path of an ONNX file that `ltcompile shrink` wrote, not {type(target).__name__}")
    path, busy = Path(target), busy_share()
    small = open_network(path, runtime)
    claimed = read_claims(Path(claims) if claims else default_claims(path))
    check_belongs(small, claimed)
    job = _Job(
        small,
        claimed,
        selected(small, claimed, on),
        open_dense(Path(dense), small, claimed) if dense else None,
        images(small, Path(data)) if data else None,
        read_answers(small),
        seconds,
        require,
        f"other work took {busy:.0%} of this machine just before" if is_busy(busy) else None,
    )
    written = check_writable(output) if output else None
    verified = Verified(path.name, str(small.file.sha256), claimed.name, list(_checks(job)), busy, require)
    if written is not None:
        write_json(written, verified.to_json())
    return verified


# The checks


def _checks(job: _Job) -> Iterator[Check]:
    yield _repeats(job)
    if job.recorded is not None or "answers" in job.required:
        yield _answers(job)
    yield _ticket(job)
    yield _size(job)
    yield from _accuracies(job)
    for row in job.timings:
        if job.dense is not None:
            yield _speedup(job, row)
        if job.dense is None or "latency" in job.required:
            yield _latency(job, row)


def _repeats(job: _Job) -> Check:
    """Checks that the answers to seeded noise, or to the recorded inputs, are finite and reproducible."""
    claim, small = "the answers are finite, and the same twice", job.small
    what = "seeded noise" if job.inputs is None else "the recorded inputs"
    try:
        bound = small.bind("cpu", small.noise(small.rows, job.inputs))
        first = bound.read()
        bound.call()
    except Unavailable as error:
        return Check("file", claim, "not confirmed", str(error))
    if job.inputs is None and not all(np.isfinite(value).all() for value in first.values()):
        return Check("file", claim, "not confirmed", f"some answers to {what} are not finite")
    if not all(
        np.array_equal(value, again, equal_nan=value.dtype.kind == "f")
        for value, again in zip(first.values(), bound.read().values(), strict=True)
    ):
        return Check("file", claim, "not confirmed", "two runs on the same noise gave different answers")
    return Check("file", claim, "confirmed", f"on {what}")


def _answers(job: _Job) -> Check:
    """Checks the recorded answers, output by output, within the rounding of the file's precision."""
    claim, recorded, small = "the answers that were recorded with the file", job.recorded, job.small
    if not isinstance(recorded, Recorded):
        return Check("answers", claim, "not comparable", recorded or f"no answers are recorded next to {small.path.name}")
    try:
        found = small.bind("cpu", recorded.inputs).read()
    except Unavailable as error:
        return Check("answers", claim, "not confirmed", str(error))
    compared = compare({name: np.asarray(value) for name, value in found.items()}, recorded.exact, recorded.rounded)
    if compared.refusal:
        return Check("answers", claim, "not confirmed", compared.refusal)
    rows = len(next(iter(recorded.inputs.values())))
    return Check("answers", claim, "confirmed", f"on {rows} rows, off by {compared.error:.0e} ({compared.allowed:.0e} is allowed)")


def _ticket(job: _Job) -> Check:
    """The result of `check_belongs`."""
    claim = f"made from the {origin(job.small)} {job.small.checksum[:12]}"
    if job.claims.checksum is None:
        return Check("ticket", claim, "not comparable", f"{job.claims.name} names no ticket; bench it again, or use report.json")
    return Check("ticket", claim, "confirmed", f"{job.claims.name} is about this one")


def _size(job: _Job) -> Check:
    found, file = Value(len(job.small.data)), _claimed_file(job)
    if file is None:
        return Check("size", "size", "not comparable", f"{job.claims.name} has no size of such a file", found=found)
    claimed, same = Value(file.bytes), file.bytes == found.value and file.sha256 in (None, job.small.file.sha256)
    if not same:
        alike = "the same size, different content: " if claimed == found else ""
        return Check("size", "size", "not confirmed", f"{alike}another file than {file}, or a damaged one", claimed, found)
    return Check("size", "size", "confirmed", "to the byte" if file.sha256 is None else "to the byte, by SHA-256", claimed, found)


def _claimed_file(job: _Job) -> NetworkFile | None:
    """The claimed file with this SHA-256; else one of the same format that was made in the same way, preferably of the same name."""
    here, timed = job.small.file, [job.claims.timed] if job.claims.timed else []
    alike = [file for file in (*timed, *job.claims.files) if file.making == here.making]
    same = [file for file in alike if Path(file.output).suffix == Path(here.output).suffix]
    ranks = (lambda file: file.sha256 == here.sha256, lambda file: file.output == here.output, lambda file: True)
    return next((file for matches in ranks for file in same if matches(file)), None)


def _accuracies(job: _Job) -> Iterator[Check]:
    """One check for each device with a claimed accuracy; the ticket's own accuracy if no benchmark has one."""
    claimed = {row.device: row.accuracy for row in job.timings if row.accuracy is not None}
    for device, share in claimed.items():
        yield _accuracy(job, device, share, _another_timed(job))
    if not claimed and job.claims.accuracy is not None and job.small.classes is not None:
        yield _accuracy(job, "cpu", job.claims.accuracy, _changed_by_export(job.small.file))
    elif not claimed and job.claims.metric is not None:
        yield Check("accuracy", job.claims.metric, "not comparable", "this metric is computed by the network's own code, which is not here")


def _accuracy(job: _Job, device: str, share: float, reason: str | None) -> Check:
    """The check of an accuracy; a `reason` makes it not comparable."""
    claim = f"accuracy on test images, {device}"
    claimed = Value(share) if job.claims.test_images is None else share_of(share, job.claims.test_images)
    if reason := reason or ("not repeated: no test images" if job.images is None else missing(device)):
        return Check("accuracy", claim, "not comparable", reason, claimed)
    assert job.images is not None
    images, labels = job.images
    try:
        logits = job.small.logits(device, images)
    except Unavailable as error:
        return Check("accuracy", claim, "not comparable", str(error), claimed)
    verdict, why, found = judge_accuracy(share, int((logits.argmax(1) == labels).sum()), len(images))
    return Check("accuracy", claim, verdict, why, claimed, found)


def _another_timed(job: _Job) -> str | None:
    """The reason if the benchmark measured another file, as far as the claims show."""
    here, claims = job.small.file, job.claims
    if claims.of_a_ticket:
        changed = _changed_by_export(here)
        return changed and f"{claims.target} itself was measured; {changed}"
    if (timed := claims.timed) is not None:
        return None if timed.sha256 in (None, here.sha256) else f"another file was measured: {timed}, and this is {here}"
    named = next((file for file in claims.files if file.output == claims.target), None)
    if named is None or named.precision == here.precision:
        return None
    return f"{named.output} was measured, in {named.precision}; this file is in {here.precision}"


def _changed_by_export(file: NetworkFile) -> str | None:
    """The reason if a file differs from its ticket's network."""
    if file.recalibrated:
        return f"{file.output} has other batch-norm statistics than its ticket"
    return None if file.precision == "fp32" else f"{file.output} is in {file.precision}, and its ticket in fp32"


# Speed


def _times(job: _Job, row: Timing) -> dict[str, Times] | str:
    """Milliseconds (blocks, runs) of "small", and of "dense" if it was given, on the device and batch of `row`; or the reason why not."""
    if reason := _another_timed(job) or missing(row.device) or job.busy:
        return reason
    if (key := (row.device, row.batch)) not in job.times:
        job.times[key] = _timed(job, *key)
    return job.times[key]


def _timed(job: _Job, device: str, batch: int) -> dict[str, Times] | str:
    try:
        inputs = job.small.noise(batch, job.inputs)
        networks = {"small": job.small} | ({"dense": job.dense} if job.dense else {})
        calls = {name: network.bind(device, inputs).call for name, network in networks.items()}
        return interleave(calls, seconds=job.seconds, blocks=BLOCKS)
    except Unavailable as error:
        return str(error)


def _elsewhere(job: _Job, row: Timing) -> str | None:
    """The reason if the latency of `row` was measured on another type of machine; speedups compare on any machine."""
    there, here = (job.claims.machine.get("gpu"), gpu_name()) if row.device == "cuda" else (job.claims.machine.get("cpu"), cpu_name())
    return (
        None if there == here else f"measured on {there or 'an unnamed machine'}, this is {here}; --dense compares speedups on any machine"
    )


def _speedup(job: _Job, row: Timing) -> Check:
    on = deployment(job.small, row)
    if row.speedup is None or row.speedup_low is None:
        return Check("speedup", "speedup", "not comparable", f"{job.claims.name} claims none here", on=on)
    claimed = Value(row.speedup, row.speedup_low, row.speedup_high)
    times = _times(job, row)
    if isinstance(times, str):
        return Check("speedup", "speedup", "not comparable", times, claimed, on=on)
    verdict, reason, found = judge_speedup(claimed, times["dense"], times["small"])
    return Check("speedup", "speedup", verdict, reason, claimed, found, on)


def _latency(job: _Job, row: Timing) -> Check:
    on, claimed = deployment(job.small, row), Value(row.ms_p50)
    times = _another_timed(job) or missing(row.device) or _elsewhere(job, row) or _times(job, row)
    if isinstance(times, str):
        return Check("latency", "latency", "not comparable", times, claimed, on=on)
    verdict, reason, found = judge_latency(row.ms_p50, times["small"])
    return Check("latency", "latency", verdict, reason, claimed, found, on)
