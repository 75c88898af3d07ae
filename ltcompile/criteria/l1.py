"""score[c] = ||filter c||_1, the sum of its magnitudes (Li et al. 2017, arXiv:1608.08710)."""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence
from ltcompile.criteria._filters import norm

COMPARABLE = False
NEEDS_GRADIENTS = False


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    return norm(group, model, 1)
