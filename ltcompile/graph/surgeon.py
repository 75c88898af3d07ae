"""Remove channels (`cut`), zero them (`mask`), or put a cut network back into the dense one (`embed`).

All arms of a search use these functions: a cut of trained weights is learning-rate rewinding, a cut of an early checkpoint is weight
rewinding, and a cut of fresh weights is the random control. A plan contains all that they need, so nothing is traced here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltcompile.core.notice import notify
from ltcompile.core.plan import Axis, PruningPlan
from ltcompile.errors import InvalidPlan
from ltcompile.graph._copy import copied
from ltcompile.graph.attention import replace_attention
from ltcompile.graph.baked import bake_, is_computed
from ltcompile.graph.layers import place, shrink_attributes, width
from ltcompile.graph.optimizer import carry_
from ltcompile.graph.outdated import outdated_attributes
from ltcompile.graph.removed import Zeros, remove_branches_
from ltcompile.graph.statistics import leave_out, mixes
from ltcompile.graph.wrappers import unwrap

Module = TypeVar("Module", bound=nn.Module)


def cut(model: Module, plan: PruningPlan, optimizer: torch.optim.Optimizer | None = None) -> Module:
    """A copy of `model` without the channels and branches that `plan` drops: dense, smaller, and equal to `mask(model, plan)`.

    `optimizer`, if given, must train `model`; afterwards it trains the copy, with momentum and moments cut in the same way, so that a
    training continues after the cut (see `optimizer.carry_`). Cut an averaged copy of the weights like any network:
    `ema.module = lt.cut(ema, plan)`.

    Where the plan cuts torch's attention, `graph.attention.Attention` replaces it, with the same parameter names. Loading a pickle of the
    whole module then needs ltcompile; loading a state dict, TorchScript, ONNX or pt2 does not. Where the plan cuts weights that a hook or
    a parametrisation computes, they become parameters (see `baked`). The copy has no wrapper of torch.compile or DataParallel.

    Integer attributes that the forward pass reads shrink with the channels that they count. Those that it does not read keep the dense
    network's values, such as timm's `num_features`, `head_hidden_size` and `feature_info`: set them before `reset_classifier`, which reads
    them. A notice names those that a public method reads and that equal the width in front of the head before the cut (see
    `outdated_attributes`).

    Raises:
        InvalidPlan: the plan does not fit the network; the message names the layer. InvalidModel: this is not a network; see `unwrap`.
        InvalidSetting: the optimizer does not train this network, or has state that cannot be cut.
    """
    dense = unwrap(model)
    small = cut_(copied(dense), plan)
    if optimizer is not None:
        carry_(optimizer, dense, small, kept_positions(dense, plan), {n for n, _ in dense.named_parameters() if plan.removes(n)})
    if outdated := outdated_attributes(small, plan):
        found = "; ".join(map(str, outdated))
        notify(f"attributes are as before the cut: {found}; set those that count channels before you call these methods")
    return small


def cut_(small: Module, plan: PruningPlan) -> Module:
    """`cut` in place: `small` itself, smaller. Raises InvalidPlan before a channel is cut."""
    remove_branches_(small, plan)
    slices = _slices(small, plan)
    bake_(small, {name for name, *_ in slices})
    replace_attention(small, {name for name, *_ in slices} | {name.rpartition(".")[0] for name, *_ in slices})
    done: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for name, axis, kept in slices:
        layer = small.get_submodule(name)
        where, before = place(layer, axis), width(layer, axis)
        shrink_attributes(layer, where, before, len(kept))
        for tensor_name, dim in where.tensors:
            _select(layer, tensor_name, dim, kept, done)
    return small


def mask(model: Module, plan: PruningPlan) -> Module:
    """A copy of `model` whose dropped channels are zero in all layers of their group.

    Zeroed are the weights, biases, batch-norm scales and shifts that produce the channels, and the slices that consume them: an activation
    with f(0) != 0 has no effect either. Norms that mix channels exclude the dropped ones from their statistics. Of a removed branch, the
    weights of one layer are zero, and so is what it adds. Raises InvalidPlan as `cut` does.
    """
    return mask_(copied(unwrap(model)), plan)


def mask_(masked: Module, plan: PruningPlan) -> Module:
    """`mask` in place: `masked` itself, with zeros. Raises InvalidPlan before anything is changed."""
    bake_(masked, {name for name, *_ in _slices(masked, plan)})
    zero_(masked, dropped_weights(masked, plan))
    if mixing := _mixing(masked, plan):
        leave_out(masked, mixing)
    return masked


def _mixing(model: nn.Module, plan: PruningPlan) -> dict[str, Tensor]:
    """Weight or bias of each norm that mixes channels and that `plan` cuts -> the channels that it keeps.

    A bare vector may be the weight of a norm that the network computes in its own code.
    """
    found = {}
    for name, axis, kept in _slices(model, plan):
        layer = model.get_submodule(name)
        if axis == "each" and mixes(layer):
            affine = next(n for n in ("weight", "bias") if getattr(layer, n, None) is not None)
            found[_full(name, affine)] = kept
        elif axis.endswith(".0") and isinstance(value := getattr(layer, axis[:-2]), nn.Parameter) and value.dim() == 1:
            found[_full(name, axis[:-2])] = kept
    return found


def dropped_weights(model: nn.Module, plan: PruningPlan) -> dict[str, Tensor]:
    """Parameter name -> boolean tensor of its shape, true where `plan` drops the value. Untouched parameters are left out."""
    model = unwrap(model)
    dropped = {
        _full(branch.zeroed, name): torch.ones_like(value, dtype=torch.bool)
        for branch in plan.removed_branches
        for name, value in _layer(model, branch.zeroed).named_parameters(recurse=False)
    }
    parameters, unmasked = dict(model.named_parameters(remove_duplicate=False)), plan.unmasked()
    for name, axis, kept in _slices(model, plan):
        if (name, axis) in unmasked:
            continue
        for tensor_name, dim in place(model.get_submodule(name), axis).tensors:
            full = _full(name, tensor_name)
            if full not in parameters:
                _check_not_computed(model.get_submodule(name), full)
                continue
            value = parameters[full]
            gone = torch.ones(value.shape[dim], dtype=torch.bool, device=value.device)
            gone[kept.to(value.device)] = False
            shape = [-1 if d == dim else 1 for d in range(value.dim())]
            before = dropped.get(full, torch.zeros_like(value, dtype=torch.bool))
            dropped[full] = before | gone.view(shape)
    return dropped


def _check_not_computed(layer: nn.Module, full: str) -> None:
    """Raises InvalidPlan where the value `full` of `layer` is computed in every run, so that zeroing it has no effect."""
    if is_computed(layer):
        raise InvalidPlan(f"{full} is computed by a hook or parametrisation; make it a parameter with ltcompile.graph.baked.baked(model)")


@torch.no_grad()
def zero_(model: nn.Module, dropped: dict[str, Tensor]) -> None:
    """Zero the dropped values in place."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, gone in dropped.items():
        parameters[name].masked_fill_(gone, 0)


