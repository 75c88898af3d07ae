"""What takes a test seconds and is not what it tests: the exporter, and the pauses of timings."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import Tensor, nn

from ltcompile.deploy import shrink
from ltcompile.lower import export_classifier
from ltcompile.lower.resize import resized

EXPORTERS = ("ltcompile.deploy.int8.export_classifier", "ltcompile.benchmark.subjects.export_classifier")


@contextlib.contextmanager
def exported_once() -> Iterator[None]:
    """The exporter runs once for networks with parameters of the same names and images of one size; widths and weights are filled in."""
    made: dict[tuple[object, ...], tuple[Any, dict[str, Tensor]]] = {}

    def export(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        key = (*example.shape[1:], *weights)
        if key not in made:
            export_classifier(model, example, path)
            made[key] = onnx.load(path), weights
        proto = resized(*made[key], weights)
        onnx.helper.set_model_props(proto, dict(metadata or {}))
        onnx.save(proto, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shrink.__globals__["_WRITERS"], ".onnx", export)
        for place in EXPORTERS:
            patch.setattr(place, export)
        yield


@contextlib.contextmanager
def timed_at_once() -> Iterator[None]:
    """Races do not let threads settle, and nothing that is there already is looked at when garbage is collected before them."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltcompile.timing.SETTLE_S", 0.0)
        patch.setattr("ltcompile.core.load.SAMPLE_S", 0.0)
        yield
    gc.unfreeze()
