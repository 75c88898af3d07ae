"""The networks and inputs that a benchmark measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ltcompile.benchmark.reference import Reference, file_reference, module_reference
from ltcompile.benchmark.target import Target
from ltcompile.data import load_like
from ltcompile.deploy.steps.snap import AS_IT_IS, moved
from ltcompile.errors import InvalidSetting, LtcompileError, TicketMismatch
from ltcompile.graph import Size, size
from ltcompile.graph.inputs import Example
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.answers import extended
from ltcompile.lower.export import Flat
from ltcompile.lower.inputs import Inputs
from ltcompile.pruned import Pruned, compact
from ltcompile.runtimes import Subject

EXAMPLE, TEST_SET = "the example, and noise like it", "test set"
DENSE, SMALL = "dense", "small"


@dataclass(frozen=True)
class Items:
    """What networks are timed on: rows of `inputs`, their classes (N,) where they are known, and which items those are."""

    inputs: Inputs
    labels: NDArray[Any] | None = None
    origin: str = EXAMPLE


def items_of(pruned: Pruned, described: Mapping[str, Any] | None, data: str | None = None, data_root: str | Path = "data") -> Items:
    """The test images of the data `described`, or of `data`. Without data, the example; noise where that is all zero.

    Raises:
        InvalidSetting: `data` is named for another network. TicketMismatch: it is other data. What loading raises, if `data` was named.
    """
    if described is None:
        if data is not None and pruned.ticket is not None:
            raise InvalidSetting(f"data= is for classification, and the ticket is for {pruned.ticket.task}; leave it out")
        if data is not None:
            raise InvalidSetting("data= and model= belong to tickets and files; leave them out for a Pruned")
        return _example(pruned)
    name = data or described["name"]
    try:
        dataset = load_like(described, name, data_root)
    except LtcompileError:
        if data is not None:
            raise
        return _example(pruned)
    there, shape, class_names = dataset.description, tuple(described["shape"]), tuple(described["class_names"])
    if there.class_names != class_names or there.shape != shape:
        raise TicketMismatch(
            f"the network has {len(class_names)} classes and images {shape}, {name} has {there.classes} and {there.shape}; "
            "pass the data that the ticket was found on"
        )
    batches = list(dataset.test.batches(256, torch.device("cpu"), None, 0))
    images = torch.cat([x for x, _ in batches]).contiguous()
    return Items(_inputs(pruned, images), torch.cat([y for _, y in batches]).numpy(), TEST_SET)


def _example(pruned: Pruned) -> Items:
    inputs = _inputs(pruned, pruned.example)
    if not any(tensor.any() for tensor in inputs.tensors):
        inputs = extended(inputs, 2 * inputs.batch).rows(torch.arange(inputs.batch, 2 * inputs.batch))
    return Items(inputs)


def _inputs(pruned: Pruned, example: Example) -> Inputs:
    """On the CPU, with the names that they have in the file."""
    inputs = Inputs.of(pruned.small, example).on_cpu()
    return replace(inputs, names=tuple(pruned.input_names or inputs.names))


def subject_of(name: str, network: nn.Module, pruned: Pruned, scratch: Path, file: Path | None = None) -> Subject:
    """`network`, which is called as `pruned` is, with its batch norms folded, and its ONNX file: `file`, or else a new one in `scratch`."""
    folded = fold_batch_norm(network, pruned.example)[0].eval()
    inputs = Inputs.of(folded, pruned.example)
    path = file or scratch / f"{name}.onnx"
    if file is None:
        export_onnx(folded, pruned.example, path, pruned.origin, input_names=pruned.input_names, output_names=pruned.output_names)
    return Subject(name, folded if inputs.is_one_tensor else Flat(folded, inputs).eval(), path)


@dataclass(frozen=True)
class Subjects:
    """The dense network, where it is known, and the small one; their sizes; and what answers are compared with where that is not the module."""

    all: list[Subject]
    sizes: dict[str, Size]
    references: dict[str, Reference]


def subjects_of(target: Target, scratch: Path) -> Subjects:
    """Both networks, exported in the same way; new files go to the folder `scratch`. Raises InvalidModel where a network cannot be exported."""
    pruned, file = target.pruned, target.file
    found = Subjects([], {}, {})
    if pruned.dense is not None:
        found.all.append(subject_of(DENSE, pruned.dense, pruned, scratch))
        found.sizes[DENSE] = size(pruned.dense, pruned.example)
    small = _small(target) if target.small_is_known else None
    if small is not None:
        found.sizes[SMALL] = size(small, pruned.example)
    precision = target.texts.get("precision", "fp32")
    if small is not None and (file is None or (target.file_holds_small and precision == "fp32")):
        found.all.append(subject_of(SMALL, small, pruned, scratch, file))
        return found
    assert file is not None
    found.all.append(Subject(SMALL, None, file))
    if small is not None and target.file_holds_small:
        folded = fold_batch_norm(small, pruned.example)[0].eval()
        found.references[SMALL] = module_reference(folded, pruned, file, precision, scratch)
    else:
        found.references[SMALL] = file_reference(file)
    return found


def _small(target: Target) -> nn.Module:
    """The small network at the widths that its file has."""
    found, way = compact(target.pruned), target.texts.get("snapped", AS_IT_IS)
    if way == AS_IT_IS:
        return found.small
    if found.plan is None or found.dense is None:
        raise InvalidSetting(f"the widths of {target.name} were moved {way}; pass the dense network and the plan as well")
    return moved(found.small, found.plan, found.dense, way).module
