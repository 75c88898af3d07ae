"""Take batch norm's running mean and variance again, from unlabelled inputs.

    mean = sum of a batch's means * its images / all images        variance likewise, unbiased within each batch

Batch norms alone are in training mode: dropout and stochastic depth stay off, as they are where the statistics will be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.errors import InvalidData
from ltcompile.graph.inputs import Arguments, Example

Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def take_statistics(model: nn.Module, batches: Iterable[Example]) -> None:
    """Give the batch norms of `model`, on the CPU, the statistics of all `batches`, one pass; it is left in eval mode.

    Batch norms alone are in training mode. The average is cumulative and weighted by the rows of a batch, so that the last, smaller one
    counts as much as it holds. Statistics of one value a channel have no variance: such a batch is left out for that norm.
    """
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.running_mean is not None]
    model.eval()
    seen: dict[nn.Module, int] = {}
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
    try:
        _watched(model, batches, norms, partial(_weigh, seen))
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
        model.eval()
    if norms and not seen:
        raise InvalidData("the inputs give batch norm no statistics: no batch has two values a channel; pass batches of two rows or more")


def _watched(model: nn.Module, batches: Iterable[Example], norms: Iterable[nn.Module], hook: Callable[..., None]) -> None:
    """Run all batches with `hook` before each norm."""
    hooks = [norm.register_forward_pre_hook(hook) for norm in norms]
    try:
        for batch in batches:
            inputs = Arguments.of(batch)
            model(*inputs.args, **inputs.kwargs)
    finally:
        for each in hooks:
            each.remove()


def _weigh(seen: dict[nn.Module, int], norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Before `norm` runs: the share of these rows among all that it has seen."""
    x = inputs[0]
    norm.train(x.numel() > x.shape[1])  # one value a channel has no variance
    if norm.training:
        seen[norm] = seen.get(norm, 0) + len(x)
        norm.momentum = len(x) / seen[norm]


@torch.no_grad()
def restate_statistics(model: nn.Module, batches: Iterable[Example]) -> None:
    """Give the batch norms of `model`, in eval mode, the statistics of what they read, and scales and shifts that make up for it.

    The network stays the same function; in training mode, it starts from that.
    """
    sums: dict[Any, list[Tensor]] = {}

    def record(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().movedim(1, 0).flatten(1).double()
        found = [torch.tensor(float(x.shape[1])), x.sum(1), x.square().sum(1)]
        sums[norm] = [a + b for a, b in zip(sums[norm], found, strict=True)] if norm in sums else found

    norms = [m for m in model.modules() if isinstance(m, Norm) and m.running_mean is not None and m.affine]
    _watched(model, batches, norms, record)
    for norm, (count, total, square) in sums.items():
        mean = total / count
        variance = ((square / count - mean.square()).clamp_min(0) * count / (count - 1).clamp_min(1)).to(norm.running_var)
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias.copy_(norm.bias + scale * (mean - norm.running_mean.double()))
        norm.weight.copy_(scale * (variance.double() + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
