"""What takes a test seconds and is not what it tests: the exporters, and the pauses of timings."""

from __future__ import annotations

import contextlib
import functools
import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from ltcompile.lower import exporter
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.onnx_weights import with_weights

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_to_onnx = exporter.to_onnx
_made: dict[tuple[object, ...], tuple[Any, dict[str, Tensor]]] = {}


def _to_onnx_once(network: nn.Module, inputs: Inputs, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """`exporter.to_onnx`, which runs once for networks that differ in widths and weights alone: those are filled in.

    `export_onnx` compares what comes of it with the network, as always.
    """
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):  # whose values the exporter folds into others
        return _to_onnx(network, inputs, input_names, output_names)
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    shapes = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in inputs.tensors]
    layers = re.sub(r"\d+", "", str(network)), *((name, value.shape[2:], value.dtype) for name, value in weights.items())
    key = (*shapes, *input_names, *output_names, *layers)
    if key not in _made:
        made = _to_onnx(network, inputs, input_names, output_names)
        if not _holds(made, weights):
            return made
        _made[key] = made, weights
    return with_weights(*_made[key], weights)


def _holds(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Whether all weights are in the file under their names and in their type: the exporter computes with some, as in half precision."""
    from onnx import numpy_helper

    held = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}
    return all(held.get(name) == value.numpy().dtype for name, value in weights.items())


def share_tables() -> None:
    """Let PyTorch's exporters make their tables of operators once in this process, which takes most of the time of exporting a small network.

    For ONNX the source of 500 functions is read, and for any export each operator that has a decomposition is looked up 60 times.
    """
    import torch
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]
    seen = set[str]()

    def look_up_new_ones() -> None:
        for name in set(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")) - seen:
            namespace, _, operator = name.partition("::")
            packet, _, overload = operator.partition(".")
            getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
            seen.add(name)

    utils._materialize_cpp_cia_ops = look_up_new_ones


@contextlib.contextmanager
def exported_once() -> Iterator[None]:
    """The exporter runs once in a process for networks that differ in widths and weights alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "to_onnx", _to_onnx_once)
        yield


@contextlib.contextmanager
def timed_at_once() -> Iterator[None]:
    """Timings do not let threads settle or collect garbage, and the load of the machine is not awaited."""
    uncollected = SimpleNamespace(isenabled=gc.isenabled, enable=gc.enable, disable=gc.disable, collect=lambda: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltcompile.timing.gc", uncollected)
        patch.setattr("ltcompile.timing.SETTLE_S", 0.0)
        patch.setattr("ltcompile.benchmark.profiling.timer.SETTLE_S", 0.0)
        patch.setattr("ltcompile.core.load.SAMPLE_S", 0.0)
        yield
