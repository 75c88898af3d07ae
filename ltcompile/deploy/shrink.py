"""Cut, prove, fold, export, check: one call from a ticket to a deployable file. Only int8 needs a data set."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.core.reached import Reached
from ltcompile.core.records import provenance
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset
from ltcompile.deploy.equality import check_cut, check_rewritten
from ltcompile.deploy.int8 import Int8, Progress, to_int8
from ltcompile.deploy.rebuild import check_ticket_fits, dense_network, factorised, in_a_basis, ticket_network, without_emptied
from ltcompile.deploy.recalibrate import take_statistics
from ltcompile.deploy.snap import AS_IT_IS, Clock, Snap, Snapped
from ltcompile.deploy.snap import snap as snap_widths
from ltcompile.errors import BadSetting, Disagreement, StaleTicket
from ltcompile.graph import Emptied, Size, size, zeros
from ltcompile.graph.factorise import Factorised
from ltcompile.lower import HalfInside, export_classifier, export_program, fold_batch_norm, run_onnx
from ltcompile.lower.binary_weights import write_binary_weights
from ltcompile.lower.simulate import rounded_network
from ltcompile.numerics import Compared, Expected, in_chunks
from ltcompile.paths import check_writable, write_bytes, write_json

VALUE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
PROBES = 16
CHECKED, CHUNK = 128, 16  # images that a file in half precision is compared on, and so many at once
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Shrunk:
    """The small network (fp32, batch norms folded), the file made of it, and the record that was written beside it."""

    module: nn.Module
    path: Path
    record: Mapping[str, Any]


def shrink(
    ticket: Ticket | str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    model: str | None = None,
    calibrate: Dataset | None = None,
    max_drop: float = Int8.max_drop,
    finetune_epochs: int = Int8.finetune_epochs,
    snap: Snap | None = None,
    clock: Clock | None = None,
    on_progress: Progress = lambda told: None,
) -> Shrunk:
    """Make the ticket's network physically small and write it to `output` (.onnx, .pt2 or .safetensors).

    The cut network is compared with the masked one, in float64 and output by output, and the file with the cut network, within the
    rounding of its precision (`numerics`); OUTPUT.json tells both errors. Of a ticket with a
    mask of single weights, the channels go that its zeros emptied; OUTPUT.json tells how much of the sparsity that was.

    Args:
        precision: "fp16" computes in half precision, "int8" (.onnx alone) in integers, both behind fp32 inputs and outputs.
        model: names one's own `package.module:factory` again where the ticket needs it.
        calibrate: take batch norm's running statistics anew from this data's training images. With int8 they stay as they are, and
            the ranges of activations come from its training images, all choices from its validation images, the accuracy from its test images.
        max_drop: with int8, the points of validation accuracy that may be lost; layers stay in float until no more are.
        finetune_epochs: with int8, so many epochs of training with rounded weights come first; their outcome is kept where it helps.
        snap: move widths to multiples of 16, "down" or "up", or by "auto" to whatever `clock` finds fastest: what share of
            the dense network's time one takes.
        on_progress: told what is being tried in int8.

    Raises:
        Disagreement: the networks differ by more than the tolerance; or int8 loses more than `max_drop`, and nothing is written.
        BadFile, StaleTicket, BadSetting, BadModel: as they say.
    """
    began = time.perf_counter()
    output, asked = check_writable(output), Int8(max_drop, finetune_epochs)
    _check_settings(output, precision, calibrate, asked)
    if not isinstance(ticket, Ticket):
        ticket = Ticket.load(ticket)
    check_ticket_fits(ticket, model, calibrate.description.classes if calibrate else None)
    dense = dense_network(ticket)
    network = ticket_network(ticket, dense)
    anew = None if precision == "int8" else calibrate
    if anew is not None:
        take_statistics(network, anew)
    probe = _probe(ticket)
    dense_size = size(dense, probe)
    small, plan, structure = _structured(ticket, network, probe, dense_size)
    if in_a_basis(ticket) and snap:
        raise BadSetting("a ticket in a basis has layers in two, whose widths are ranks; leave --snap out")
    equality_error = check_cut(network if in_a_basis(ticket) else small, plan, dense, probe)
    snapped = snap_widths(small, plan, dense, snap, probe, clock) if snap else Snapped(small, plan, AS_IT_IS, {})
    if snapped.module is not small:
        equality_error = max(equality_error, check_cut(snapped.module, snapped.plan, dense, probe))
    small, small_size = snapped.module, size(snapped.module, probe)
    del dense
    folded, told = fold_batch_norm(small, probe)
    check_rewritten("the folded network and the cut one", folded, small, probe)
    metadata = _metadata(ticket, precision, anew is not None, snapped)
    int8_record: dict[str, Any] = {}
    if precision == "int8":
        assert calibrate is not None
        folded, compared, int8_record["int8"] = _write_int8(folded, ticket, calibrate, asked, output, metadata, on_progress)
    else:
        compared = _write_float(folded, probe, output, precision, metadata)
    signs = _with_signs(ticket, output, precision, probe)
    record = {
        "kind": "shrink",
        "format": 1,
        "output": output.name,
        "precision": precision,
        "bytes": output.stat().st_size,
        "dense_bytes": dense_size.params * VALUE_BYTES[precision],  # its values in the same precision
        **_sizes(small_size, dense_size),
        "equality_error": equality_error,
        "onnx_error": compared.error,
        "tolerance": compared.allowed,
        "recalibrated": anew is not None,
        "snapped": snapped.to_json(),
        "target": _target(ticket, small_size, dense_size),
        "folded_batch_norms": sum(t.startswith("folded") for t in told.values()),
        "not_folded": {name: why for name, why in told.items() if not why.startswith("folded")},
        **structure,
        **signs,
        **int8_record,
        "seconds": time.perf_counter() - began,
        "ticket_checksum": ticket.checksum,
        "provenance": provenance(),
    }
    write_json(output.with_suffix(".json"), record)
    return Shrunk(folded, output, record)


def _target(ticket: Ticket, small: Size, dense: Size) -> dict[str, Any] | None:
    """How the network stands to the target of size that its ticket was searched for; widths may have moved since."""
    for measure, ours, whole in (("macs", small.macs, dense.macs), ("params", small.params, dense.params)):
        if (asked := ticket.config.get(f"target_{measure}")) is not None:
            return Reached(measure, asked, ours / whole).to_json()
    return None


def _check_settings(output: Path, precision: str, calibrate: Dataset | None, asked: Int8) -> None:
    """Raises BadSetting where the settings contradict each other."""
    if output.suffix not in _WRITERS:
        raise BadSetting(f"{output} must end in {', '.join(_WRITERS)}")
    if precision not in VALUE_BYTES:
        raise BadSetting(f"precision must be one of {', '.join(VALUE_BYTES)}, not {precision!r}")
    if precision != "int8":
        if asked.finetune_epochs:
            raise BadSetting(f"--finetune-epochs trains for int8, and the precision is {precision}; add --precision int8, or leave it out")
        return
    if output.suffix != ".onnx":
        raise BadSetting(f"int8 lives in ONNX files, and {output} is none; name an output that ends in .onnx")
    if calibrate is None:
        raise BadSetting("int8 takes the ranges of activations from images; pass --calibrate digits, cifar10 or imagefolder:PATH")


def _write_float(folded: nn.Module, probe: Tensor, output: Path, precision: str, metadata: Mapping[str, str]) -> Compared:
    """Write the folded network, which stays in fp32; how the file's answers compare with PyTorch's. Raises Disagreement."""
    _WRITERS[output.suffix](HalfInside(folded) if precision == "fp16" else folded, probe, output, metadata)
    images = probe if precision == "fp32" else _noise(CHECKED, tuple(probe.shape[1:]))
    exact = _in_chunks(lambda chunk: _logits(folded, chunk), images)
    rounded = None if precision == "fp32" else _in_chunks(rounded_network(folded.eval(), precision), images)
    compared = Expected(exact, rounded).compare(_in_chunks(_reader(output, folded, precision), images))
    if compared.refusal:
        raise Disagreement(f"{output} and torch disagree: {compared.refusal}; please report this with the ticket")
    return compared


def _in_chunks(run: Callable[[Tensor], Tensor], images: Tensor) -> NDArray[np.float32]:
    """The answers of `run` to all images, a few at a time."""
    return in_chunks(lambda chunk: run(torch.from_numpy(chunk)).numpy(), images.numpy(), CHUNK)


def _with_signs(ticket: Ticket, output: Path, precision: str, probe: Tensor) -> dict[str, Any]:
    """Put signs in place of the binary weights of a multi-prize ticket's file; the record of that, empty for any other."""
    if ticket.config.get("method") != "biprop" or precision != "fp32" or output.suffix != ".onnx":
        return {}
    found = write_binary_weights(output, output, probe)
    return {"signs": {"error": found.error, "bytes_before": found.bytes_before, "told": dict(found.outcomes)}}


