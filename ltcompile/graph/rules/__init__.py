"""What each aten operation does to channels: one rule a family.

A rule reads the labels of the inputs and gives those of the output(s). An operation without a rule pins all that reaches it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.graph._labels import Dims
from ltcompile.graph.rules import _zeros, norms, parts, pixels, places, pointwise, products, recurrent, reductions, reshapes
from ltcompile.graph.rules._call import RULES, Call, Requests, Rule, tensors_in

__all__ = [
    "Call",
    "Requests",
    "apply",
    "describe",
    "norms",
    "parts",
    "pixels",
    "places",
    "products",
    "recurrent",
    "reductions",
    "reshapes",
    "tensors_in",
]


def apply(call: Call, by_point: bool) -> None:
    """Label what `call` gave, and say where that is zero for masked channels."""
    labels, outputs = call.labels, tensors_in(call.out)
    known = RULES.get(call.name, pointwise.broadcast if by_point else None)
    tensors = call.tensors
    names = labels.sources(tensors)
    if any(map(labels.weighted, tensors)):
        for out in outputs:
            labels.set_weighted(out)
    if known is None:
        labels.pin_all(call.tensors, f"it reaches {call.name}, which cannot be followed")
        _changed(call, None)
        return
    try:
        dims = known(call)
    except Exception as error:  # arguments that the rule does not foresee
        labels.pin_all(call.tensors, f"it reaches {call.name}, which cannot be followed here: {type(error).__name__}: {error}")
        _changed(call, None)
        return
    each = list(zip(outputs, dims if isinstance(dims, tuple) else (dims,), strict=False))
    zero = [None if of_out is None else _zero(call, known, of_out, out) for out, of_out in each]
    _changed(call, zero[0] if zero else None)
    for (out, of_out), flags in zip(each, zero, strict=True):
        labels.computed_from(out, names)
        if of_out is not None and flags is not None:
            labels[out] = of_out
            labels.set_zero(out, flags)


def _zero(call: Call, known: Rule, dims: Dims, out: Tensor) -> list[bool]:
    if call.zero is not None:
        return call.zero
    if call.name in _zeros.CARRIES:
        return _zeros.carried(call, dims, out)
    if known is pointwise.broadcast and call.func is not None and call.name not in pointwise.UNDEFINED:
        return _zeros.pointwise(call, dims, out)
    return [False] * out.dim()


def _changed(call: Call, zero: list[bool] | None) -> None:
    """Report the tensors that the operation changed in place; the first output is zero as `zero` says."""
    if call.func is None or not call.func._schema.is_mutable:
        return
    labels, first = call.labels, next(iter(tensors_in(call.out)), None)
    for argument in call.func._schema.arguments:
        for tensor in tensors_in(call.values.get(argument.name)) if argument.is_write else ():
            stays = tensor is first and zero is not None and all(z or d is None for z, d in zip(zero, labels[tensor], strict=True))
            labels.written(tensor, stays)


def describe(func: torch._ops.OpOverload) -> tuple[str, bool]:
    """("aten.add", whether it works point by point)."""
    return str(func.overloadpacket), torch.Tag.pointwise in func.tags
