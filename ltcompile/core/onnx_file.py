"""ONNX files as data: parsed and looked at, never run, and without the other files that they may name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltcompile.core.fields import LARGEST, short
from ltcompile.core.tensors import check_is_file
from ltcompile.errors import InvalidFile

MOST_DIMENSIONS = 64
BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # TensorProto's types of whole numbers of bytes
VALUES = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data")  # where they lie, if not in raw_data


def read_onnx(path: Path) -> Any:
    """The model in `path`, its weights of the shapes that it declares; those in other files are not read.

    Raises:
        InvalidFile: it is missing, no ONNX, or damaged.
    """
    import onnx

    check_is_file(path, "ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        message = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "export it again" if path.suffix == ".onnx" else "name an .onnx file"
        raise InvalidFile(f"{path} cannot be read as ONNX: {message}; {remedy}") from error
    if not model.ir_version or not model.HasField("graph"):
        raise InvalidFile(f"{path} is not an ONNX file; `ltcompile shrink` makes one of a ticket, and `ltcompile show` prints a ticket")
    if any(field.type == field.TYPE_STRING and isinstance(value, bytes) for field, value in _values(model)):
        raise InvalidFile(f"{path} is damaged: it holds a name that is not a text; export it again")
    for weight in model.graph.initializer:
        if message := _shape_error(weight):
            raise InvalidFile(f"{path} is damaged: its weight {short(weight.name)} {message}; export it again")
    return model


def external(model: Any) -> list[str]:
    """The names of all tensors that lie in other files."""
    return [tensor.name for tensor in _parts(model, "TensorProto") if tensor.data_location or tensor.external_data]


def domains(model: Any) -> set[str]:
    """Whose operators the model uses; "" is ONNX itself."""
    return {node.domain for node in _parts(model, "NodeProto")} - {"ai.onnx"} | {function.domain for function in model.functions}


def _parts(model: Any, kind: str) -> Iterator[Any]:
    return (value for field, value in _values(model) if field.type == field.TYPE_MESSAGE and field.message_type.name == kind)


def _values(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every text and message in a message with its field, however deep in graphs and attributes; what is repeated, one by one."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
        for inner in value if repeated else [value]:
            yield field, inner
            if field.type == field.TYPE_MESSAGE:
                yield from _values(inner)


def _shape_error(weight: Any) -> str:
    """What is wrong with the shape that a weight declares; empty where nothing is, or its values lie elsewhere."""
    if len(weight.dims) > MOST_DIMENSIONS or any(size < 0 for size in weight.dims) or math.prod(weight.dims) > LARGEST:
        return f"has the shape {short(list(weight.dims))}"
    if weight.data_location or weight.external_data or weight.data_type not in BYTES:
        return ""
    values = next((getattr(weight, field) for field in VALUES if getattr(weight, field)), ())
    held = len(weight.raw_data) / BYTES[weight.data_type] if weight.raw_data else len(values)
    return "" if held == math.prod(weight.dims) else f"declares the shape {short(list(weight.dims))} and holds {held:,g} numbers"
