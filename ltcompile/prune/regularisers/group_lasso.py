"""penalty = sum over channels of sqrt(n) ||w_c||_2, with w_c all n values of channel c in its dependency group.

Group lasso (Yuan & Lin 2006) on filters (Wen et al. 2016, arXiv:1608.03665), here over all layers that lose a value with the channel
(Fang et al. 2023, arXiv:2301.12900). Proximal operator: w_c -> max(0, 1 - amount / ||w_c||) w_c."""

from __future__ import annotations

from torch import Tensor

VALUES, WEIGHTED, STRENGTH, RATIO = "all", True, 2e-3, 0.0
CRITERION, REDUCTION = "l2", "all"


def penalty(norms: Tensor) -> Tensor:
    return norms.sum()


def factors(norms: Tensor, amount: float) -> Tensor:
    return (1 - amount / norms).clamp_min(0)
