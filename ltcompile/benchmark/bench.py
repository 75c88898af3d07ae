"""Measures a small network in turns with the dense one that it came from: the wiring behind `bench`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltcompile.benchmark.pruned import bench_pruned
from ltcompile.benchmark.reference import OF_MODULE, Reference, file_reference, module_reference
from ltcompile.benchmark.rows import BenchResult, measure, write_result
from ltcompile.benchmark.subjects import images_of, images_origin, subject
from ltcompile.core.arm import Arm
from ltcompile.core.fields import short
from ltcompile.core.load import busy_share
from ltcompile.core.network_file import NetworkFile, described
from ltcompile.core.onnx_file import domains, external, read_onnx
from ltcompile.core.records import Measurement
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.ticket import Ticket, check_model
from ltcompile.deploy.steps.snap import AS_IT_IS, moved
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError, TicketMismatch
from ltcompile.graph import Size, size
from ltcompile.lower import fold_batch_norm
from ltcompile.models import is_own_code
from ltcompile.paths import check_writable, write_bytes
from ltcompile.pruned import Pruned, Result, check_ticket_fits, dense_network, named_network, pruned_of, small_network
from ltcompile.pruned.ticket import small_with_plan
from ltcompile.runtimes import Subject

CLASSIFICATION = "classification"


@dataclass(frozen=True)
class _Target:
    """What is known of a small network: its ticket or, without one, the metadata of its ONNX file."""

    folder: Path
    ticket: Ticket | None
    onnx: Path | None
    model: dict[str, Any]
    data: dict[str, Any]  # its description in the ticket
    file: NetworkFile | None = None  # of the ONNX file
    snapped: str = AS_IT_IS  # how shrink moved the file's widths
    holds_ticket: bool = True  # False for a file with weights that its ticket lacks: fine-tuned, or with new batch-norm statistics

    @property
    def ticket_checksum(self) -> str:
        """Of the ticket, which a file names too."""
        return self.ticket.checksum if self.ticket is not None else self.file.ticket_checksum if self.file is not None else ""


@dataclass(frozen=True)
class Pair:
    """A ticket's networks, "dense" and "small", and the images (N, C, H, W) that they are measured on; `origin` says which those are."""

    networks: dict[str, nn.Module]
    images: torch.Tensor
    origin: str


def open_pair(ticket: str | Path, *, data: str | None = None, data_root: str | Path = "data", model: str | None = None) -> Pair:
    """The two networks of a ticket, dense with its trained weights where the run folder holds them.

    Raises:
        InvalidFile: it is not a ticket. TicketMismatch: it does not fit.
    """
    known = _of_ticket(Ticket.load(ticket), Path(ticket).parent)
    assert known.ticket is not None
    check_ticket_fits(known.ticket, model)
    images, labels = images_of(known.data, data, data_root)
    networks, _ = _networks(known.ticket, known.folder)
    return Pair(networks, torch.from_numpy(images), images_origin(labels))


