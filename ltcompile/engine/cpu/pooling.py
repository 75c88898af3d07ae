"""Pools and resizing of images: vectors over the channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ltcompile.engine.cpu.code import Buffer, Code, literal
from ltcompile.engine.cpu.loops import shared
from ltcompile.engine.cpu.plan import Image, Plan
from ltcompile.errors import Unavailable
from ltcompile.lower.integer import PARTS, between
from ltcompile.lower.passes._fusion import argument, pair
from ltcompile.lower.program import Node

_HEADERS = ("activations.h", "sweep.h")

_WINDOW = """
for (int p = $begin; p < $end; p++)
  for (int q = 0; q < {columns}; q++) {{
    {bounds}
    sweep<{lanes}>([&](auto width, int c) {{
      constexpr int L = decltype(width)::value;
      const auto *from = in0 + top * {in_row} + left * {in_stride} + c;
      {start}
      for (int y = top; y < bottom; y++, from += {in_row})
        for (int x = 0; x < (right - left) * {in_stride}; x += {in_stride}) {{ const auto v = {load}<L>(from + x); {combine} }}
      {store}<L>(out + p * {out_row} + q * {out_stride} + c, {finish});
    }});
  }}
"""


@dataclass(frozen=True)
class Reduction:
    """C++ of what becomes of a window's vectors `v`: a variable, what each does to it, the result, and how they are loaded and stored."""

    start: str
    combine: str
    finish: str
    load: str = "load"
    store: str = "store"


_LARGEST = Reduction("auto best = load<L>(from);", "best = larger(v, best);", "best")
_AVERAGE = Reduction("Vector<L> sum = all<L>(0.0f);", "sum += v;", "sum / (float)({places})")


def _window(x: Buffer, y: Buffer, bounds: str, parts: Reduction, places: str = "") -> Code:
    """A reduction of windows, whose `top`, `bottom`, `left` and `right` are `bounds` of the output's p and q."""
    text = _WINDOW.format(
        columns=y.width,
        lanes=y.lanes,
        in_row=x.row,
        in_stride=x.stride,
        out_row=y.row,
        out_stride=y.stride,
        bounds=bounds,
        **asdict(replace(parts, finish=parts.finish.format(places=places))),
    )
    text, items = shared(text, y.height, y.floats)
    return Code(text, headers=(*_HEADERS, *([] if x.zero is None else ["int8.h"])), items=items)


_ALL_MEAN = """
float mean[{lanes}] = {{}};
for (int y = 0; y < {rows}; y++) {{
  float sums[{lanes}] = {{}};
  for (int x = 0; x < {columns}; x++)
    sweep<{lanes}>([&](auto width, int c) {{
      constexpr int L = decltype(width)::value;
      store<L>(sums + c, load<L>(sums + c) + load<L>(in0 + y * {row} + x * {stride} + c));
    }});
  for (int c = 0; c < {lanes}; c++) mean[c] += sums[c];
}}
for (int c = 0; c < {lanes}; c++) out[c] = mean[c] * {factor};
"""


def mean_over_places(plan: Plan, name: str, x: Image, out: Image) -> None:
    """A step of the mean over all places, summed row by row, into an image of one pixel."""
    b = x.buffer
    factor = literal(1 / (b.height * b.width))
    text = _ALL_MEAN.format(lanes=out.buffer.lanes, rows=b.height, columns=b.width, row=b.row, stride=b.stride, factor=factor)
    plan.step(name, lambda: Code(text, headers=_HEADERS), out.address, in0=x.address)


def _images(plan: Plan, node: Node, shape: tuple[int, ...] | None = None, zero: int | None = None) -> tuple[Image, Image, Buffer, Buffer]:
    zero = plan.zero(plan.placed(node.args[0])) if zero is None else zero
    x, y = plan.image(node.args[0], padded=True), plan.result(node, 1, shape, zero)
    return x, y, x.buffer, y.buffer