def zeroing(model: nn.Module, dropped: dict[str, Tensor]) -> Callable[[], None]:
    """A function that zeroes the dropped values of `model`, for repeated calls: on a CPU, multiplying takes a thirtieth of filling's time."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pairs = [(parameters[name], (~gone).to(parameters[name].dtype)) for name, gone in dropped.items()]

    @torch.no_grad()
    def zero() -> None:
        for parameter, kept in pairs:
            parameter.mul_(kept)

    return zero


@torch.no_grad()
def embed(small: nn.Module, plan: PruningPlan, model: Module) -> Module:
    """The masked network that `small` came from: a copy of `model` with `small`'s values at the kept places, zeros elsewhere.

    The layers of removed branches keep `model`'s values, but for those that are zero. Raises InvalidPlan if the shapes of `small` are not
    those that `plan` leaves of `model`.
    """
    masked = mask(model, plan)
    kept_at = kept_positions(masked, plan)
    source, persistent = unwrap(small).state_dict(), masked.state_dict().keys()
    for full, target in [
        (n, t) for n, t in [*masked.named_parameters(), *masked.named_buffers()] if n in persistent and not plan.removes(n)
    ]:
        value = source.get(full)
        places = kept_at.get(full, {})
        expected = tuple(len(places[d]) if d in places else n for d, n in enumerate(target.shape))
        if value is None or tuple(value.shape) != expected:
            raise InvalidPlan(f"{full} has shape {None if value is None else tuple(value.shape)}, the plan leaves {expected}")
        if not places:
            target.copy_(value)
            continue
        axes = [places.get(d, torch.arange(n)).to(target.device) for d, n in enumerate(target.shape)]
        target[torch.meshgrid(*axes, indexing="ij")] = value.to(target.device)
    return masked


def kept_positions(model: nn.Module, plan: PruningPlan) -> dict[str, dict[int, Tensor]]:
    """Parameter or buffer name -> dimension -> the positions that stay; dimensions that the plan does not cut are left out."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, axis, kept in _slices(model, plan):
        for tensor_name, dim in place(model.get_submodule(name), axis).tensors:
            found.setdefault(_full(name, tensor_name), {})[dim] = kept
    return found


def _full(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InvalidPlan(f"the plan cuts {name!r}, which this network does not have") from error


def _slices(model: nn.Module, plan: PruningPlan) -> list[tuple[str, Axis, Tensor]]:
    """(layer, axis, kept positions) for all axes that the plan cuts."""
    slices = []
    for (name, axis), gone in plan.removed().items():
        if plan.removes(name) and not isinstance(_layer(model, name), Zeros):
            continue  # in a masked network, the branch is still there
        try:
            layer = model.get_submodule(name)
            size = width(layer, axis)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # an attribute may be anything
            raise InvalidPlan(f"the plan cuts axis {axis!r} of {name!r}, which this network does not have") from error
        if gone[-1] >= size or len(gone) >= size:
            raise InvalidPlan(f"the plan drops channels up to {gone[-1]} of {name!r}, which has {size}: was it cut before?")
        keep = torch.ones(size, dtype=torch.bool)
        keep[gone] = False
        slices.append((name, axis, keep.nonzero().flatten()))
    return slices


def _select(layer: nn.Module, name: str, dim: int, kept: Tensor, done: dict[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
    """Keep only the `kept` slices of a parameter or buffer, if the layer has it; a shared tensor is cut once and stays shared.

    `done` maps (id of a tensor, dimension) to that tensor, whose reference keeps the id valid, and its cut.
    """
    value = getattr(layer, name, None)
    if value is None:
        return
    if (id(value), dim) not in done:
        new = _laid_out_like(value, value.detach().index_select(dim, kept.to(value.device)))
        done[id(value), dim] = value, nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
    setattr(layer, name, done[id(value), dim][1])


def _laid_out_like(value: Tensor, new: Tensor) -> Tensor:
    """`new` in the channels-last format if `value` is in it."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim())
    if last is None or value.is_contiguous() or not value.is_contiguous(memory_format=last):
        return new
    return new.contiguous(memory_format=last)
