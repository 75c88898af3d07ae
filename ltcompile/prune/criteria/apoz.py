"""score[c] = 1 - APoZ, the share of values of relu(channel) that are not zero, over training images and places (Hu et al. 2016,
arXiv:1607.03250).

Of the outputs of the batch norms of the channel where it has some, as ReLU comes behind them, else of the layers that make it. Not where
it is consumed: the mean over a whole image, in front of a classifier, is almost never zero. The paper compares the filters of one layer, so
across groups it is divided by the group's mean."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # see above
NEEDS: tuple[str, ...] = ("nonzeros",)


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean_of(evidence.nonzeros, channels.norms, channels.group.producers, channels.group.members)
