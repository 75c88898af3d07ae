"""Put a small network beside the dense one it came from, and measure both: the wiring behind `bench`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltcompile.backends import Subject
from ltcompile.core.records import Measurement, provenance
from ltcompile.core.ticket import Ticket, check_model
from ltcompile.data import Dataset, load_like
from ltcompile.errors import BadFile, LtcompileError, StaleTicket
from ltcompile.graph import Size, size
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.measure import BenchResult, busy_share
from ltcompile.measure import bench as measure
from ltcompile.models import build_model, is_own_code
from ltcompile.paths import write_json, write_text
from ltcompile.shrinking import check_ticket_fits, dense_network, small_network


@dataclass(frozen=True)
class _Target:
    """What is known of a small network: its ticket or, failing that, what its ONNX file tells of itself."""

    folder: Path
    ticket: Ticket | None
    onnx: Path | None
    model: dict[str, Any]
    data: dict[str, Any]  # what the ticket tells of it
    as_trained: bool = True  # False for a file that shrink changed on purpose: half precision, or new batch-norm statistics


def bench(
    target: str | Path,
    *,
    backends: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    data: str | None = None,
    data_root: str | Path = "data",
    model: str | None = None,
    seconds_per_row: float = 2.0,
    output: str | Path | None = None,
    on_row: Callable[[Measurement], None] | None = None,
) -> BenchResult:
    """Measure a ticket or an ONNX file of `shrink` against its dense network, in one run, and write bench.json and bench.csv.

    The dense network has its trained weights where the run folder holds them; else fresh ones, which are as fast, and no accuracy.
    Accuracy is told where the ticket's data can be loaded. Files go beside the target, or to `output` and its .csv.

    Raises:
        BadFile: the target is no file of ours. StaleTicket: it does not fit. Disagreement: a backend computes something else.
    """
    known = _open(Path(target))
    if known.ticket is not None:
        check_ticket_fits(known.ticket, model)
    images, labels = _images(known, data, data_root)
    busy = busy_share()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        subjects, sizes, trained = _subjects(known, Path(scratch), model)

        def told(row: Measurement) -> None:
            if on_row is not None:
                on_row(_untrained_blank(row, trained))

        result = measure(
            subjects, images, labels, backends=backends, devices=devices, batches=batches, seconds_per_row=seconds_per_row, on_row=told
        )
    path = Path(output) if output else known.folder / "bench.json"
    rows = [_untrained_blank(row, trained) for row in result.rows]
    value = {
        "kind": "bench",
        "format": 1,
        "target": Path(target).name,
        "subjects": {name: {"params": s.params, "macs": s.macs} for name, s in sizes.items()},
        **BenchResult(rows, result.skipped, result.details).to_json(),
        "images": "test set" if labels is not None else "seeded noise",
        "busy_share": busy,
        "provenance": provenance(),
    }
    write_json(path, value)
    write_text(path.with_suffix(".csv"), BenchResult(rows).to_csv())
    return BenchResult(rows, result.skipped, result.details)


def _untrained_blank(row: Measurement, dense_is_trained: bool) -> Measurement:
    """An untrained dense network has a speed, but no accuracy worth telling."""
    return row if dense_is_trained or row.subject != "dense" else replace(row, accuracy=None)


def _open(path: Path) -> _Target:
    if path.suffix == ".onnx":
        return _open_onnx(path)
    return _of_ticket(Ticket.load(path), path.parent)


def _of_ticket(ticket: Ticket, folder: Path, onnx: Path | None = None, as_trained: bool = True) -> _Target:
    return _Target(folder, ticket, onnx, dict(ticket.model), dict(ticket.data), as_trained)


def _open_onnx(path: Path) -> _Target:
    """An ONNX file of ours; its ticket too, if it lies beside it."""
    import onnx

    if not path.is_file():
        raise BadFile(f"there is no file {path}")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        raise BadFile(f"{path} cannot be read as ONNX: {error}") from error
    told = {p.key: p.value for p in proto.metadata_props}
    if told.get("producer") != "ltcompile":
        raise BadFile(
            f"{path} was not made by `ltcompile shrink`, so its dense network is unknown; shrink a ticket, or bench the ticket itself"
        )
    beside = path.parent / "ticket.pt"
    if beside.is_file() and (ticket := Ticket.load(beside)).checksum == told.get("ticket_checksum"):
        return _of_ticket(ticket, path.parent, path, told.get("precision") == "fp32" and told.get("recalibrated") == "false")
    try:
        dims = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim][1:]
        data = {key: json.loads(told[key]) for key in ("class_names", "mean", "std")}
        data |= {"name": told["data"], "shape": dims[:3], "interpolation": told["interpolation"]}
        model = json.loads(told["model"])
        check_model(model)
        return _Target(path.parent, None, path, model, data)
    except (KeyError, IndexError, ValueError) as error:
        raise BadFile(f"{path} lacks what `ltcompile shrink` writes into its files ({error!r}); shrink the ticket again") from error


def _images(known: _Target, data: str | None, data_root: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Test images (N, C, H, W) and labels (N,); without the data, seeded noise and no labels."""
    name = data or known.data["name"]
    shape, class_names = tuple(known.data["shape"]), list(known.data["class_names"])
    dataset: Dataset | None = None
    try:
        dataset = load_like(known.data, name, data_root)
    except LtcompileError:
        if data is not None:
            raise
    if dataset is None:
        noise = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
        return noise.numpy(), None
    there = dataset.description
    if list(there.class_names) != class_names or there.shape != shape:
        raise StaleTicket(
            f"the network has {len(class_names)} classes and images {shape}, {name} has {there.classes} and {there.shape}; "
            "pass the data that the ticket was found on"
        )
    batches = list(dataset.test.batches(256, torch.device("cpu"), None, 0))
    return torch.cat([x for x, _ in batches]).contiguous().numpy(), torch.cat([y for _, y in batches]).numpy()


