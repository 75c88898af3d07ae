"""What takes a test seconds and is not what it tests: the exporters, and the pauses of timings."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltcompile.core import load
from ltcompile.lower import exporter
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.onnx_weights import with_weights
from ltcompile.paths import write_bytes

LARGEST_BYTES = 8 << 20  # of the weights of a network whose file is kept, but for one of each structure
KEPT_EXPORTS = "LTCOMPILE_KEPT_EXPORTS"  # the environment variable of the folder in which the processes of a run keep files
_to_onnx = exporter.to_onnx
_made: dict[str, Any] = {}


def _to_onnx_once(network: nn.Module, inputs: Inputs, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """`exporter.to_onnx`, which runs once for equal networks. `export_onnx` compares what comes of it with the network, as always."""
    weights = _weights(network)
    if sum(value.nbytes for value in weights.values()) > LARGEST_BYTES:
        return _to_onnx(network, inputs, input_names, output_names)
    tensors = [(tuple(tensor.shape), tensor.dtype) for tensor in inputs.tensors]
    values = [
        (name, value.shape, value.dtype, hashlib.sha256(value.view(-1).view(torch.uint8).numpy()).digest())
        for name, value in weights.items()
    ]
    name = _name(str(network), _code(network), tensors, *input_names, "->", *output_names, values)
    if (kept := _read(name)) is not None:
        return _copy(kept)
    made = _to_onnx(network, inputs, input_names, output_names)
    _keep(name, made)
    return made


def _to_onnx_once_a_structure(network: nn.Module, inputs: Inputs, input_names: Sequence[str], output_names: Sequence[str]) -> Any:
    """`_to_onnx_once`, and once for networks that differ in widths and weights alone: those are filled in."""
    if any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
    ):  # the exporter folds its values into others
        return _to_onnx_once(network, inputs, input_names, output_names)
    weights = _weights(network)
    try:
        with torch.no_grad():
            outputs = network(*inputs.tensors)
    except Exception:  # the exporter says why
        return _to_onnx(network, inputs, input_names, output_names)
    shapes = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in (*inputs.tensors, *outputs)]
    layers = re.sub(r"\d+", "", str(network)), *((name, value.shape[2:], value.dtype) for name, value in weights.items())
    name = _name(shapes, _code(network), *input_names, "->", *output_names, layers)
    if (kept := _read(name)) is not None:
        before = {tensor.name: torch.empty(tuple(tensor.dims), device="meta") for tensor in kept.graph.initializer}
        filled = with_weights(kept, before, weights)
        if _answers(filled, dict(zip(input_names, inputs.tensors, strict=True)), outputs):
            return filled
        return _to_onnx_once(network, inputs, input_names, output_names)
    made = _to_onnx(network, inputs, input_names, output_names)
    if _holds(made, weights):
        _keep(name, made)
    return made


def _answers(model: Any, inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether a filled model computes about these outputs; it does not where something in it counts channels."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception:  # of many types
        return False
    return all(torch.allclose(torch.from_numpy(a), b, rtol=1e-2, atol=1e-3) for a, b in zip(found, outputs, strict=True))


def _name(*key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _read(name: str) -> Any:
    """The model that this process or another of the run kept, or None."""
    import onnx

    if name not in _made and KEPT_EXPORTS in os.environ and (file := Path(os.environ[KEPT_EXPORTS], name)).exists():
        _made[name] = onnx.load(file)
    return _made.get(name)


def _keep(name: str, model: Any) -> None:
    _made[name] = _copy(model)
    if KEPT_EXPORTS in os.environ and model.ByteSize() <= LARGEST_BYTES:
        write_bytes(Path(os.environ[KEPT_EXPORTS], name), model.SerializeToString())


def _copy(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _code(network: nn.Module) -> list[tuple[object, ...]]:
    """In what networks of the same layers may differ: how each module computes, and its settings."""
    found = []
    for module in network.modules():
        code = getattr(type(module).forward, "__code__", None)
        how = code and (
            code.co_firstlineno,
            code.co_code,
            code.co_names,
            [each for each in code.co_consts if not isinstance(each, CodeType)],
        )
        found.append((how, *((name, value) for name, value in vars(module).items() if isinstance(value, str | bool))))
    return found


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().contiguous() for name, value in network.state_dict().items()}


def _holds(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Whether all weights are in the file under their names and in their type: the exporter computes with some, as in half precision."""
    from onnx import numpy_helper

    held = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}
    return all(held.get(name) == value.numpy().dtype for name, value in weights.items())


def share_tables() -> None:
    """Let PyTorch's exporters make their tables of operators once in this process, which takes most of the time of exporting a small network.

    For ONNX the source of 500 functions is read, and for any export each operator that has a decomposition is looked up 60 times.
    """
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


def sample_no_load() -> None:
    """Let benchmarks begin without half a second in which the machine's load is sampled: no test quotes a time."""
    load.SAMPLE_S = 0.0


@contextlib.contextmanager
def exported_once(widths: bool = True) -> Iterator[None]:
    """The exporter runs once in a run of tests for equal networks, and with `widths` for those that differ in widths and weights alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "to_onnx", _to_onnx_once_a_structure if widths else _to_onnx_once)
        yield


@contextlib.contextmanager
def timed_at_once() -> Iterator[None]:
    """Timings do not let threads settle or collect garbage."""
    uncollected = SimpleNamespace(isenabled=gc.isenabled, enable=gc.enable, disable=gc.disable, collect=lambda generation: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltcompile.timing.gc", uncollected)
        patch.setattr("ltcompile.timing.SETTLE_S", 0.0)
        patch.setattr("ltcompile.benchmark.profiling.timer.SETTLE_S", 0.0)
        yield


@contextlib.contextmanager
def unoptimised() -> Iterator[None]:
    """C++ is compiled without optimisation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltcompile.engine.cpu.native.FLAGS", ("-O0", "-march=native", "-std=c++17"))
        yield
