"""Example inputs from a line of text or a file. Files are data."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ltcompile.core.tensors import check_held, read_safetensors, read_torch
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.graph.inputs import Example

DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
INPUT = re.compile(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?")
MOST_VALUES = 1 << 28  # of an example
TENSORS = (".safetensors", ".pt", ".pth")


def read_example(text: str) -> Example:
    """Inputs by their shapes, as in "1x3x32x32", "image=1x3x64x64,side=1x5" or "tokens=1x128:int64" (seeded noise; whole numbers are zero);
    or from a file of tensors (.safetensors, .pt), whose names are those of the forward's parameters.

    Raises:
        InvalidSetting: the text is neither. InvalidFile: the file cannot be read.
    """
    if text.endswith(TENSORS):
        return read_inputs(Path(text))
    found = [INPUT.fullmatch(part.strip()) for part in text.split(",")]
    if not text or None in found:
        raise InvalidSetting(f"example= takes shapes, as in 1x3x32x32 or image=1x3x64x64,side=1x5, or a file of tensors; not {text!r}")
    inputs: list[tuple[str | None, Tensor]] = []
    rng = torch.Generator().manual_seed(0)
    for match in found:
        assert match is not None
        name, shape, kind = match[1], [int(size) for size in match[2].split("x")], match[3] or "float32"
        if kind not in DTYPES or not 0 < torch.Size(shape).numel() <= MOST_VALUES:
            raise InvalidSetting(f"example=: {match[0]} must have 1 to {MOST_VALUES:,} values of {', '.join(DTYPES)}")
        inputs.append((name, torch.randn(shape, generator=rng) if kind == "float32" else torch.zeros(shape, dtype=DTYPES[kind])))
    if all(name is None for name, _ in inputs):
        return tuple(tensor for _, tensor in inputs)
    if any(name is None for name, _ in inputs):
        raise InvalidSetting(f"example= names some inputs and not others: {text!r}; name all or none")
    return {str(name): tensor for name, tensor in inputs}


def read_inputs(path: Path) -> dict[str, Tensor]:
    """Tensors by the names of the network's inputs. Raises InvalidFile."""
    value = read_torch(path, "file of inputs") if path.suffix != ".safetensors" else read_safetensors(path, "file of inputs")[0]
    if not isinstance(value, dict) or not value:
        raise InvalidFile(f"{path} holds no inputs: names of the forward's parameters with a tensor each")
    check_held(value, path.stat().st_size)
    return value
