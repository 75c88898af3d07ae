"""Cut, prove, fold, export, check: one call from a pruned network to a deployable file. Only int8 needs inputs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ltcompile import tasks
from ltcompile.core.records import provenance
from ltcompile.core.streams import seeded
from ltcompile.core.task import Task
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset
from ltcompile.deploy import formats
from ltcompile.deploy.job import Calibration, Evaluate, Int8, Precision, Progress, ShrinkJob, Snap
from ltcompile.deploy.steps import check_all, run_all
from ltcompile.errors import TicketMismatch
from ltcompile.graph.inputs import Example
from ltcompile.lower.inputs import Inputs
from ltcompile.paths import check_writable, write_json
from ltcompile.prune.budget import RelativeTimer
from ltcompile.pruned import Source, pruned_of

FOLDER = ".mlpackage"  # the format whose output is one
PAGE = "index.html"  # of a folder that is named as the output


@dataclass(frozen=True)
class Shrunk:
    """The small network (fp32, batch norms folded), the file made of it, and the record that was written as OUTPUT.json."""

    module: nn.Module
    path: Path
    record: Mapping[str, Any]


@seeded(0)
def shrink(
    pruned: Source,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    model: str | None = None,
    calibrate: Calibration | None = None,
    metric: Evaluate | None = None,
    max_drop: float = Int8.max_drop,
    finetune_epochs: int = Int8.finetune_epochs,
    snap: Snap | None = None,
    timer: RelativeTimer | None = None,
    dynamic: tuple[str, ...] = ("batch",),
    opset: int | None = None,
    repair: Iterable[Example] | None = None,
    repair_passes: int = 0,
    images: Calibration | None = None,
    tune_seconds: float = 0.0,
    on_progress: Progress = lambda message: None,
) -> Shrunk:
    """Write a pruned network, or a ticket's, to `output` (its ending is one of `deploy.formats`) and a record of it to OUTPUT.json.

    "site/", or a folder that exists, is site/index.html: a page that runs the network in the browser.

    The network goes through the steps of `ltcompile.deploy.steps`. The cut network is compared with the masked one, in float64 and output by
    output, and the file with the cut network, within the rounding of its precision (`numerics`); the record holds both errors.

    Args:
        pruned: a `Pruned`, a ticket, the path of one, or the result of a `lt.Search`.
        precision: "fp16" computes in half precision, "bf16" (.cpp, .so) the convolutions and linear layers in bfloat16, "int8" (.onnx, .xml,
            .mnn, .cpp, .so) in integers, all behind fp32 inputs and outputs.
        model: names one's own `package.module:factory` again where the ticket needs it.
        calibrate: a data set, a task, or an iterable of inputs, each as the network takes it. fp32 and fp16 take batch norm's running statistics
            from its training images. With int8 they stay as they are, and the ranges of activations come from its training images, all
            choices from its validation images, the accuracy from its test images.
        metric: with int8, judges networks instead of the task's metric: metric(network) -> float, higher is better. Without a metric and a data
            set, the outputs have to stay near those of fp32.
        max_drop: with int8, the points of validation accuracy, or units of the task's or the given metric, that may be lost; layers stay in float until no
            more are.
        finetune_epochs: with int8, so many epochs of training with rounded weights come first; their outcome is kept where it helps.
        snap: move widths to multiples of 16, "down" or "up", or by "auto" to the widths that `timer` finds fastest.
        timer: gives the share of the dense network's time that a network takes.
        dynamic: the axes of the inputs that vary in the file: "batch", "length", "depth", "height", "width", or NAME.AXIS of an input.
        opset: of an .onnx file in fp32 or fp16; None for the exporter's own.
        repair: inputs without labels, on which the weights behind the cut are solved against the dense network first: see `lt.repair`.
        repair_passes: over these inputs, in which gradient descent refines all weights together.
        images: what a page shows: the first test images of a data set or task, or any inputs; by default `calibrate`, else the example.
        tune_seconds: how long tiles of .cpp and .so may be compiled and measured on this machine; 0 leaves them to a model.
        on_progress: gets a message for each part of a comparison, and each thing that is tried in int8.

    Raises:
        Disagreement: the networks differ by more than the tolerance; or int8 loses more than `max_drop`, and nothing is written.
        InvalidFile, TicketMismatch, InvalidSetting, InvalidModel: as they say.
    """
    began = time.perf_counter()
    output = place(output)
    pruned = pruned_of(pruned, model)
    job = ShrinkJob(
        output,
        precision,
        _as_task(calibrate, pruned.ticket),
        metric,
        Int8(max_drop, finetune_epochs),
        snap,
        timer,
        tuple(dynamic),
        opset,
        repair,
        repair_passes,
        _as_task(calibrate if images is None else images, pruned.ticket),
        tune_seconds,
        base=pruned.dense or pruned.small,
        recipe=None if pruned.ticket is None else pruned.ticket.recipe,
        seed=0 if pruned.ticket is None else pruned.ticket.seed,
        on_progress=on_progress,
    )
    check_all(job)
    _check_classes(pruned.ticket, job.calibrate)
    origin = pruned.origin
    done, lines = run_all(replace(pruned, provenance={**pruned.provenance, **origin}), job)
    inputs = Inputs.of(done.small, done.example)
    names = done.input_names or inputs.names
    record = {
        "kind": "shrink",
        "format": 1,
        "output": job.output.name,
        "precision": precision,
        "bytes": sum(file.stat().st_size for file in formats.files(job.output)),
        **lines,
        "inputs": {name: list(tensor.shape[1:]) for name, tensor in zip(names, inputs.tensors, strict=True)},
        "preprocessing": dict(done.preprocessing),
        "seconds": time.perf_counter() - began,
        **origin,
        "provenance": provenance(),
    }
    write_json(job.output.with_suffix(".json"), record)
    return Shrunk(done.small, job.output, record)


def place(output: str | Path) -> Path:
    """Where the file goes: of a folder, its page. Raises InvalidFile where the file, or the folder that a format writes, cannot be written."""
    path = Path(output)
    folder = path.suffix not in formats.by_suffix() and (str(output).endswith(("/", os.sep)) or path.is_dir())
    path = path / PAGE if folder else path
    check_writable(path.with_suffix(".json") if path.suffix == FOLDER else path)
    return path


def _as_task(data: Calibration | None, ticket: Ticket | None) -> Calibration | None:
    """A data set as what the ticket is for, or what the data is for; all else as it is."""
    if not isinstance(data, Dataset):
        return data
    return tasks.load(ticket.task if ticket is not None else data.description.task).TASK(data)  # type: ignore[no-any-return]


def _check_classes(ticket: Ticket | None, data: Calibration | None) -> None:
    """Raises TicketMismatch where the data has other classes than the ticket's."""
    if ticket is None or not isinstance(data, Task):
        return
    there, classes = len(ticket.data["class_names"]), data.description.classes
    if classes != there:
        raise TicketMismatch(
            f"the ticket has {there} classes, this data has {classes}; use the ticket's data, {ticket.data['name']}, or search again"
        )
