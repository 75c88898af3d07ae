"""Masked networks whose norms mix channels: the dropped ones are left out of the statistics, as they are in the cut network.

A layer norm over C channels divides by a deviation that zeros would change. So that a masked network computes what the cut one
does, its layer norms (and RMS norms, and group norms of one group) run over the kept channels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Norm = Callable[..., Tensor]


class KeptStatistics(TorchFunctionMode):
    """Norms whose weight is one of these parameters run over its kept channels, and give zeros elsewhere."""

    def __init__(self, kept: Mapping[Tensor, Tensor]) -> None:
        super().__init__()
        self.kept = {id(weight): channels for weight, channels in kept.items()}

    def __torch_function__(self, func: Norm, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = _ARGUMENTS.get(func)
        if names is None:
            return func(*args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        kept = self.kept.get(id(given.get("weight")), self.kept.get(id(given.get("bias"))))
        if kept is None or given.get("num_groups", 1) != 1 or len(given.get("normalized_shape", (1,))) != 1:
            return func(*args, **kwargs)
        return _over(func, given, kept, 1 if "num_groups" in given else -1)


_ARGUMENTS = {
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    torch.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
}


def _over(norm: Norm, given: dict[str, Any], kept: Tensor, axis: int) -> Tensor:
    x, kept = given["input"], kept.to(given["input"].device)
    few = given | {"input": x.index_select(axis, kept)}
    for name in ("weight", "bias"):
        if few.get(name) is not None:
            few[name] = few[name][kept]
    if "normalized_shape" in few:
        few["normalized_shape"] = (len(kept),)
    return torch.zeros_like(x).index_copy(axis % x.dim(), kept, norm(**few))


class _Around:
    """Hooks that run a module under KeptStatistics; parameters by name, so that a copy of the module has hooks of its own."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.kept, self.running = dict(kept), list[KeptStatistics]()

    def enter(self, module: nn.Module, _: Any) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self.running.append(KeptStatistics({parameters[name]: channels for name, channels in self.kept.items()}))
        self.running[-1].__enter__()

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop().__exit__(None, None, None)


def leave_out(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Let `model`'s norms, named by a weight or bias of theirs, take statistics over their kept channels alone; in place."""
    around = _Around(kept)
    model.register_forward_pre_hook(around.enter)
    model.register_forward_hook(around.leave, always_call=True)


def mixes(layer: nn.Module) -> bool:
    """Whether the layer takes statistics over channels that the surgeon may cut."""
    return isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) or (isinstance(layer, nn.GroupNorm) and layer.num_groups == 1)
