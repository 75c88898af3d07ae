"""Operations that move elements: views, which cost nothing, concatenations, which are written in place where that fits, and padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ltcompile.engine.cpu.code import Buffer, lanes_of
from ltcompile.engine.cpu.plan import Lazy, Placed, Plan
from ltcompile.engine.cpu.pointwise import number
from ltcompile.errors import Unavailable
from ltcompile.lower.passes._fusion import argument
from ltcompile.lower.program import Node

_VIEWS = """
permute.default transpose.int slice.Tensor select.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default split.Tensor
split_with_sizes.default chunk.default unbind.int narrow.default expand.default unflatten.int alias.default
"""


def _view(plan: Plan, node: Node) -> None:
    """PyTorch makes the view."""
    x = plan.placed(node.args[0])
    seen = node.run({node.args[0].name: x.tensor})
    tensors = seen if isinstance(seen, list | tuple) else [seen]
    views = [Placed(x.storage, tensor) for tensor in tensors]
    plan.values[node.name] = views if isinstance(seen, list | tuple) else views[0]


def _same(plan: Plan, node: Node) -> None:
    """Clones, dropout: the value itself, since nothing is written twice. Casts between float32 and bf16 are copies."""
    x, dtype = plan.values[node.args[0].name], node.kwargs.get("dtype")
    if dtype not in (None, "torch.float32", "torch.bfloat16"):
        raise Unavailable(f"it casts to {dtype}")
    if dtype is None or (not isinstance(x, Placed) and dtype == "torch.float32"):
        plan.values[node.name] = x
        return
    placed, half = plan.placed(node.args[0]), dtype == "torch.bfloat16"
    plan.values[node.name] = placed
    if placed.half != half:
        plan.result(node, placed.channel, half=half)
        plan.copy(plan.values[node.name], placed, node.name, placed.channel)


def _reshape(plan: Plan, node: Node) -> None:
    x = plan.placed(node.args[0])
    try:
        plan.values[node.name] = Placed(x.storage, x.tensor.view(node.shape))
    except RuntimeError:
        plan.values[node.name] = Lazy(x, node.shape)


def _getitem(plan: Plan, node: Node) -> None:
    plan.values[node.name] = plan.values[node.args[0].name][node.args[1]]


def _cat(plan: Plan, node: Node) -> None:
    """In place: what fills a part writes into the concatenation. Other parts are copied."""
    dim, shape = argument(node, 1, 0) % len(node.shape), node.shape
    computed = [value for value in node.args[0] if not plan.is_constant(value)]
    channel = plan.placed(computed[0]).channel if computed else len(shape) - 1
    image = plan.result(node, channel, zero=plan.zero(plan.placed(computed[0])) if computed else None)
    whole, at = plan.values[node.name], 0
    for n, value in enumerate(node.args[0]):
        size = plan.constant(value).shape[dim] if plan.is_constant(value) else plan.placed(value).shape[dim]
        part = Placed(whole.storage, whole.tensor.narrow(dim, at, size))
        if plan.is_constant(value):
            plan.pointwise(part, [plan.constant(value)], "x0", f"{node.name}.{n}", channel)
        else:
            x = plan.placed(value)
            written = x.storage == part.storage and x.address == part.address
            if not written and dim == channel and whole.storage == node.name:
                _place(plan, node.name, x, image.buffer, at)
            if not written:
                plan.copy(part, x, f"{node.name}.{n}", channel)
        at += size


def _place(plan: Plan, name: str, x: Placed, whole: Buffer, first: int) -> None:
    """Request that `x` is written into the concatenation `name`, where it is all of its storage and starts and ends at multiples of 8."""
    b = plan.storages.get(x.storage)
    alone = b is not None and x.address.offset == b.origin and x.tensor.numel() == b.height * b.width * b.channels
    placed = x.storage in plan.requested.parts or x.storage in plan.requested.wholes
    if b is not None and alone and not placed and first % 8 == b.channels % 8 == 0 and (b.height, b.width) == (whole.height, whole.width):
        plan.requested.parts[x.storage] = (name, first)
        plan.requested.wholes[name] = replace(whole, border=0, stride=lanes_of(whole.channels), lanes=lanes_of(whole.channels))
        plan.requested.borders[name] = max(plan.requested.borders.get(name, 0), plan.requested.borders.get(x.storage, 0))


def _pad(plan: Plan, node: Node) -> None:
    pads, mode = node.args[1], argument(node, 2, "constant") if node.target == "aten.pad.default" else "constant"
    value = argument(node, 3 if node.target == "aten.pad.default" else 2, node.kwargs.get("value", 0)) or 0
    x = plan.placed(node.args[0])
    if mode in ("reflect", "replicate") and min(pads) >= 0:
        sides = dict(enumerate(zip(pads[::2], pads[1::2], strict=True)))
        runs = [_mirrored(size, *sides.get(len(x.shape) - 1 - d, (0, 0)), mode == "reflect") for d, size in enumerate(x.shape)]
        return _copy_runs(plan, node, x, runs)
    if mode != "constant" or min(pads) < 0:
        raise Unavailable(f"it pads by {pads}, mode {mode}")
    plan.result(node, x.channel)
    out = plan.values[node.name]
    plan.pointwise(out, [], f"all<L>({number(value)})", f"{node.name}.fill", x.channel, keeps_zero=value == 0)
    inside = out.tensor
    for n in range(len(pads) // 2):
        dim = len(node.shape) - 1 - n
        inside = inside.narrow(dim, pads[2 * n], x.shape[dim])
    plan.copy(Placed(out.storage, inside), x, node.name, x.channel)
    return None


Run = tuple[int, int, int]  # where a run of elements begins in the output and in the input, and its length


def _mirrored(size: int, before: int, after: int, reflect: bool) -> list[Run]:
    """A dimension that is padded by its own elements, mirrored without the outermost one, or by that."""
    first = [(i, before - i if reflect else 0, 1) for i in range(before)]
    return [*first, (before, 0, size), *((before + size + i, size - 2 - i if reflect else size - 1, 1) for i in range(after))]


def _roll(plan: Plan, node: Node) -> None:
    x, shifts, dims = plan.placed(node.args[0]), node.args[1], argument(node, 2, [])
    if not dims:
        raise Unavailable("it rolls all elements as one row")
    by = [0] * len(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        by[dim] += shift
    runs = [[(s % n, 0, n - s % n), *([(0, n - s % n, s % n)] if s % n else [])] for n, s in zip(x.shape, by, strict=True)]
    _copy_runs(plan, node, x, runs)


def _copy_runs(plan: Plan, node: Node, x: Placed, runs: list[list[Run]]) -> None:
    """Copy the product of the runs of all dimensions."""
    plan.result(node, x.channel)
    out = plan.values[node.name]
    for at, run in enumerate(itertools.product(*runs)):
        to, of = out.tensor, x.tensor
        for d, (start, source, length) in enumerate(run):
            to, of = to.narrow(d, start, length), of.narrow(d, source, length)
        plan.copy(Placed(out.storage, to), Placed(x.storage, of), f"{node.name}.{at}", x.channel)


def _stack(plan: Plan, node: Node) -> None:
    dim = argument(node, 1, 0) % len(node.shape)
    parts = [plan.placed(value) for value in node.args[0]]
    plan.result(node)
    out = plan.values[node.name]
    for n, x in enumerate(parts):
        plan.copy(Placed(out.storage, out.tensor.select(dim, n)), x, f"{node.name}.{n}")


def _shuffled(view: Callable[[torch.Tensor, Any], torch.Tensor]) -> Callable[[Plan, Node], None]:
    """An operation that is a copy of a view: its elements in another order."""

    def rule(plan: Plan, node: Node) -> None:
        x = plan.placed(node.args[0])
        plan.result(node)
        out = plan.values[node.name]
        seen = view(x.tensor, node.args[1])
        plan.copy(Placed(out.storage, out.tensor.view(seen.shape)), Placed(x.storage, seen), node.name)

    return rule


RULES: dict[str, Callable[[Plan, Node], None]] = {
    **{f"aten.{name}": _view for name in _VIEWS.split()},
    **dict.fromkeys(("aten.clone.default", "aten.dropout.default", "aten._to_copy.default"), _same),
    **{f"aten.{name}": _reshape for name in ("reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints")},
    "getitem": _getitem,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.pad.default": _pad,
    "aten.roll.default": _roll,
    "aten.constant_pad_nd.default": _pad,
    "aten.channel_shuffle.default": _shuffled(lambda x, groups: x.unflatten(1, (groups, -1)).transpose(1, 2)),
}
