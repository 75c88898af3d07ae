"""score[c] = 1/2 * sum over the filter of weight^2 * h, the second-order change of the loss without the filter at a minimum, per filter if a
channel has several.

h is the diagonal of the loss's Hessian in the Gauss-Newton approximation, which is never negative, as in LeCun et al. 1989 ("Optimal brain
damage"), who compute it layer by layer; here it is estimated with sampled labels (Liu et al. 2023, arXiv:2305.14342). Yu et al. 2021
(arXiv:2101.08940) also remove whole filters by it, with the mean of h over the filter. The paper compares raw scores of all layers; one large
cut would then leave some layers almost nothing, so scores are divided by the group's mean. All weights that are removed with a channel count."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Evidence, Reduction, Scored

COMPARABLE = False  # see above
REDUCTION: Reduction = "all"
WEIGHTS = True
NEEDS: tuple[str, ...] = ("curvature",)


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: (s.values.square() * s.of(evidence.curvature)).sum(1) / 2) / channels.block