def _settings(plan: Plan, node: Node) -> tuple[list[int], list[int], list[int]]:
    """(kernel, stride, padding), each for rows and columns."""
    two = len(node.shape) == 4
    kernel, stride, padding = node.args[1], argument(node, 2, []) or node.args[1], argument(node, 3, 0)
    if two:
        return pair(kernel), pair(stride), pair(padding)
    return [1, pair(kernel)[0]], [1, pair(stride)[0]], [0, pair(padding)[0]]


def max_pool(plan: Plan, node: Node) -> None:
    kernel, stride, padding = _settings(plan, node)
    if set(pair(argument(node, 4, 1))) != {1}:
        raise Unavailable("it has a dilation")
    x, y, xb, yb = _images(plan, node)
    bounds = _bounds(xb, kernel, stride, padding)
    plan.step(node.name, lambda: _window(xb, yb, bounds, _LARGEST), y.address, in0=x.address)


def _bounds(x: Buffer, kernel: list[int], stride: list[int], padding: list[int]) -> str:
    names = (("p", "top", "bottom"), ("q", "left", "right"))
    return " ".join(
        f"const int {first} = most({at} * {step} - {pad}, 0), {last} = least({at} * {step} - {pad} + {k}, {size});"
        for (at, first, last), k, step, pad, size in zip(names, kernel, stride, padding, (x.height, x.width), strict=True)
    )


def _avg_pool(plan: Plan, node: Node) -> None:
    average_pool(plan, node, argument(node, 5, True), argument(node, 6, None), _AVERAGE)


def average_pool(plan: Plan, node: Node, counts_padding: bool, divisor: Any, parts: Reduction, zero: int | None = None) -> None:
    """A step of an average pool; the result of `parts` is of `places`, what is divided by."""
    kernel, stride, padding = _settings(plan, node)
    x, y, xb, yb = _images(plan, node, zero=zero)
    bounds = _bounds(xb, kernel, stride, padding)
    area = "(bottom - top) * (right - left)"
    if counts_padding:
        ends = [
            f"(least({at} * {step} - {pad} + {k}, {size + pad}) - ({at} * {step} - {pad}))"
            for at, k, step, pad, size in zip("pq", kernel, stride, padding, (xb.height, xb.width), strict=True)
        ]
        area = " * ".join(ends)
    plan.step(node.name, lambda: _window(xb, yb, bounds, parts, str(divisor or area)), y.address, in0=x.address)


def _adaptive(combine: str) -> Callable[[Plan, Node], None]:
    def rule(plan: Plan, node: Node) -> None:
        first = plan.placed(node.args[0]).shape
        sizes = node.args[1] if isinstance(node.args[1], list) else [node.args[1]]
        sizes = pair(sizes) if len(first) == 4 else sizes
        sizes = [size if size is not None else old for size, old in zip(sizes, first[2:], strict=True)]
        x, y, xb, yb = _images(plan, node, (*first[:2], *sizes))
        if combine == "sum" and yb.height == yb.width == 1:
            return mean_over_places(plan, node.name, x, y)
        bounds = " ".join(
            f"const int {a} = {at} * {n} / {m}, {b} = (({at} + 1) * {n} + {m - 1}) / {m};"
            for at, a, b, n, m in (("p", "top", "bottom", xb.height, yb.height), ("q", "left", "right", xb.width, yb.width))
        )
        parts = _AVERAGE if combine == "sum" else _LARGEST
        if combine == "max":
            plan.values[node.name] = [plan.values[node.name]]  # PyTorch returns indices too
        plan.step(node.name, lambda: _window(xb, yb, bounds, parts, "(bottom - top) * (right - left)"), y.address, in0=x.address)

    return rule


_RESIZE = """
{tables}
for (int p = $begin; p < $end; p++)
  for (int q = 0; q < {columns}; q++) {{
    const auto *a = in0 + row[p] * {in_row} + column[q] * {in_stride};
    {pointers}
    sweep<{lanes}>([&](auto width, int c) {{
      constexpr int L = decltype(width)::value;
      {store}<L>(out + p * {out_row} + q * {out_stride} + c, {value});
    }});
  }}
"""


