"""What stands for the layers of a removed residual branch: the first and the last give zeros, those between what they get.

Zeros are added to the shortcut in an eager run; exported programs leave the addition out (see `lower.trace`). Plain layers become torch's
own modules, `nn.Threshold` that nothing exceeds and `nn.Identity`, so that nothing which loads them needs ltcompile.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Branch, PruningPlan
from ltcompile.errors import InvalidPlan
from ltcompile.graph.layers import storage, width


class Zeros(nn.Module):
    """Zeros in the shape of the first tensor that it gets; with `stride`, with so many `channels`, and every stride-th place.

    With `pair` it gives (zeros, None), as attention does.
    """

    def __init__(self, channels: int, stride: int, pair: bool) -> None:
        super().__init__()
        self.channels, self.stride, self.pair = channels, stride, pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x: Tensor = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if not self.stride:
            made = torch.zeros_like(x)
        else:
            made = x.new_zeros(x.shape[0], self.channels, *(-(-size // self.stride) for size in x.shape[2:]))
        return (made, None) if self.pair else made


def remove_branches_(network: nn.Module, plan: PruningPlan) -> None:
    """Put stand-ins in the place of the layers of the branches that `plan` removes. Raises InvalidPlan before anything is changed."""
    made: dict[str, nn.Module] = {}
    for branch in plan.removed_branches:
        try:
            for layer in branch.layers:
                network.get_submodule(layer)
            zeroed = network.get_submodule(branch.zeroed)
            channels = width(zeroed, "out" if "out" in storage(zeroed) else "each") if branch.stride else 0
        except (AttributeError, KeyError, IndexError) as error:
            raise InvalidPlan(f"the plan removes the branch {branch.name!r}, which this network does not have") from error
        for layer in branch.layers:
            made[layer] = _stand_in(branch, layer, channels)
    for layer, module in made.items():
        parent, _, name = layer.rpartition(".")
        setattr(network.get_submodule(parent), name, module.train(network.training))


def _stand_in(branch: Branch, layer: str, channels: int) -> nn.Module:
    first = layer == branch.layers[0]
    if layer in branch.pairs or (first and branch.stride):
        return Zeros(channels if first else 0, branch.stride if first else 0, layer in branch.pairs)
    return nn.Threshold(math.inf, 0.0) if first or layer == branch.name else nn.Identity()


def is_stand_in(module: nn.Module) -> bool:
    """Whether `module` gives zeros in the place of a removed layer."""
    return isinstance(module, Zeros) or (type(module) is nn.Threshold and module.threshold == math.inf)