def _write_int8(
    folded: nn.Module, ticket: Ticket, data: Dataset, asked: Int8, output: Path, metadata: Mapping[str, str], tell: Progress
) -> tuple[nn.Module, Compared, Mapping[str, Any]]:
    """Write the network in int8: its float weights, which fine-tuning may change; how the file's answers compare; the record."""
    _check_same_data(ticket, data)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        made = to_int8(folded, data, ticket.recipe, ticket.seed, asked, Path(scratch), tell)
        told = {name: made.record[name] for name in ("ranges", "weight_bits", "float_nodes", "val_accuracy", "test_accuracy", "images")}
        told["fine_tuned"] = made.module is not folded
        accuracy = {"value": made.test_accuracy, "split": "test"}
        made.write(output, {**metadata, "accuracy": json.dumps(accuracy), "int8": json.dumps(told)})
    return made.module, made.compared, made.record


def _check_same_data(ticket: Ticket, data: Dataset) -> None:
    """Raises StaleTicket where the images or classes are not those that the ticket's network answers to."""
    there = data.description
    if list(there.class_names) != list(ticket.data["class_names"]) or list(there.shape) != list(ticket.data["shape"]):
        raise StaleTicket(
            f"the ticket is for {len(ticket.data['class_names'])} classes of {ticket.data['name']} and images {list(ticket.data['shape'])}, "
            f"{there.name} has other ones; pass the data that the ticket was found on"
        )


