"""Networks as callers hand them over: inside torch's wrappers, and in whatever mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ltcompile.errors import InvalidModel

Module = TypeVar("Module", bound=nn.Module)

_INSIDE = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module", "AveragedModel": "module"}


def unwrap(model: Module) -> Module:
    """The network that torch.compile, DataParallel, DistributedDataParallel or AveragedModel wraps, however deep; any other as it is.

    Layers have the names of the network inside, so that a plan of the wrapped network fits the plain one, and the other way round.

    Raises:
        InvalidModel: `model` is not an eager network whose layers are known: not an nn.Module, scripted, sharded, or lazy and never run.
    """
    network: nn.Module = model
    while isinstance(network, nn.Module) and (inside := _inside(network)) is not None:
        network = inside
    if reason := _refusal(network):
        raise InvalidModel(reason)
    return cast(Module, network)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode inside, and each of its modules in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """The attributes of all modules are afterwards what they were, whatever a forward pass assigned inside, such as a tracer's tensors."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _inside(model: nn.Module) -> nn.Module | None:
    kind = type(model)
    if not kind.__module__.startswith("torch."):
        return None
    inside = getattr(model, _INSIDE.get(kind.__name__, ""), None)
    return inside if isinstance(inside, nn.Module) else None


def _refusal(model: object) -> str:
    """Why `model` cannot be worked on, with what to do; "" where it can."""
    if not isinstance(model, nn.Module):
        return f"a network must be a torch.nn.Module, not {type(model).__name__}; lt.build_model(name) builds one by name"
    if isinstance(model, torch.jit.ScriptModule):
        return "this network is a TorchScript module, whose layers are compiled; pass the nn.Module that it was made of"
    for name, layer in model.named_modules():
        if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
            return f"{name or 'the network'} ({type(layer).__name__}) has no weights yet; run the network once on an input"
        if type(layer).__name__ == "FullyShardedDataParallel":
            return f"{name or 'the network'} is sharded; gather its weights into the plain nn.Module, and pass that"
    return ""
