"""score[c] = -||filter c||_inf: the filters whose largest magnitude is smallest stay (the negative of L-inf, compared with it in
Paganini & Forde 2020, arXiv:2001.05050). It shows how much the order of a criterion matters.
"""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence, linf

COMPARABLE = False
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return -linf.score(channels, evidence)
