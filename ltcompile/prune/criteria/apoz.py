"""score[c] = 1 - APoZ, the fraction of values of relu(channel) that are not zero, over training images and positions (Hu et al. 2016,
arXiv:1607.03250).

It is measured at the outputs of the channel's batch norms, which come before ReLU, or without one at those of the layers that produce it.
The inputs of consumers would not do: after global pooling, values are almost never zero. The paper compares filters within one layer, so
across groups scores are divided by the group's mean."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # see above
NEEDS: tuple[str, ...] = ("nonzeros",)


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean_of(evidence.nonzeros, channels.norms, channels.group.producers, channels.group.members)
