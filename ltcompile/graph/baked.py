"""Weights that hooks or parametrisations compute, as plain parameters: weight norm, spectral norm, pruning by masks and the like.

The surgeon cuts parameters. A layer whose weight is computed from others is baked before it is cut: the weight that it has now becomes
its parameter, and training continues from that.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ltcompile.graph._copy import copied

Module = TypeVar("Module", bound=nn.Module)


def baked(model: Module) -> Module:
    """`model` itself where all its weights are parameters, else a copy in which they are."""
    return bake_(copied(model)) if any(map(is_computed, model.modules())) else model


def bake_(model: Module, paths: Collection[str] | None = None) -> Module:
    """Make parameters of the computed weights of the layers at `paths`, or of all, in place."""
    for path, layer in model.named_modules():
        if is_computed(layer) and (paths is None or path in paths):
            _bake(layer)
    return model


def is_computed(layer: nn.Module) -> bool:
    """Whether a hook or parametrisation of torch's computes a tensor of the layer."""
    return parametrize.is_parametrized(layer) or any(_is_ours(hook) for hook in layer._forward_pre_hooks.values())


def _is_ours(hook: object) -> bool:
    return isinstance(hook, (WeightNorm, SpectralNorm, prune.BasePruningMethod))


def _bake(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        kind = type(layer)  # made for this layer alone, and shared with its copies: removing changes the class
        layer.__class__ = type(kind.__name__, kind.__bases__, {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")})
        for name, computed in list(layer.parametrizations.items()):  # type: ignore[operator, union-attr]  # a ModuleDict
            trained = any(p.requires_grad for p in computed.parameters())
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            value = getattr(layer, name)
            if not isinstance(value, nn.Parameter):  # without gradients, torch makes a buffer of it
                delattr(layer, name)
                setattr(layer, name, nn.Parameter(value.detach(), trained))
    for hook in [h for h in layer._forward_pre_hooks.values() if _is_ours(h)]:
        if isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)
