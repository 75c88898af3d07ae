"""Programs may come from files: their shapes and words are checked before they become C++."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltcompile.errors import Unavailable
from ltcompile.kernels import ACTIVATIONS
from ltcompile.lower.operations import WORDS
from ltcompile.lower.program import Node, Program, Value, mapped


def check(program: Program) -> None:
    """A program may be from a file: its shapes are those that PyTorch computes, and its words are words, since both become C++.

    Raises:
        Unavailable: they are not, or values are not float32.
    """
    values: dict[str, Any] = {name: constant.to("meta") for name, constant in program.constants.items()}
    values[program.input] = torch.empty(program.input_shape, device="meta")
    for node in program.nodes:
        where = f"{node.layer or node.name} ({node.target})"
        mapped([*node.args, *node.kwargs.values()], partial(_check_word, where))
        try:
            with torch.no_grad():
                found = values[node.name] = _pointwise(node, values) if node.target in _POINTWISE else _dense(node, values)
                if found is None:
                    found = values[node.name] = node.run(values)
        except Exception as error:  # whatever a file made PyTorch do
            raise Unavailable(f"{where} cannot be computed: {error}") from error
        if isinstance(found, Tensor) and (tuple(found.shape) != node.shape or found.dtype not in _DTYPES):
            raise Unavailable(f"{where} computes {found.dtype} {tuple(found.shape)}, not float32 {node.shape}")


_DTYPES = (torch.float32, torch.bfloat16, torch.uint8)


def _check_word(where: str, value: Any) -> None:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_.]*", value):
        raise Unavailable(f"{where} has the argument {value!r}")
    if not isinstance(value, Value | str | int | float | None):
        raise Unavailable(f"{where} has an argument of {type(value).__name__}")


_POINTWISE = frozenset(f"int8.{name}" for name in ("quantize", "dequantize", "lookup", "add", "mul", "mean"))


def _pointwise(node: Node, values: Mapping[str, Any]) -> Tensor | None:
    """The same of operations on elements of bytes, and their means."""
    operands = [values[value.name] for value in node.args if isinstance(value, Value)]
    kind, dtype, count = node.target.removeprefix("int8."), torch.uint8, 2 if node.target in ("int8.add", "int8.mul") else 1
    if kind == "lookup" and len(operands) == 2:
        dtype = operands.pop().dtype
    elif kind == "dequantize":
        dtype = torch.float32
    expected = torch.float32 if kind == "quantize" else torch.uint8
    if len(operands) != count or any(x.dtype != expected for x in operands):
        return None
    if kind == "mean":
        return torch.empty((*operands[0].shape[:2], 1, 1), device="meta", dtype=dtype) if operands[0].dim() == 4 else None
    return torch.empty(np.broadcast_shapes(*(tuple(x.shape) for x in operands)), device="meta", dtype=dtype)


def _dense(node: Node, values: Mapping[str, Any]) -> Tensor | None:
    """The output of a plain convolution or linear layer on the meta device; None for everything else.

    PyTorch would import its compiler for their shapes, which takes a second.
    """
    family, _, kind = node.target.rpartition(".")
    if (
        family not in ("fused", "mixed", "int8")
        or kind not in ("conv2d", "linear", "pooled_head")
        or not all(isinstance(v, Value | None) for v in node.args)
    ):
        return None
    integers, mixed, settings = family == "int8", family == "mixed", dict(node.kwargs)
    tensors: list[Any] = [None if v is None else values[v.name] for v in node.args]
    x, weight, bias, *rest = tensors
    dtype = torch.uint8 if integers else torch.float32
    into = WORDS.get(str(settings.get("dtype"))) if mixed else dtype
    same = (torch.float32, torch.bfloat16) if mixed else (dtype,)
    vectors = [bias, *rest[:1]] if integers else [bias]  # one number for each filter
    residual = rest[-1] if kind == "conv2d" else None
    known = integers or settings.get("activation") in ACTIVATIONS
    if not known or into not in _DTYPES or x.dtype not in same or any(v is not None and v.shape != weight.shape[:1] for v in vectors):
        return None
    if kind != "conv2d":
        places = 4 if kind == "pooled_head" else x.dim()
        inside = weight.dim() == 2 and x.dim() == places and weight.shape[1] == x.shape[1 if kind == "pooled_head" else -1]
        shape = (x.shape[0], len(weight)) if kind == "pooled_head" else (*x.shape[:-1], len(weight))
        return torch.empty(shape, device="meta", dtype=into) if inside else None
    sizes = [settings["stride"], settings["padding"], settings.get("dilation", [1, 1])]
    groups, count = settings["groups"], 1 + bool(settings["pool"])
    numbers = [*(n for size in sizes for n in size), groups]
    if x.dim() != 4 or weight.dim() != 4 or any(type(n) is not int for n in numbers) or any(len(size) != 2 for size in sizes):
        return None
    if min(*sizes[0], *sizes[2], groups) < 1 or min(sizes[1]) < 0 or x.shape[1] != weight.shape[1] * groups or len(weight) % groups:
        return None
    rows, columns = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, pad, dilation in zip(x.shape[2:], weight.shape[2:], *sizes, strict=True)
    )
    plain = (x.shape[0], len(weight), rows, columns)
    if min(rows, columns) < count or (residual is not None and (tuple(residual.shape) != plain or residual.dtype not in same)):
        return None
    return torch.empty((*plain[:2], rows // count, columns // count), device="meta", dtype=into)
