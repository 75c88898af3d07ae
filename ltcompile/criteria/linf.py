"""score[c] = ||filter c||_inf, its largest magnitude (compared in Paganini & Forde 2020, arXiv:2001.05050)."""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence
from ltcompile.criteria._filters import norm

COMPARABLE = False
NEEDS_GRADIENTS = False


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    return norm(group, model, float("inf"))
