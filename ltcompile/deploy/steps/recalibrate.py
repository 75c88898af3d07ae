"""Take batch norm's running mean and variance again, from training inputs.

    mean = sum of a batch's means * its images / all images        variance likewise, unbiased within each batch

Batch norms alone are in training mode: dropout and stochastic depth stay off, as they are where the statistics will be used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.deploy.job import ShrinkJob, training_inputs
from ltcompile.errors import InvalidData
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.pruned import Pruned

ORDER = 10
BATCH = 256
Norm = nn.modules.batchnorm._BatchNorm


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """Take the statistics from the inputs of `job.calibrate`; int8 uses these for its ranges instead."""
    recalibrated = job.calibrate is not None and job.precision != "int8"
    if recalibrated:
        assert job.calibrate is not None
        network = copied(pruned.small)
        take_statistics(network, training_inputs(job.calibrate, BATCH))
        pruned = replace(pruned, small=network)
    provenance = {**pruned.provenance, "recalibrated": json.dumps(recalibrated)}
    return replace(pruned, provenance=provenance), {"recalibrated": recalibrated}


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
    hooks = [norm.register_forward_pre_hook(partial(_weigh, seen)) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        for batch in batches:
            inputs = Arguments.of(batch)
            model(*inputs.args, **inputs.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.momentum = momenta[norm]
        model.eval()
    if norms and not seen:
        raise InvalidData("calibrate gives no inputs, and batch norm needs some for its statistics; pass an iterable of batches")


def _weigh(seen: dict[nn.Module, int], norm: Any, inputs: tuple[Tensor, ...]) -> None:
    """Before `norm` runs: the share of these rows among all that it has seen."""
    x = inputs[0]
    norm.train(x.numel() > x.shape[1])  # one value a channel has no variance
    if norm.training:
        seen[norm] = seen.get(norm, 0) + len(x)
        norm.momentum = len(x) / seen[norm]
