"""Batch norm's running mean and variance, taken anew from training images.

    mean = sum of a batch's means * its images / all images        variance likewise, unbiased within each batch

Batch norms alone are in training mode: dropout and stochastic depth stay off, as they are where the statistics will be used.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.data import Dataset

BATCH = 256
Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def take_statistics(model: nn.Module, data: Dataset) -> None:
    """Give the batch norms of `model`, on the CPU, the statistics of `data`'s training images, one pass; it is left in eval mode.

    The average is cumulative and weighted by how many images a batch has, so that the last, smaller one counts as much as it holds. Statistics
    of one value a channel have no variance: a batch that leaves a norm so little is left out for that norm.
    """
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.running_mean is not None]
    model.eval()
    seen: dict[nn.Module, int] = {}
    momenta = {norm: norm.momentum for norm in norms}
    hooks = [norm.register_forward_pre_hook(partial(_weigh, seen)) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        for images, _ in data.train.batches(BATCH, torch.device("cpu"), None, 0):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.momentum = momenta[norm]
        model.eval()


def _weigh(seen: dict[nn.Module, int], norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Before `norm` runs: how much these images count among all that it has seen."""
    x = inputs[0]
    norm.train(x.numel() > x.shape[1])  # one value a channel has no variance
    if norm.training:
        seen[norm] = seen.get(norm, 0) + len(x)
        norm.momentum = len(x) / seen[norm]
