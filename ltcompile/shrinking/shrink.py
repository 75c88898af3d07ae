"""Cut, prove, fold, export, check: one call from a ticket to a deployable file. Needs no data set."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltcompile.core.records import provenance
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset
from ltcompile.errors import BadSetting, Disagreement
from ltcompile.graph import Size, embed, size
from ltcompile.lower import HalfInside, export_onnx, export_program, fold_batch_norm, run_onnx
from ltcompile.paths import check_writable, write_bytes, write_json
from ltcompile.shrinking.rebuild import check_ticket_fits, dense_network, small_network

EQUALITY_TOLERANCE = 1e-5  # cut against masked, relative to the largest output
FILE_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}  # file against torch in fp32, likewise
PROBES = 16
Precision = Literal["fp32", "fp16"]


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
) -> Shrunk:
    """Make the ticket's network physically small and write it to `output` (.onnx, .pt2 or .safetensors).

    The cut network is compared with the masked one, and the file with the cut network; OUTPUT.json tells both errors.

    Args:
        precision: "fp16" computes in half precision behind fp32 inputs and outputs.
        model: names one's own `package.module:factory` again where the ticket needs it.
        calibrate: take batch norm's running statistics anew from this data's training images.

    Raises:
        Disagreement: the networks differ by more than the tolerance. BadFile, StaleTicket, BadSetting: as they say.
    """
    began = time.perf_counter()
    output = check_writable(output)
    if output.suffix not in _WRITERS:
        raise BadSetting(f"{output} must end in {', '.join(_WRITERS)}")
    if precision not in FILE_TOLERANCE:
        raise BadSetting(f"precision must be one of {', '.join(FILE_TOLERANCE)}, not {precision!r}")
    if not isinstance(ticket, Ticket):
        ticket = Ticket.load(ticket)
    check_ticket_fits(ticket, model, calibrate.description.classes if calibrate else None)
    dense = dense_network(ticket)
    small = small_network(ticket, dense)
    if calibrate is not None:
        _take_statistics(small, calibrate)
    probe = _probe(ticket)
    dense_size, small_size = size(dense, probe), size(small, probe)
    equality_error = _check_equal(small, ticket, dense, probe)
    del dense
    folded, told = fold_batch_norm(small, probe)
    reference = _logits(folded, probe)
    _check_within("the folded network and the cut one", reference, _logits(small, probe), EQUALITY_TOLERANCE)
    _WRITERS[output.suffix](
        HalfInside(folded) if precision == "fp16" else folded, probe, output, _metadata(ticket, precision, calibrate is not None)
    )
    if precision == "fp16":
        folded = folded.float()
    file_error = _check_within(f"{output} and torch", _reread(output, folded, probe, precision), reference, FILE_TOLERANCE[precision])
    record = {
        "kind": "shrink",
        "format": 1,
        "output": output.name,
        "precision": precision,
        "bytes": output.stat().st_size,
        "dense_bytes": _dense_bytes(dense_size, precision),
        **_sizes(small_size, dense_size),
        "equality_error": equality_error,
        "onnx_error": file_error,
        "tolerance": FILE_TOLERANCE[precision],
        "recalibrated": calibrate is not None,
        "folded_batch_norms": sum(t.startswith("folded") for t in told.values()),
        "not_folded": {name: why for name, why in told.items() if not why.startswith("folded")},
        "seconds": time.perf_counter() - began,
        "ticket_checksum": ticket.checksum,
        "provenance": provenance(),
    }
    write_json(output.with_suffix(".json"), record)
    return Shrunk(folded, output, record)


def _sizes(small: Size, dense: Size) -> dict[str, int]:
    return {"params": small.params, "macs": small.macs, "dense_params": dense.params, "dense_macs": dense.macs}


def _dense_bytes(dense: Size, precision: str) -> int:
    """What the dense network's values take in the same precision."""
    return dense.params * (2 if precision == "fp16" else 4)


def _probe(ticket: Ticket) -> Tensor:
    """Seeded images of the data's shape (PROBES, C, H, W), about as normalised data looks."""
    return torch.randn(PROBES, *ticket.data["shape"], generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model.eval()(images)
    return logits


def _check_equal(small: nn.Module, ticket: Ticket, dense: nn.Module, probe: Tensor) -> float:
    """The largest error of the cut network against the masked one of the original's shape."""
    masked = embed(small, ticket.plan, dense)
    return _check_within("the cut network and the masked one", _logits(small, probe), _logits(masked, probe), EQUALITY_TOLERANCE)


def _check_within(what: str, found: Tensor, expected: Tensor, tolerance: float) -> float:
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= tolerance:
        raise Disagreement(
            f"{what} differ by {error:.2e} of the largest output, more than {tolerance:.0e}; please report this with the ticket"
        )
    return error


@torch.no_grad()
def _take_statistics(model: nn.Module, data: Dataset) -> None:
    """Batch norm's running mean and variance as plain averages over one pass of the training images."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    for images, _ in data.train.batches(256, torch.device("cpu"), None, 0):
        model(images)
    model.eval()


def _metadata(ticket: Ticket, precision: str, recalibrated: bool) -> dict[str, str]:
    """What travels inside the file: all that a deployment has to know."""
    row = ticket.row
    accuracy = row.test_accuracy if row.test_accuracy is not None else row.val_accuracy
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
        "accuracy": json.dumps({"value": accuracy, "split": "test" if row.test_accuracy is not None else "validation"}),
    }


def _write_safetensors(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Weights of the folded network; `path`.json beside it says the rest."""
    from safetensors.torch import save

    write_bytes(path, save({name: value.contiguous() for name, value in model.state_dict().items()}, dict(metadata)))


_WRITERS = {".onnx": export_onnx, ".pt2": export_program, ".safetensors": _write_safetensors}


def _reread(path: Path, folded: nn.Module, probe: Tensor, precision: str) -> Tensor:
    """The outputs that the written file itself gives."""
    if path.suffix == ".onnx":
        return run_onnx(path, probe)
    if path.suffix == ".pt2":
        return _logits_of(torch.export.load(path).module(), probe)
    import copy

    from safetensors.torch import load_file

    fresh = copy.deepcopy(folded)
    fresh = HalfInside(fresh) if precision == "fp16" else fresh
    fresh.load_state_dict(load_file(path))
    return _logits(fresh, probe)


def _logits_of(program: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = program(images)
    return logits
