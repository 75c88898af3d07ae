"""score[c] = ||filter c||^2 / sum of ||filter d||^2 over the filters d of the layer whose norm is not smaller (Lee et al. 2021,
arXiv:2010.07611).

The paper scores weights (equation 4) and orders equal ones arbitrarily; here equal weights have equal scores. A channel of several layers has
the mean of its filters' scores; Torch-Pruning averages the squares over the layers before the division."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Evidence, Scored
from ltcompile.prune.criteria._normalise import adapted

COMPARABLE = True  # the division makes layers comparable, which is the purpose of this score
WEIGHTS = True
NEEDS: tuple[str, ...] = ()


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.average([adapted(torch.cat([part.values.square().sum(1) for part in s.parts()])) for s in channels.slices])
