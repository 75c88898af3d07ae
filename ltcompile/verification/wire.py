"""A check of an ONNX file's bytes for external data and custom operators, without the `onnx` package.

The file is a protobuf message: numbered fields that hold numbers, or bytes, which may be messages again
(https://protobuf.dev/programming-guides/encoding). Those that lead to a node or a tensor are opened, all others are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ltcompile.core.fields import SchemaError, short
from ltcompile.errors import InvalidFile

OPENED = {  # what the fields of a message hold; tests compare this with onnx's own schema
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
DOMAINS = {("NodeProto", 7): (b"", b"ai.onnx"), ("FunctionProto", 10): (b"",)}  # whose operators may be used, and defined
ELSEWHERE = (13, 14)  # external_data and data_location of a tensor
IR_VERSION, GRAPH = 1, 7  # of a model
MOST_FIELDS = 5_000_000  # large language models have a tenth of that
LONGEST_VARINT = 10  # bytes


def check_self_contained(data: bytes, path: Path) -> None:
    """The ONNX file `data`, read from `path`, keeps all weights inside, and uses no operators but ONNX's own.

    Raises:
        InvalidFile: it does not, or is not an ONNX file.
    """
    try:
        seen = _examine(data)
    except SchemaError as error:
        remedy = "export it again" if path.suffix == ".onnx" else "name an .onnx file"
        raise InvalidFile(f"{path} {error}; {remedy}") from error
    if not {IR_VERSION, GRAPH} <= seen:
        raise InvalidFile(f"{path} is not an ONNX file; `ltcompile shrink` makes one of a ticket")


def _examine(data: bytes) -> set[int]:
    """The numbers of the fields of the model itself that are not 0. Raises SchemaError."""
    seen: set[int] = set()
    left, todo = MOST_FIELDS, [("ModelProto", memoryview(data))]
    while todo:
        kind, message = todo.pop()
        for number, value in _fields(message):
            left -= 1
            if left < 0:
                raise SchemaError(f"has more than {MOST_FIELDS:,} parts")
            if kind == "ModelProto" and value != 0:
                seen.add(number)
            if isinstance(value, memoryview) and number in OPENED.get(kind, {}):
                todo.append((OPENED[kind][number], value))
            else:
                _check(kind, number, value)
    return seen


def _check(kind: str, number: int, value: int | memoryview) -> None:
    """Raises SchemaError for a field that names another file or a custom operator."""
    if kind == "TensorProto" and number in ELSEWHERE and value != 0:
        raise SchemaError("keeps weights in another file")
    if (kind, number) in DOMAINS and isinstance(value, memoryview) and bytes(value) not in DOMAINS[kind, number]:
        raise SchemaError(f"uses custom operators ({short(bytes(value[:40]).decode(errors='replace'))})")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field that holds a whole number or bytes. Raises SchemaError if the message is truncated."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
            case 2:
                length, at = _varint(message, at)
                yield key >> 3, message[at : at + length]
                at += length
            case 1 | 5 as fixed:
                at += 8 if fixed == 1 else 4
            case _:
                raise SchemaError("cannot be read as ONNX: it is damaged")
    if at > len(message):
        raise SchemaError("cannot be read as ONNX: it is truncated")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + LONGEST_VARINT]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise SchemaError("cannot be read as ONNX: it is damaged")
