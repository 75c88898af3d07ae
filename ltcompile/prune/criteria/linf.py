"""score[c] = ||filter c||_inf, its largest magnitude (compared in Paganini & Forde 2020, arXiv:2001.05050)."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: s.values.norm(p=float("inf"), dim=1))
