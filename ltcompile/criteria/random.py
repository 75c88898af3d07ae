"""score[c] ~ U(0, 1): the control that every criterion must beat. Seeded, so that a search repeats."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence

COMPARABLE = True
NEEDS_GRADIENTS = False


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    return torch.rand(group.width, generator=evidence.dice, dtype=torch.float64)
