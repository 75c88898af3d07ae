"""score[c] ~ U(0, 1): the control that every criterion must beat. The generator is seeded, so that searches are reproducible."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Evidence, Scored

COMPARABLE = True
WEIGHTS = True
NEEDS: tuple[str, ...] = ()


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return torch.rand(channels.width, generator=evidence.rng, dtype=torch.float64)
