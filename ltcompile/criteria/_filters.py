"""What the criteria share: the filters of a group, one row per channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Group


def per_producer(group: Group, model: nn.Module, measure: Callable[[str, nn.Module, Tensor], Tensor]) -> Tensor:
    """The mean over the group's producing layers of `measure(layer name, layer, positions (C,))`, which is (C,)."""
    rows = []
    for member in group.producers:
        positions = torch.tensor([row[0] for row in member.index])
        rows.append(measure(member.layer, model.get_submodule(member.layer), positions))
    return torch.stack(rows).mean(0)


def filters(layer: nn.Module, positions: Tensor, tensor: Tensor | None = None) -> Tensor:
    """The filters at `positions` (or the same rows of another tensor of the weight's shape), flattened: (C, fan-in)."""
    weight = layer.weight if tensor is None else tensor
    assert isinstance(weight, Tensor)
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    rows = weight.transpose(0, 1) if transposed else weight
    return rows[positions.to(rows.device)].flatten(1)


def norm(group: Group, model: nn.Module, order: float) -> Tensor:
    """The `order`-norm of each filter (C,)."""
    return per_producer(group, model, lambda _, layer, rows: filters(layer, rows).double().norm(p=order, dim=1))
