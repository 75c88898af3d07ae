"""ONNX operations that move elements, or change the shape: they move integers where these are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.lower._quantized_values import Builder, Held, Known, Pending
from ltcompile.lower.program import Value

Move = Callable[[str], str]  # from the name of a node's output to that of the moved one


def moved(builder: Builder, node: Any, settings: dict[str, Any]) -> Known:
    """The moved value, of the kind of the first input."""
    name = node.input[0]
    known, shape = builder.known[name], builder.shape_of(name)
    move = MOVES[node.op_type](builder, node, settings, shape)
    if isinstance(known, Pending):
        return replace(known, moves=(*known.moves, move))
    if isinstance(known, Held):
        return replace(known, name=move(known.name))
    raise Unavailable("it moves a constant")


def _reshape(builder: Builder, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Move:
    """Everything that only changes the shape."""
    kind, count = node.op_type, int(np.prod(shape))
    axes = list(settings.get("axes", [])) or (builder.ints(node.input[1]) if len(node.input) > 1 and node.input[1] else [])
    if kind == "Reshape":
        sizes = [shape[at] if size == 0 and not settings.get("allowzero") else size for at, size in enumerate(axes)]
        sizes = [count // abs(int(np.prod(sizes))) if size == -1 else size for size in sizes]
    elif kind == "Flatten":
        axis = settings.get("axis", 1)
        sizes = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
    elif kind == "Squeeze":
        gone = [axis % len(shape) for axis in axes] or [at for at, size in enumerate(shape) if size == 1]
        sizes = [size for at, size in enumerate(shape) if at not in gone]
    elif kind == "Unsqueeze":
        there, rest = [axis % (len(shape) + len(axes)) for axis in axes], iter(shape)
        sizes = [1 if at in there else next(rest) for at in range(len(shape) + len(axes))]
    else:  # Identity, Dropout
        sizes = list(shape)
    return lambda name: builder.emit("aten.reshape.default", Value(name), sizes)


def _transpose(builder: Builder, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Move:
    order = list(settings.get("perm", range(len(shape))[::-1]))
    return lambda name: builder.emit("aten.permute.default", Value(name), order)


def _slice(builder: Builder, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Move:
    starts, ends, *rest = (builder.ints(name) for name in node.input[1:])
    axes, steps = rest[0] if rest else list(range(len(starts))), rest[1] if len(rest) > 1 else [1] * len(starts)

    def move(name: str) -> str:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            name = builder.emit("aten.slice.Tensor", Value(name), axis, start, min(end, 2**31), step)
        return name

    return move


def _resize(builder: Builder, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> Move:
    size = resized(builder, node, settings, shape)[0]
    target = size[2:]
    if len(shape) != 4 or any(n % old for n, old in zip(target, shape[2:], strict=True)):
        raise Unavailable("it takes nearest neighbours, and its scales are not whole")
    return lambda name: builder.emit("aten.upsample_nearest2d.vec", Value(name), list(target), None)


def resized(builder: Builder, node: Any, settings: dict[str, Any], shape: tuple[int, ...]) -> tuple[list[int], bool]:
    """The shape that a Resize gives, and whether its scales are exactly that over the old one."""
    axes = list(settings.get("axes", range(len(shape))))
    scales = builder.array(node.input[2]) if not (len(node.input) > 3 and node.input[3]) else None
    exact = builder.ints(node.input[3]) if scales is None else [float(shape[d] * s) for d, s in zip(axes, scales, strict=True)]
    sizes = [int(np.floor(n)) for n in exact]
    return [sizes[axes.index(d)] if d in axes else size for d, size in enumerate(shape)], sizes == exact


MOVES: dict[str, Callable[[Builder, Any, dict[str, Any], tuple[int, ...]], Move]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), _reshape),
    "Transpose": _transpose,
    "Slice": _slice,
    "Resize": _resize,
}
