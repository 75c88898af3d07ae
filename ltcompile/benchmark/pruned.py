"""Measure a `Pruned` of any inputs and outputs next to the dense network that it came from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ltcompile.benchmark.reference import OF_MODULE
from ltcompile.benchmark.rows import TF32_TOLERANCE, BenchResult, Loaded, load_all, measurement, timed, working, write_result
from ltcompile.core.deployment import Deployment
from ltcompile.core.load import busy_share
from ltcompile.core.network_file import NetworkFile
from ltcompile.core.network_file import described as described_file
from ltcompile.core.onnx_file import read_onnx
from ltcompile.core.records import Measurement
from ltcompile.errors import Disagreement, InvalidSetting, TicketMismatch
from ltcompile.graph import size
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.answers import answers, feeds, of_network, probe, rounded_answers
from ltcompile.lower.export import Flat
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import compare
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned
from ltcompile.runtimes import Array, Options, Subject, declared, load_apart

IMAGES = "the example, and noise like it"


def bench_pruned(
    pruned: Pruned,
    *,
    file: Path | None = None,
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    seconds_per_row: float = 2.0,
    output: Path | None = None,
    write_dense: Path | None = None,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Times of `pruned.small`, or of the ONNX file that `shrink` made of it, and where it is known of `pruned.dense`, in turns.

    Inputs are the example's rows and noise like them. Before anything is timed, every output is compared with PyTorch's. The result goes to
    `output` and its .csv, the dense network as it is measured to `write_dense`.

    Raises:
        Unavailable: a runtime or device that was requested does not work here. Disagreement: a runtime computes something else.
        InvalidModel: a network cannot be exported. InvalidSetting: the batch sizes make no sense. TicketMismatch: the file is of another network.
    """
    if not batches or min(batches) < 1 or len(set(batches)) != len(batches):
        raise InvalidSetting(f"batch sizes must be different and at least 1, not {list(batches)}")
    networks = {"small": pruned.small} if pruned.dense is None else {"dense": pruned.dense, "small": pruned.small}
    if write_dense is not None and pruned.dense is None:
        raise InvalidSetting("write_dense= writes the dense network, and this Pruned has none; leave it out")
    described, busy = None if file is None else _described(file, pruned), busy_share()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects = [
            subject_of(name, network, pruned, Path(scratch), file if name == "small" else None) for name, network in networks.items()
        ]
        if write_dense is not None:
            write_bytes(write_dense, subjects[0].onnx_bytes("bench"))
        result = measure_subjects(
            subjects, pruned, runtimes=runtimes, devices=devices, batches=batches, seconds_per_row=seconds_per_row, on_row=on_row
        )
    if output is not None:
        sizes = {name: size(network, pruned.example) for name, network in networks.items()}
        origin: dict[str, Any] = {
            "target": file.name if file is not None else type(pruned.small).__name__,
            "file": described,
            "ticket_checksum": pruned.provenance.get("ticket_checksum"),
            "network_checksum": pruned.checksum,
            "metric": None if pruned.metric is None else asdict(pruned.metric),
        }
        write_result(output, result, sizes, busy, **origin, images=IMAGES, compared_with=OF_MODULE)
    return result


def measure_subjects(
    subjects: Sequence[Subject],
    pruned: Pruned,
    *,
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int],
    reference: str = "dense",
    seconds_per_row: float = 2.0,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Times in turns of networks that take the inputs of `pruned`, each as `subject_of` makes it; speedups are over `reference`.

    Raises as `bench_pruned`.
    """
    result = BenchResult()
    for runtime, device in working(runtimes, devices, result.skipped):
        for batch in batches:
            deployment = Deployment(device, runtime, batch)
            loads = {subject.name: partial(_load, subject, pruned, deployment) for subject in subjects}
            loaded = load_all(loads, f"{runtime} ({device})", result, required=runtimes is not None)
            for row in _rows(loaded, arrays(pruned, batch), batch, reference, seconds_per_row, result.skipped):
                result.rows.append(row)
                if on_row is not None:
                    on_row(row)
    return result


def _described(file: Path, pruned: Pruned) -> NetworkFile:
    """What results call an ONNX file of `shrink`. Raises TicketMismatch where it was made of another network."""
    metadata = {p.key: p.value for p in read_onnx(file).metadata_props}
    ticket = pruned.provenance.get("ticket_checksum")
    if metadata.get("network_checksum") != pruned.checksum and (ticket is None or metadata.get("ticket_checksum") != ticket):
        raise TicketMismatch(f"{file} was not made of this network by `ltcompile shrink`; shrink it again, or name its weights and plan")
    return described_file(file.name, file.read_bytes(), metadata)


def _rows(
    loaded: Mapping[str, Loaded], inputs: Mapping[str, Array], batch: int, reference: str, seconds: float, skipped: dict[str, str]
) -> list[Measurement]:
    times = timed(loaded, inputs, batch, seconds, skipped) if loaded else None
    if times is None:
        return []
    return [measurement(name, one, batch, times[name], None if name == reference else times.get(reference)) for name, one in loaded.items()]


def subject_of(name: str, network: nn.Module, pruned: Pruned, scratch: Path, file: Path | None = None) -> Subject:
    """The network folded, taking its tensors one after the other, and its ONNX file, `file` if that is given."""
    folded, _ = fold_batch_norm(network, pruned.example)
    path = file or scratch / f"{name}.onnx"
    if file is None:
        origin = {"producer": "ltcompile", "network_checksum": pruned.checksum}
        export_onnx(folded, pruned.example, path, origin, input_names=pruned.input_names, output_names=pruned.output_names)
    return Subject(name, Flat(folded, Inputs.of(folded, pruned.example)).eval(), path)


def arrays(pruned: Pruned, batch: int) -> Mapping[str, Array]:
    """So many items: those of the example, and noise like them."""
    return feeds(probe(pruned.small, pruned.example, batch), pruned.input_names)


def _load(subject: Subject, pruned: Pruned, deployment: Deployment) -> Loaded:
    """A session whose outputs are PyTorch's. Raises Disagreement."""
    inputs = probe(pruned.small, pruned.example, deployment.batch)
    session = load_apart(subject, deployment, Options(watch=True))
    found = session.run(arrays(pruned, deployment.batch))
    peak = session.peak_bytes()
    assert isinstance(subject.module, Flat)
    network, file = subject.module.network, read_onnx(subject.onnx) if isinstance(subject.onnx, Path) else None
    reads_file = file is not None and declared(deployment.runtime, "READS_ONNX")
    compared = compare(
        {name: np.asarray(value) for name, value in found.items()},
        answers(of_network(network), inputs, deployment.batch),
        rounded_answers(network, inputs, file, feeds(inputs, pruned.input_names)) if reads_file else None,
    )
    if compared.refusal and not (session.dtype == "tf32" and compared.error <= TF32_TOLERANCE):
        raise Disagreement(f"{deployment} and PyTorch disagree on {subject.name!r}: {compared.refusal}; leave this runtime out")
    return Loaded({deployment.batch: session}, {deployment.batch: compared.error}, {deployment.batch: peak}, None)
