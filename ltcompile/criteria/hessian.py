"""score[c] = 1/2 * sum over the filter of weight^2 * h, the second-order change of the loss without the filter at a minimum.

h is the diagonal of the Hessian (LeCun et al. 1989, "Optimal brain damage", whose h is computed layer by layer), here of Hutchinson
estimates. Yu et al. 2021 (arXiv:2101.08940), who remove whole filters by it too, take h's mean over the filter. Below zero where the loss is
predicted to fall. Of channels of several filters, for each of these."""

from __future__ import annotations

from torch import Tensor

from ltcompile.criteria import Evidence, Scored

COMPARABLE = True  # a change of the same loss, whichever layer causes it
WEIGHTS = True
NEEDS: tuple[str, ...] = ("curvature",)


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: (s.values.square() * s.of(evidence.curvature)).sum(1) / 2) / channels.block
