"""score[c] = mean over mini-batches of (sum over the filter of weight * gradient)^2, the squared first-order change of the loss without the
filter (Molchanov et al. 2019, arXiv:1906.10771, equations 8 and 9), per filter if a channel has several.

The square of the mean gradient would carry no information: at a minimum of the loss that gradient is noise. The paper compares raw scores of all
layers, in many small steps with training in between; one large cut would then leave some layers almost nothing, so scores are divided by the
group's mean. By default all weights that are removed with a channel count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Evidence, Reduction, Scored

COMPARABLE = False  # see above
REDUCTION: Reduction = "all"
WEIGHTS = True
NEEDS: tuple[str, ...] = ("gradients",)


def score(channels: Scored, evidence: Evidence) -> Tensor:
    squares = [channels.mean(lambda s: (s.values * s.of(batch)).sum(1).square()) for batch in evidence.gradients]  # noqa: B023
    return torch.stack(squares).mean(0) / channels.block
