"""What each aten operation does to channels: one rule a family.

A rule reads the labels of the inputs and gives those of the output(s). An operation without a rule pins all that reaches it.
"""

from __future__ import annotations

import torch

from ltcompile.graph.rules import norms, parts, pixels, places, pointwise, products, reductions, reshapes
from ltcompile.graph.rules._call import RULES, Call, Requests, aten, tensors_in

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
    "reductions",
    "reshapes",
    "tensors_in",
]
KEEPS_ZERO = set(aten("clone _to_copy detach alias mul div neg contiguous tanh"))


def apply(call: Call, by_point: bool) -> None:
    """Label what `call` gave."""
    outputs = tensors_in(call.out)
    known = RULES.get(call.name, pointwise.broadcast if by_point else None)
    if (
        call.tensors
        and all(call.labels.is_weight(t) for t in call.tensors)
        and (known is not pointwise.broadcast or call.name in KEEPS_ZERO)
    ):
        for out in outputs:
            call.labels.mark_weight(out)
    if known is None:
        call.labels.pin_all(call.tensors, f"it reaches {call.name}, which cannot be followed")
        return
    dims = known(call)
    for out, of_out in zip(outputs, dims if isinstance(dims, tuple) else (dims,), strict=False):
        if of_out is not None:
            call.labels[out] = of_out


def describe(func: torch._ops.OpOverload) -> tuple[str, bool]:
    """("aten.add", whether it works point by point)."""
    return str(func.overloadpacket), torch.Tag.pointwise in func.tags
