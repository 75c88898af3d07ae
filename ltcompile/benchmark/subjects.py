"""Networks and images as a benchmark takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltcompile.data import Dataset, load_like
from ltcompile.errors import LtcompileError, TicketMismatch
from ltcompile.lower import export_classifier, fold_batch_norm
from ltcompile.runtimes import Subject

NOISE_IMAGES = 128  # enough to compare answers on


def subject(
    name: str, module: nn.Module, example: Tensor, scratch: Path, onnx: Path | None = None, metadata: Mapping[str, str] | None = None
) -> Subject:
    """`module` with its batch norms folded, and its ONNX file: `onnx`, or else a new one in the folder `scratch`, with `metadata` in it."""
    folded, _ = fold_batch_norm(module, example)
    if onnx is None:
        onnx = scratch / f"{name}.onnx"
        export_classifier(folded, example, onnx, metadata)
    return Subject(name, folded.eval(), onnx)


def images_of(described: Mapping[str, Any], data: str | None, data_root: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Test images (N, C, H, W) and labels (N,) of the data that a ticket describes, or of `data`.

    Without the data: seeded noise and no labels. Raises TicketMismatch where `data` is other data; what loading raises, if `data` was named.
    """
    name = data or described["name"]
    shape, class_names = tuple(described["shape"]), list(described["class_names"])
    dataset: Dataset | None = None
    try:
        dataset = load_like(described, name, data_root)
    except LtcompileError:
        if data is not None:
            raise
    if dataset is None:
        noise = torch.randn(NOISE_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
        return noise.numpy(), None
    there = dataset.description
    if list(there.class_names) != class_names or there.shape != shape:
        raise TicketMismatch(
            f"the network has {len(class_names)} classes and images {shape}, {name} has {there.classes} and {there.shape}; "
            "pass the data that the ticket was found on"
        )
    batches = list(dataset.test.batches(256, torch.device("cpu"), None, 0))
    return torch.cat([x for x, _ in batches]).contiguous().numpy(), torch.cat([y for _, y in batches]).numpy()


def images_origin(labels: np.ndarray | None) -> str:
    """Which images those of `images_of` are."""
    return "seeded noise" if labels is None else "test set"
