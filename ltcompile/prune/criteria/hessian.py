"""score[c] = 1/2 * sum over the filter of weight^2 * h, the second-order change of the loss without the filter at a minimum; of channels of
several filters, for each of these.

h is the diagonal of the loss's Hessian in the Gauss-Newton approximation, never negative, as in LeCun et al. 1989 ("Optimal brain damage"), who
compute it layer by layer; here it is estimated with drawn labels (Liu et al. 2023, arXiv:2305.14342). Yu et al. 2021 (arXiv:2101.08940), who
remove whole filters by it too, take h's mean over the filter. The paper compares weights of all layers as they are; for one large cut
that leaves some layers with next to nothing, so groups are divided by their mean. All weights that go with a channel count, since all of
them are lost."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Evidence, Reduction, Scored

COMPARABLE = False  # see above
REDUCTION: Reduction = "all"
WEIGHTS = True
NEEDS: tuple[str, ...] = ("curvature",)


def score(channels: Scored, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: (s.values.square() * s.of(evidence.curvature)).sum(1) / 2) / channels.block
