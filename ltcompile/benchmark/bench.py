"""Measures a small network in turns with the dense one that it came from: the wiring behind `bench`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ltcompile.benchmark.reference import OF_MODULE
from ltcompile.benchmark.rows import BenchResult, measure, write_result
from ltcompile.benchmark.subjects import DENSE, SMALL, items_of, subjects_of
from ltcompile.benchmark.target import open_target
from ltcompile.core.load import busy_share
from ltcompile.core.records import Measurement
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidSetting
from ltcompile.lower.answers import extended
from ltcompile.paths import check_writable, write_bytes
from ltcompile.pruned import Pruned, Source, compact


@dataclass(frozen=True)
class Pair:
    """A ticket's networks, "dense" and "small", and the images (N, C, H, W) that they are measured on; `origin` says which those are."""

    networks: dict[str, nn.Module]
    images: torch.Tensor
    origin: str


def open_pair(ticket: str | Path, count: int, *, data: str | None = None, data_root: str | Path = "data", model: str | None = None) -> Pair:
    """The two networks of a ticket, dense with its trained weights where the run folder holds them, and at most `count` images.

    Raises:
        InvalidFile: it is not a ticket. TicketMismatch: it does not fit.
    """
    known = open_target(ticket, model=model)
    pruned, items = known.pruned, items_of(known.pruned, known.data, data, data_root)
    count = count if items.labels is None else min(count, items.inputs.batch)
    assert pruned.dense is not None
    networks = {DENSE: pruned.dense, SMALL: compact(pruned).small}
    return Pair(networks, extended(items.inputs, count).tensors[0], items.origin)


def bench(
    target: Source,
    *,
    runtimes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    data: str | None = None,
    data_root: str | Path = "data",
    model: str | None = None,
    seconds_per_row: float = 2.0,
    output: str | Path | None = None,
    write_dense: str | Path | None = None,
    file: str | Path | None = None,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Measure a pruned network against its dense network, in one run, and write bench.json and bench.csv.

    Classifiers whose data can be loaded are measured on its test images, with their accuracy; all others on their example and noise like it, with
    any inputs and outputs. The dense network of a ticket has its trained weights where the run folder holds them; else fresh ones, which are as
    fast, and no accuracy.

    Answers are compared with the small network in fp32 by PyTorch. Of an ONNX file without its ticket, and of one whose weights were
    fine-tuned or repaired or whose batch-norm statistics were taken again, nothing else holds the weights: its own graph is evaluated without
    a runtime instead, and bench.json says so in "compared_with".

    Args:
        target: a ticket or its file, an ONNX file of `shrink`, a `Pruned`, or the result of a `lt.Search`.
        data: test images other than those of the ticket's own data.
        model: names one's own `package.module:factory` again where the ticket needs it.
        output: the JSON file, whose .csv is next to it; by default bench.json next to a target that is a file, and none for others.
        write_dense: an .onnx file for the dense network as it was measured, for `verify`.
        file: of a `Pruned`, the ONNX file of `shrink` to measure.

    Raises:
        InvalidFile: the target is not a file of ours. TicketMismatch: it does not fit. Disagreement: a runtime computes something else.
        Unavailable: a runtime or device that was requested does not work here. InvalidModel: a network cannot be exported.
        InvalidSetting: the batch sizes make no sense, or `write_dense` is not a place for an ONNX file, or there is no dense network.
    """
    if output is None and isinstance(target, str | Path):
        output = RunFolder(Path(target).parent).bench
    known = open_target(target, file, model)
    pruned = known.pruned
    path = None if output is None else check_writable(output)
    dense_path = None if write_dense is None else _dense_path(write_dense, pruned, known.file)
    items, busy = items_of(pruned, known.data, data, data_root), busy_share()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects = subjects_of(known, Path(scratch))
        if dense_path is not None:
            write_bytes(dense_path, subjects.all[0].onnx_bytes("bench"))
        result = measure(
            subjects.all,
            items.inputs,
            items.labels,
            reference=subjects.all[0].name,
            runtimes=runtimes,
            devices=devices,
            batches=batches,
            seconds_per_row=seconds_per_row,
            references=subjects.references,
            untrained=() if known.dense_is_trained else (DENSE,),
            on_row=on_row,
        )
    if path is not None:
        write_result(
            path,
            result,
            subjects.sizes,
            busy,
            file=known.described,
            target=known.name,
            ticket_checksum=pruned.provenance.get("ticket_checksum"),
            network_checksum=pruned.checksum if known.small_is_known else None,
            metric=None
            if pruned.metric is None or known.data is not None
            else asdict(pruned.metric),  # rows have the accuracy of classifiers
            images=items.origin,
            compared_with=subjects.references[SMALL].what if SMALL in subjects.references else OF_MODULE,
        )
    return result


def _dense_path(output: str | Path, pruned: Pruned, file: Path | None) -> Path:
    """Where the dense network goes. Raises InvalidSetting, and InvalidFile where nothing can be written."""
    if pruned.dense is None:
        raise InvalidSetting("write_dense= writes the dense network, and this Pruned has none; leave it out")
    path = check_writable(output)
    if path.suffix != ".onnx" or (file is not None and path.resolve() == file.resolve()):
        raise InvalidSetting(f"--write-dense {path}: the dense network becomes an ONNX file of its own; name one, as in dense.onnx")
    return path
