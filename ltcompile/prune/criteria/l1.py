"""score[c] = ||filter c||_1, the sum of its magnitudes (Li et al. 2017, arXiv:1608.08710)."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Evidence, Scored

COMPARABLE = False
WEIGHTS = True
NEEDS: tuple[str, ...] = ()


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: s.values.norm(p=1, dim=1))