def bench(
    target: str | Path | Pruned | Result,
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
    """Measure a ticket or an ONNX file of `shrink` against its dense network, in one run, and write bench.json and bench.csv.

    A `Pruned`, or the result of a `lt.Search`, is measured in the same way, on its example and noise like it, with any inputs and outputs; with
    `file`, through that ONNX file of `shrink`. Files are written only to `output` and `write_dense` then.

    The dense network has its trained weights where the run folder holds them; else fresh ones, which are as fast, and no accuracy.
    Answers are compared with the ticket's network in fp32 by PyTorch. Of an ONNX file without its ticket, and of one whose weights were
    fine-tuned or whose batch-norm statistics were taken again, nothing else holds the weights: its own graph is evaluated without a
    runtime instead, and bench.json says so in "compared_with".
    Accuracy is given where the ticket's data can be loaded. Files go next to the target, or to `output` and its .csv; the dense network as
    it was measured to `write_dense`, an .onnx file for `verify`.

    Raises:
        InvalidFile: the target is not a file of ours. TicketMismatch: it does not fit. Disagreement: a runtime computes something else.
        InvalidSetting: `write_dense` is not a place for an ONNX file.
    """
    if not isinstance(target, str | Path | Pruned):
        target = pruned_of(target)
    measured: dict[str, Any] = {"runtimes": runtimes, "devices": devices, "batches": batches, "seconds_per_row": seconds_per_row}
    if isinstance(target, Pruned):
        if data is not None or model is not None:
            raise InvalidSetting("data= and model= belong to tickets and files; leave them out for a Pruned")
        given = None if file is None else Path(file)
        written = None if output is None else check_writable(output)
        dense = None if write_dense is None else _dense_path(write_dense, given or Path())
        return bench_pruned(target, file=given, output=written, write_dense=dense, **measured, on_row=on_row)
    if file is not None:
        raise InvalidSetting("file= is a file of a Pruned; leave it out for tickets and files")
    ticket, known = _of_another_task(Path(target)), None
    if ticket is None:
        known = _open(Path(target))
    path = check_writable(Path(output) if output else RunFolder(Path(target).parent).bench)
    dense_path = _dense_path(write_dense, Path(target)) if write_dense is not None else None
    if ticket is not None:
        if data is not None:
            raise InvalidSetting(f"data= is for classification, and the ticket is for {ticket.data['task']}; leave it out")
        made = Path(target) if Path(target).suffix == ".onnx" else None
        return bench_pruned(pruned_of(ticket, model), file=made, output=path, write_dense=dense_path, **measured, on_row=on_row)
    assert known is not None
    _check_code(known, model)
    images, labels = images_of(known.data, data, data_root)
    busy = busy_share()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects, sizes, trained, reference = _subjects(known, Path(scratch))
        if dense_path is not None:
            write_bytes(dense_path, subjects[0].onnx_bytes("bench"))

        def report(row: Measurement) -> None:
            if on_row is not None:
                on_row(_untrained_blank(row, trained))

        references = {"small": reference} if reference else {}
        result = measure(subjects, images, labels, **measured, references=references, on_row=report)
    rows = [_untrained_blank(row, trained) for row in result.rows]
    found = BenchResult(rows, result.skipped, result.details)
    origin: dict[str, Any] = {
        "target": Path(target).name,
        "file": known.file,
        "ticket_checksum": known.ticket_checksum,
        "images": images_origin(labels),
    }
    write_result(path, found, sizes, busy, **origin, compared_with=reference.what if reference else OF_MODULE)
    return found


def _dense_path(output: str | Path, target: Path) -> Path:
    """Where the dense network goes. Raises InvalidSetting, and InvalidFile where nothing can be written."""
    path = check_writable(output)
    if path.suffix != ".onnx" or path.resolve() == target.resolve():
        raise InvalidSetting(f"--write-dense {path}: the dense network becomes an ONNX file of its own; name one, as in dense.onnx")
    return path


def _untrained_blank(row: Measurement, dense_is_trained: bool) -> Measurement:
    """An untrained dense network has a speed, but no accuracy worth telling."""
    return row if dense_is_trained or row.subject != "dense" else replace(row, accuracy=None)


def _check_code(known: _Target, model: str | None) -> None:
    """Raises TicketMismatch where the network needs code of the user's that was not named, or is another."""
    if known.ticket is not None:
        check_ticket_fits(known.ticket, model)
    elif is_own_code(known.model["name"]) and model != known.model["name"]:
        raise TicketMismatch(f"the dense network is your own code; to run it, say so with --model {known.model['name']}")


def _of_another_task(path: Path) -> Ticket | None:
    """The ticket at `path`, or next to the ONNX file that was made of it, where it is not for classification.

    Raises InvalidFile where such a file lies without its ticket.
    """
    if path.suffix != ".onnx":
        ticket = Ticket.load(path)
        return ticket if _task(ticket.data) != CLASSIFICATION else None
    metadata = {p.key: p.value for p in read_onnx(path).metadata_props}
    if "ticket_checksum" not in metadata or _task(metadata) == CLASSIFICATION:
        return None
    neighbour = RunFolder(path.parent).ticket
    if neighbour.is_file() and (ticket := Ticket.load(neighbour)).checksum == metadata["ticket_checksum"]:
        return ticket
    raise InvalidFile(
        f"{path} was made for {_task(metadata)} of a ticket that is not next to it; put both into one folder, or shrink again"
    )


def _task(texts: Mapping[str, Any]) -> str:
    return str(texts.get("task", CLASSIFICATION))


def _open(path: Path) -> _Target:
    if path.suffix == ".onnx":
        return _open_onnx(path)
    return _of_ticket(Ticket.load(path), path.parent)


def _of_ticket(ticket: Ticket, folder: Path) -> _Target:
    return _Target(folder, ticket, None, dict(ticket.model), dict(ticket.data))


def _open_onnx(path: Path) -> _Target:
    """An ONNX file of ours; its ticket too, if it lies next to it."""
    model = read_onnx(path)
    metadata = {p.key: p.value for p in model.metadata_props}
    if metadata.get("producer") != "ltcompile":
        raise InvalidFile(
            f"{path} was not made by `ltcompile shrink`, so its dense network is unknown; shrink a ticket, or bench the ticket itself"
        )
    if "ticket_checksum" not in metadata:
        raise InvalidFile(
            f"{path} was made of a network without a ticket, so its dense network is unknown; name that network too, as in "
            f"`ltcompile bench {path} --model package.module:factory --plan plan.json --example SHAPES`, or use lt.bench(pruned, file=)"
        )
    if strange := _strange(model):
        raise InvalidFile(f"{path} {strange}, as `ltcompile shrink` never writes it; shrink the ticket again")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    neighbour, file = RunFolder(path.parent).ticket, described(path.name, path.read_bytes(), metadata)
    tuned = json.loads(metadata.get("int8", "{}")).get("fine_tuned", False)
    holds_ticket = metadata.get("recalibrated") == "false" and not tuned
    if neighbour.is_file() and (ticket := Ticket.load(neighbour)).checksum == file.ticket_checksum:
        if list(ticket.data["shape"]) != shape:
            raise InvalidFile(f"{path} takes images of {shape}, its ticket those of {ticket.data['shape']}; shrink the ticket again")
        return replace(_of_ticket(ticket, path.parent), onnx=path, file=file, snapped=metadata["snapped"], holds_ticket=holds_ticket)
    try:
        data = {key: json.loads(metadata[key]) for key in ("class_names", "mean", "std")}
        data |= {"name": metadata["data"], "shape": shape, "interpolation": metadata["interpolation"]}
        network = json.loads(metadata["model"])
        check_model(network, data)
        return _Target(path.parent, None, path, network, data, file)
    except LtcompileError as error:
        raise InvalidFile(f"{path} describes an impossible network: {error}; shrink the ticket again") from error
    except (KeyError, IndexError, ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} lacks what `ltcompile shrink` writes into its files ({error!r}); shrink the ticket again") from error


def _strange(model: Any) -> str:
    """What there is in a model that would read other files or run other code, or give no logits of images; empty where nothing is."""
    if elsewhere := external(model):
        return f"keeps {elsewhere[0]!r} in another file"
    if foreign := domains(model) - {""}:
        return f"uses operators of its own ({short(foreign)})"
    ends = len(model.graph.input), len(model.graph.output)
    return "" if ends == (1, 1) else f"has {ends[0]} inputs and {ends[1]} outputs"


def _subjects(known: _Target, scratch: Path) -> tuple[list[Subject], dict[str, Size], bool, Reference | None]:
    """Dense and small, both folded and exported in the same way; their sizes; whether the dense weights are trained ones; and what the
    small network's answers are compared with, where that is not its module.
    """
    example = torch.zeros(2, *known.data["shape"])
    networks, trained = (
        _networks(known.ticket, known.folder) if known.ticket is not None else ({"dense": named_network(known.model)}, False)
    )
    sizes = {name: size(network, example) for name, network in networks.items()}
    dense = subject("dense", networks["dense"], example, scratch, metadata={"ticket_checksum": known.ticket_checksum})
    if known.onnx is None or known.file is None:
        return [dense, subject("small", networks["small"], example, scratch)], sizes, trained, None
    if known.ticket is None or not known.holds_ticket:
        return [dense, Subject("small", None, known.onnx)], sizes, trained, file_reference(known.onnx)
    small = networks["small"]
    if known.snapped != AS_IT_IS:
        dense_module = networks["dense"]
        small = moved(*small_with_plan(known.ticket, dense_module), dense_module, known.snapped).module
    if known.file.precision == "fp32":
        return [dense, subject("small", small, example, scratch, known.onnx)], sizes, trained, None
    folded, _ = fold_batch_norm(small, example)
    reference = module_reference(folded.eval(), example, known.onnx, known.file.precision, scratch)
    return [dense, Subject("small", None, known.onnx)], sizes, trained, reference


def _networks(ticket: Ticket, folder: Path) -> tuple[dict[str, nn.Module], bool]:
    """Dense and small; whether the dense weights are trained ones."""
    dense = dense_network(ticket)
    networks = {"dense": dense, "small": small_network(ticket, dense)}
    return networks, _load_dense(dense, RunFolder(folder), Arm(ticket.seed, "dense", 0))


def _load_dense(dense: nn.Module, run: RunFolder, arm: Arm) -> bool:
    """Give the dense network its trained weights, if the run folder has them."""
    if not run.training(arm).is_file():
        return False
    run.load_weights(dense, arm, "the dense network")
    return True