def upsample(plan: Plan, node: Node) -> None:
    """A step that resizes images: to nearest neighbours, or between neighbours."""
    smooth = "bilinear" in node.target
    x, y, xb, yb = _images(plan, node)
    whole = smooth and xb.zero is not None
    tables, pointers, value, number, one = [], "", "load<L>(a + c)", "int" if whole else "float", PARTS if whole else "1.0f"
    for axis, (name, size, new, step) in enumerate((("row", xb.height, yb.height, xb.row), ("column", xb.width, yb.width, xb.stride))):
        parts: list[Any]
        if whole:
            low, _, parts = between(size, new, node.kwargs["align_corners"])
        else:
            position = _positions(node, xb, axis, new)
            low = np.minimum(position.astype(int), size - 1).tolist()
            parts = list(map(literal, position - low))
        tables.append(f"static const int {name}[] = {{{', '.join(map(str, low))}}};")
        if smooth:
            tables.append(f"static const {number} {name}_part[] = {{{', '.join(map(str, parts))}}};")
            tables.append(f"static const int {name}_next[] = {{{', '.join(str(step if i + 1 < size else 0) for i in low)}}};")
    if smooth:
        pointers = "const auto *b = a + column_next[q], *d = a + row_next[p], *e = b + row_next[p];"
        pointers += f" const {number} v = row_part[p], u = column_part[q];"
        rows = (f"(({one} - u) * LOAD<L>({a} + c) + u * LOAD<L>({b} + c))" for a, b in ("ab", "de"))
        value = " + ".join(f"{part} * {row}" for part, row in zip((f"({one} - v)", "v"), rows, strict=True))
        value = f"({value} + {PARTS**2 // 2}) >> 22".replace("LOAD", "widen") if whole else value.replace("LOAD", "load")
    text = _RESIZE.format(
        tables="\n".join(tables),
        columns=yb.width,
        in_row=xb.row,
        in_stride=xb.stride,
        pointers=pointers,
        lanes=yb.lanes,
        out_row=yb.row,
        out_stride=yb.stride,
        value=value,
        store="narrow" if whole else "store",
    )
    text, items = shared(text, yb.height, yb.floats)
    headers = (*_HEADERS, *([] if xb.zero is None else ["int8.h"]))
    plan.step(node.name, lambda: Code(text, headers=headers, items=items), y.address, in0=x.address)


def _positions(node: Node, x: Buffer, axis: int, size: int) -> Any:
    """Where each output row or column lies between those of the input: PyTorch resizes their numbers."""
    numbers = torch.arange([x.height, x.width][axis], dtype=torch.float64)
    image = (numbers[:, None] if axis == 0 else numbers[None]).expand(1, 1, x.height, x.width)
    resized = torch.as_tensor(node.run({node.args[0].name: image.contiguous()}))[0, 0]
    assert resized.shape[axis] == size
    return (resized[:, 0] if axis == 0 else resized[0]).numpy()


def _mean(plan: Plan, node: Node) -> None:
    """The mean over all places; other means are reductions."""
    x = plan.placed(node.args[0])
    dims = sorted(d % len(x.shape) for d in node.args[1] or range(len(x.shape)))
    if len(x.shape) != 4 or dims != [2, 3] or math.prod(node.shape) != x.shape[1]:
        from ltcompile.engine.cpu.reductions import reduce

        return reduce(plan, node)
    means, image = plan.new(node.name, (1, x.shape[1], 1, 1), 1)
    mean_over_places(plan, node.name, plan.image(node.args[0], padded=True), image)
    keeps = len(node.shape) == 4
    plan.values[node.name] = means if keeps else type(means)(means.storage, means.tensor.view(node.shape))
    return None


RULES = {
    "aten.max_pool2d.default": max_pool,
    "aten.max_pool1d.default": max_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.avg_pool1d.default": _avg_pool,
    "aten.adaptive_avg_pool2d.default": _adaptive("sum"),
    "aten.adaptive_avg_pool1d.default": _adaptive("sum"),
    "aten.adaptive_max_pool2d.default": _adaptive("max"),
    "aten.mean.dim": _mean,
    "aten.upsample_nearest2d.vec": upsample,
    "aten.upsample_bilinear2d.vec": upsample,
}
