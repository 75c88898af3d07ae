"""Remove channels for real (`cut`), by zeros (`mask`), or put a cut network back into the big one (`embed`).

One surgeon serves every arm of a search: a cut of trained weights is learning-rate rewinding, of an early checkpoint
weight rewinding, of fresh weights the random control. No tracing happens here: a plan says all there is to know.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Axis, PruningPlan
from ltcompile.errors import BadPlan
from ltcompile.graph.layers import Storage, storage

Module = TypeVar("Module", bound=nn.Module)


def cut(model: Module, plan: PruningPlan) -> Module:
    """A copy of `model` without the channels that `plan` drops: dense, smaller, and equal to `mask(model, plan)`.

    Raises:
        BadPlan: the plan does not fit the network; the message names the layer.
    """
    small = copy.deepcopy(model)
    for name, _, place, kept in _slices(small, plan):
        layer = small.get_submodule(name)
        for tensor_name, dim in place.tensors:
            _select(layer, tensor_name, dim, kept)
        for attribute in place.attributes:
            setattr(layer, attribute, len(kept))
    return small


def mask(model: Module, plan: PruningPlan) -> Module:
    """A copy of `model` whose dropped channels are zero in every layer of their group, so that nothing flows on.

    Weights, biases, batch-norm scales and shifts go to zero where channels are made, and so do the slices that consume
    them: an activation with f(0) != 0 leaks nothing either. Raises BadPlan as `cut` does.
    """
    masked = copy.deepcopy(model)
    zero_(masked, zeros(masked, plan))
    return masked


def zeros(model: nn.Module, plan: PruningPlan) -> dict[str, Tensor]:
    """Parameter name -> boolean tensor of its shape, true where `plan` drops the value. Untouched parameters are left out."""
    dropped: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for name, _, place, kept in _slices(model, plan):
        for tensor_name, dim in place.tensors:
            full = f"{name}.{tensor_name}" if name else tensor_name
            if full not in parameters:
                continue
            value = parameters[full]
            gone = torch.ones(value.shape[dim], dtype=torch.bool, device=value.device)
            gone[kept.to(value.device)] = False
            shape = [-1 if d == dim else 1 for d in range(value.dim())]
            before = dropped.get(full, torch.zeros_like(value, dtype=torch.bool))
            dropped[full] = before | gone.view(shape)
    return dropped


@torch.no_grad()
def zero_(model: nn.Module, dropped: dict[str, Tensor]) -> None:
    """Zero the dropped values in place, and their gradients if there are any."""
    parameters = dict(model.named_parameters())
    for name, gone in dropped.items():
        parameter = parameters[name]
        parameter.masked_fill_(gone, 0)
        if parameter.grad is not None:
            parameter.grad.masked_fill_(gone, 0)


@torch.no_grad()
def embed(small: nn.Module, plan: PruningPlan, model: Module) -> Module:
    """The masked network that `small` came from: a copy of `model` with `small`'s values at the kept places, zeros elsewhere.

    Raises BadPlan where `small` is not what `plan` leaves of `model`.
    """
    masked = mask(model, plan)
    kept_at: dict[str, dict[int, Tensor]] = {}
    for name, _, place, kept in _slices(masked, plan):
        for tensor_name, dim in place.tensors:
            kept_at.setdefault(f"{name}.{tensor_name}" if name else tensor_name, {})[dim] = kept
    source = small.state_dict()
    for full, target in masked.state_dict().items():
        value = source.get(full)
        places = kept_at.get(full, {})
        expected = tuple(len(places[d]) if d in places else n for d, n in enumerate(target.shape))
        if value is None or tuple(value.shape) != expected:
            raise BadPlan(f"{full} has shape {None if value is None else tuple(value.shape)}, the plan leaves {expected}")
        if not places:
            target.copy_(value)
            continue
        axes = [places.get(d, torch.arange(n)).to(target.device) for d, n in enumerate(target.shape)]
        target[torch.meshgrid(*axes, indexing="ij")] = value.to(target.device)
    return masked


def _slices(model: nn.Module, plan: PruningPlan) -> list[tuple[str, Axis, Storage, Tensor]]:
    """(layer, axis, its storage, kept positions) for everything that the plan makes smaller."""
    slices = []
    for (name, axis), gone in plan.removed().items():
        try:
            place = storage(model.get_submodule(name))[axis]
        except (AttributeError, KeyError) as error:
            raise BadPlan(f"the plan cuts axis {axis!r} of {name!r}, which this network does not have") from error
        width = getattr(model.get_submodule(name), place.attributes[0])
        if gone[-1] >= width or len(gone) >= width:
            raise BadPlan(f"the plan drops channels up to {gone[-1]} of {name!r}, which has {width}: was it cut before?")
        keep = torch.ones(width, dtype=torch.bool)
        keep[gone] = False
        slices.append((name, axis, place, keep.nonzero().flatten()))
    return slices


def _select(layer: nn.Module, name: str, dim: int, kept: Tensor) -> None:
    """Keep only the `kept` slices of a parameter or buffer, if the layer has it."""
    value = getattr(layer, name, None)
    if value is None:
        return
    new = value.detach().index_select(dim, kept.to(value.device))
    setattr(layer, name, nn.Parameter(new, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else new)
