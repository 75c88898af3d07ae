"""score[c] = |gamma_c| of the batch norm behind the filter (network slimming, Liu et al. 2017, arXiv:1708.06519)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence
from ltcompile.criteria._filters import norm

COMPARABLE = True
NEEDS_GRADIENTS = False


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    """The mean over the group's batch norms; a group without one falls back to its filters' length over its largest."""
    scales = []
    for member in group.members:
        layer = model.get_submodule(member.layer)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None and member.axis == "each":
            scales.append(layer.weight[torch.tensor([row[0] for row in member.index])].abs())
    if scales:
        return torch.stack(scales).mean(0)
    lengths = norm(group, model, 2)
    return lengths / lengths.max().clamp_min(1e-30)