def _sizes(small: Size, dense: Size) -> dict[str, int]:
    return {"params": small.params, "macs": small.macs, "dense_params": dense.params, "dense_macs": dense.macs}


def _probe(ticket: Ticket) -> Tensor:
    """Seeded images of the data's shape (PROBES, C, H, W), about as normalised data looks."""
    return _noise(PROBES, tuple(ticket.data["shape"]))


def _noise(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model.eval()(images)
    return logits


def _structured(ticket: Ticket, network: nn.Module, probe: Tensor, dense: Size) -> tuple[nn.Module, PruningPlan, dict[str, Any]]:
    """The small network that `network` of the ticket comes down to, its plan, and the record of how.

    Raises Disagreement where taking out the emptied channels of a masked network, or parting layers of low rank, changes its answers.
    """
    if in_a_basis(ticket):
        halves = factorised(ticket, network)
        check_rewritten("the network with layers in two and the whole one", halves.module, network, probe)
        return halves.module, ticket.plan, {"ranks": dict(halves.ranks), "not_in_two": _unsplit(halves)}
    if ticket.mask is None:
        return network, ticket.plan, {}
    found = without_emptied(ticket, network)
    check_rewritten("the network without its emptied channels and the masked one", found.module, network, probe)
    told = _structure(ticket.mask, network, found, (dense.macs, size(found.module, probe).macs))
    return found.module, found.plan, {"structure": told}


def _unsplit(halves: Factorised) -> dict[str, str]:
    """Layer -> why it stayed whole."""
    return {name: why for name, why in halves.told.items() if name not in halves.ranks}


def _structure(mask: WeightMask, masked: nn.Module, found: Emptied, macs: tuple[int, int]) -> dict[str, Any]:
    """How much of the sparsity of `mask` was structure: channels that left `masked` with all their weights."""
    dropped, removed = mask.dropped(masked), zeros(masked, found.plan)
    count = sum(int(gone.sum()) for gone in dropped.values())
    inside = sum(int((gone & removed[name]).sum()) for name, gone in dropped.items() if name in removed)
    before, after = mask.weights
    widths = [widths for name, widths in found.plan.widths.items() if name not in found.plan.frozen]
    return {
        "weights": {"kept": after, "all": before},
        "share_in_removed": inside / count if count else 0.0,  # of the dropped weights, those that sat in removed channels
        "channels": {"constant": found.constant, "unread": found.unread, "all": sum(width for width, _ in widths)},
        "macs": dict(zip(("before", "after"), macs, strict=True)),
    }


def _metadata(ticket: Ticket, precision: str, recalibrated: bool, snapped: Snapped) -> dict[str, str]:
    """What travels inside the file: all that a deployment has to know."""
    row = ticket.row
    accuracy = {"value": row.val_accuracy, "split": "validation"}
    if not snapped.same_answers:
        accuracy = {"value": None, "split": "not measured: widths were rounded down"}
    elif row.test_accuracy is not None:
        accuracy = {"value": row.test_accuracy, "split": "test"}
    return {
        "producer": "ltcompile",
        "ticket_checksum": ticket.checksum,
        "model": json.dumps(dict(ticket.model)),
        "data": str(ticket.data["name"]),
        "class_names": json.dumps(list(ticket.data["class_names"])),
        "mean": json.dumps(list(ticket.data["mean"])),
        "std": json.dumps(list(ticket.data["std"])),
        "interpolation": str(ticket.data.get("interpolation", "bilinear")),  # tickets before it knew no other
        "input": "pixels / 255, minus mean, divided by std; NCHW, RGB or grey",
        "precision": precision,
        "recalibrated": json.dumps(recalibrated),
        "snapped": snapped.way,
        "accuracy": json.dumps(accuracy),
    }


def _write_safetensors(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Weights of the folded network; `path`.json beside it says the rest."""
    from safetensors.torch import save

    write_bytes(path, save({name: value.contiguous() for name, value in model.state_dict().items()}, dict(metadata)))


_WRITERS = {".onnx": export_classifier, ".pt2": export_program, ".safetensors": _write_safetensors}


def _reader(path: Path, folded: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """What the written file itself answers to images."""
    if path.suffix == ".onnx":
        return partial(run_onnx, path)
    if path.suffix == ".pt2":
        return partial(_logits_of, torch.export.load(path).module())
    import copy

    from safetensors.torch import load_file

    fresh = HalfInside(folded) if precision == "fp16" else copy.deepcopy(folded)
    fresh.load_state_dict(load_file(path))
    return partial(_logits, fresh)


def _logits_of(program: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = program(images)
    return logits
