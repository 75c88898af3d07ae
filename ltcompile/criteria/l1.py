"""score[c] = ||filter c||_1, the sum of its magnitudes (Li et al. 2017, arXiv:1608.08710)."""

from __future__ import annotations

from torch import Tensor

from ltcompile.criteria import Channels, Evidence

COMPARABLE = False
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: s.values.norm(p=1, dim=1))
