"""penalty = 1/2 sum over the channels that are to go of ||w_c||_2^2, with a weight that grows (Wang et al. 2021, arXiv:2012.09243, GReg-1).

The channels are chosen by their norm when the penalty begins, and all values of their dependency groups decay. The paper raises the weight by
a fixed amount every few steps, to 1; here it rises with the training. Proximal operator: w_c -> w_c / (1 + amount)."""

from __future__ import annotations

import torch
from torch import Tensor

VALUES, WEIGHTED, STRENGTH, RATIO = "all", False, 0.5, 0.5
CRITERION, REDUCTION = "l2", "all"


def penalty(norms: Tensor) -> Tensor:
    return norms.square().sum() / 2


def factors(norms: Tensor, amount: float) -> Tensor:
    return torch.full_like(norms, 1 / (1 + amount))
