"""score[c] = ||filter c||^2 / the sum of ||filter d||^2 over those d of the group that are not shorter (Lee et al. 2021,
arXiv:2010.07611).

The paper scores weights, equation 4, where of equals one comes first; here equals are equal. Filters are scored as torch-pruning does, with
the squares averaged over the group before the division."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.criteria import Evidence, Scored

COMPARABLE = True  # the division makes it so: that is what the score was made for
WEIGHTS = True
NEEDS: tuple[str, ...] = ()


def score(channels: Scored, evidence: Evidence) -> Tensor:
    squares = channels.mean(lambda s: s.values.square().sum(1))
    rising = squares.sort().values
    not_shorter = rising.flip(0).cumsum(0).flip(0)[torch.searchsorted(rising, squares)]  # equals share one sum
    return squares / not_shorter.clamp_min(1e-30)
