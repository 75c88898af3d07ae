"""score[c] = ||filter c||^2 / the sum of ||filter d||^2 over those d of the layer that are not shorter (Lee et al. 2021,
arXiv:2010.07611).

The paper scores weights, equation 4, where of equals one comes first; here equals are equal. A channel that several layers make has the mean of
its filters' scores; Torch-Pruning averages the squares over the layers before the division."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Evidence, Scored

COMPARABLE = True  # the division makes it so: that is what the score was made for
WEIGHTS = True
NEEDS: tuple[str, ...] = ()


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.average([_adapted(torch.cat([part.values.square().sum(1) for part in s.parts()])) for s in channels.slices])


def _adapted(squares: Tensor) -> Tensor:
    """Each of `squares` (C,) over the sum of those that are not smaller (C,)."""
    rising = squares.sort().values
    not_smaller = rising.flip(0).cumsum(0).flip(0)[torch.searchsorted(rising, squares)]  # equals share one sum
    return squares / not_smaller.clamp_min(1e-30)
