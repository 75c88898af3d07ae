"""score[c] = ||filter c||_2, its Euclidean length (He et al. 2018, arXiv:1808.06866)."""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence
from ltcompile.criteria._filters import norm

COMPARABLE = False
NEEDS_GRADIENTS = False


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    return norm(group, model, 2)
