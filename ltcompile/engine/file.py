"""An engine as one file of data: tensors in safetensors, everything else as JSON in its header. Reading it executes nothing.

Tensors are named by a hash of their contents, so that all batch sizes, and an ONNX graph next to a program, share weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcompile.core.records import provenance
from ltcompile.engine.content import content_name, state
from ltcompile.engine.decision import Decision
from ltcompile.engine.signature import Signature, Tensors
from ltcompile.errors import InvalidFile
from ltcompile.lower import serialization
from ltcompile.lower.program import Program
from ltcompile.paths import write_bytes

FORMAT = 2
_KEY = "ltcompile.engine"
_SMALL = 64  # bytes; smaller weights stay in the ONNX graph, whose shapes and axes they often are


@dataclass(frozen=True)
class EngineVariant:
    """One batch size: the decision, the options of what runs it (plain values), and the program, where that needs one."""

    decision: Decision
    options: Mapping[str, Any]
    program: Program | None = None


@dataclass(frozen=True)
class EngineFile:
    """The contents of an engine file.

    `machine` must be the same for the decisions to hold; `probe` holds inputs of one row and the engine's answers to them; `onnx` joins
    the graph and its weights, where there is one; `single` is the program for one image, of which C++ is generated.
    """

    device: str
    precision: str
    signature: Signature
    machine: Mapping[str, str]
    variants: tuple[EngineVariant, ...]
    probe: tuple[Tensors, Tensors]
    onnx: Callable[[], bytes] | None = None
    single: Program | None = None


def save(contents: EngineFile, path: str | Path) -> None:
    """Write `contents` to `path`, atomically. Raises InvalidFile where it cannot be written."""
    from safetensors.torch import save as as_bytes

    pool = _Pool()
    header = {
        "kind": "engine",
        "format": FORMAT,
        "device": contents.device,
        "precision": contents.precision,
        "signature": contents.signature.to_json(),
        "machine": dict(contents.machine),
        "variants": [_variant(variant, pool) for variant in contents.variants],
        "probe": [[pool.add(tensor) for tensor in tensors] for tensors in contents.probe],
        "onnx": _onnx(contents.onnx(), pool) if contents.onnx else None,
        "single": _program(contents.single, pool),
        "provenance": provenance(),
    }
    write_bytes(path, as_bytes(pool.tensors, {_KEY: json.dumps(header)}))


def load(path: str | Path) -> EngineFile:
    """The contents of a file of `save`. Raises InvalidFile where it is missing, damaged, or not an engine."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InvalidFile(f"there is no engine at {path}; make one with `ltcompile compile`")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            if header["format"] != FORMAT:
                raise InvalidFile(f"{path} has format {header['format']}, this ltcompile reads {FORMAT}; install the one that made it")
            tensors = {name: state(file.get_tensor(name), name) for name in file.keys()}  # noqa: SIM118  (it is not a dictionary)
        variants = tuple(_read_variant(variant, tensors) for variant in header["variants"])
        signature, machine = Signature.from_json(header["signature"]), {str(k): str(v) for k, v in header["machine"].items()}
        onnx = _joined(tensors[header["onnx"]["graph"]], _named(header["onnx"]["weights"], tensors)) if header["onnx"] else None
        inputs, answers = (tuple(tensors[name] for name in names) for names in header["probe"])
        if len(inputs) != len(signature.names) or len(answers) != len(signature.outputs):
            raise ValueError("its probe has other inputs or outputs")
        single = _read_program(header.get("single"), tensors)
        return EngineFile(str(header["device"]), str(header["precision"]), signature, machine, variants, (inputs, answers), onnx, single)
    except InvalidFile:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise InvalidFile(f"{path} is not an engine, or is damaged: {error!r}; make it again with `ltcompile compile`") from error


class _Pool:
    """Tensors by a hash of their contents."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add(self, tensor: Tensor) -> str:
        name = content_name(tensor)
        self.tensors.setdefault(name, tensor.detach().cpu().contiguous().clone())
        return name


def _program(program: Program | None, pool: _Pool) -> dict[str, Any] | None:
    if program is None:
        return None
    return serialization.to_json(program) | {"constants": {name: pool.add(value) for name, value in program.constants.items()}}


def _read_program(value: Any, tensors: Mapping[str, Tensor]) -> Program | None:
    if value is None:
        return None
    return serialization.from_json(value, _named(value["constants"], tensors))


def _variant(variant: EngineVariant, pool: _Pool) -> dict[str, Any]:
    return {"decision": variant.decision.to_json(), "options": dict(variant.options), "program": _program(variant.program, pool)}


def _read_variant(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EngineVariant:
    return EngineVariant(Decision(**value["decision"]), dict(value["options"]), _read_program(value["program"], tensors))


def _onnx(model: bytes, pool: _Pool) -> dict[str, Any]:
    """The graph without its weights, and the names of these."""
    import onnx

    proto = onnx.load_from_string(model)
    weights = {}
    for weight in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if weight.raw_data and array.nbytes > _SMALL:
            weights[weight.name] = pool.add(torch.from_numpy(np.array(array)))
            weight.ClearField("raw_data")
    graph = torch.frombuffer(bytearray(proto.SerializeToString()), dtype=torch.uint8)
    return {"graph": pool.add(graph), "weights": weights}


def _named(names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {str(name): tensors[key] for name, key in names.items()}


def _joined(graph: Tensor, weights: Mapping[str, Tensor]) -> Callable[[], bytes]:
    """A function that gives the ONNX file, and raises InvalidFile where the graph reads other files, or a weight has another shape."""

    def joined() -> bytes:
        import onnx

        try:
            proto = onnx.load_from_string(graph.numpy().tobytes())
        except Exception as error:  # protobuf's own type
            raise InvalidFile(f"the engine's ONNX graph is damaged: {error}") from error
        for weight in proto.graph.initializer:
            if weight.external_data:
                raise InvalidFile(
                    f"the engine's ONNX graph reads other files for {weight.name}; make the engine again with `ltcompile compile`"
                )
            if weight.name in weights:
                tensor = weights[weight.name]
                if list(tensor.shape) != list(weight.dims):
                    raise InvalidFile(
                        f"the engine's weight {weight.name} is {tuple(tensor.shape)}, its ONNX graph says {tuple(weight.dims)}"
                    )
                weight.raw_data = tensor.numpy().tobytes()
        return bytes(proto.SerializeToString())

    return cache(joined)
