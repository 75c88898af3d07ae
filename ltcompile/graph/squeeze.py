"""Remove the channels that a mask made dead, whichever tool made the mask."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import nn

from ltcompile.core.streams import seeded
from ltcompile.errors import Disagreement
from ltcompile.graph._copy import copied
from ltcompile.graph.baked import bake_
from ltcompile.graph.dead_channels import Eliminated, eliminate_dead_channels, noise_like
from ltcompile.graph.inputs import Example
from ltcompile.graph.rules import tensors_in
from ltcompile.graph.trace import trace
from ltcompile.graph.wrappers import unwrap
from ltcompile.numerics import REWRITE_TOLERANCE, largest_error

Module = TypeVar("Module", bound=nn.Module)


def squeeze(model: Module, example: Example) -> Module:
    """A copy of `model` in eval mode without the channels whose weights are all zero, for zeros of any origin.

    Masks of torch.nn.utils.prune count as zeros. A channel that nothing reads goes, and so does one that is constant, for it folds into the
    biases of its readers. Both networks run on noise, and every output must agree to 1e-5 of its largest value.

    Args:
        example: what the network is called with: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        InvalidModel: the network cannot be traced. InvalidSetting: the example is of another kind. Disagreement: an output changes.
    """
    return cast(Module, squeezed(model, example).module)


@torch.no_grad()
@seeded(0)
def squeezed(model: nn.Module, example: Example) -> Eliminated:
    """`squeeze`, with the plan of what went: all commands take the weights that stay together with it."""
    network = bake_(copied(unwrap(model))).eval()
    found = eliminate_dead_channels(network, trace(network, example), example)
    for call in noise_like(example):
        before, after = (tensors_in(module(*call.args, **call.kwargs)) for module in (network, found.module))
        error = max(largest_error(new, old) for old, new in zip(before, after, strict=True))
        if error > REWRITE_TOLERANCE:
            raise Disagreement(
                f"without its empty channels an output of the network changes by {error:.1e} of its largest value, beyond "
                f"{REWRITE_TOLERANCE:.0e}; in float64 rounding is less: squeeze(model.double(), example)"
            )
    return found