def _subjects(known: _Target, scratch: Path, model: str | None) -> tuple[list[Subject], dict[str, Size], bool]:
    """Dense and small, both folded and exported in the same way; their sizes; whether the dense weights are trained ones."""
    example = torch.zeros(2, *known.data["shape"])
    if known.ticket is not None:
        dense = dense_network(known.ticket)
        small = small_network(known.ticket, dense)
        trained = _load_dense(dense, known.folder / f"seed{known.ticket.seed}" / "dense-0.pt")
        sizes = {"dense": size(dense, example), "small": size(small, example)}
        subject = _subject("small", small, example, scratch, known.onnx) if known.as_trained else Subject("small", None, known.onnx)
        return [_subject("dense", dense, example, scratch), subject], sizes, trained
    if is_own_code(known.model["name"]) and model != known.model["name"]:
        raise StaleTicket(f"the dense network is your own code; to run it, say so with --model {known.model['name']}")
    assert known.onnx is not None
    dense = build_model(known.model["name"], **known.model["arguments"]).eval()
    return [_subject("dense", dense, example, scratch), Subject("small", None, known.onnx)], {"dense": size(dense, example)}, False


def _subject(name: str, module: nn.Module, example: torch.Tensor, scratch: Path, onnx: Path | None = None) -> Subject:
    folded, _ = fold_batch_norm(module, example)
    if onnx is None:
        onnx = scratch / f"{name}.onnx"
        export_onnx(folded, example, onnx)
    return Subject(name, folded.eval(), onnx)


def _load_dense(dense: nn.Module, path: Path) -> bool:
    """Give the dense network its trained weights, if the run folder has them."""
    if not path.is_file():
        return False
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        dense.load_state_dict(saved["weights"])
    except Exception as error:  # torch raises a dozen types for a broken archive
        raise BadFile(f"{path} does not hold the dense network's weights: {error}") from error
    return True
