"""penalty = sum over channels of |gamma_c|, the scale of the batch norm behind the filter (network slimming, Liu et al. 2017, arXiv:1708.06519).

Where several norms hold a channel, as in a residual stage, it is the norm of their scales. Proximal operator:
gamma_c -> max(0, 1 - amount / |gamma_c|) gamma_c, and likewise beta_c, which would otherwise remain as a constant that the cut removes."""

from __future__ import annotations

from torch import Tensor

VALUES, WEIGHTED, STRENGTH, RATIO = "scales", False, 1e-2, 0.0
CRITERION, REDUCTION = "bn", "default"


def penalty(norms: Tensor) -> Tensor:
    return norms.sum()


def factors(norms: Tensor, amount: float) -> Tensor:
    return (1 - amount / norms).clamp_min(0)
