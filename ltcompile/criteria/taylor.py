"""score[c] = (sum over the filter of weight * gradient)^2, the squared first-order change of the loss without the filter
(Molchanov et al. 2019, arXiv:1906.10771); of channels of several filters, for each of these."""

from __future__ import annotations

from torch import Tensor

from ltcompile.criteria import Evidence, Scored

COMPARABLE = True
WEIGHTS = True
NEEDS: tuple[str, ...] = ("gradients",)


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: (s.values * s.of(evidence.gradients)).sum(1).square()) / channels.block
