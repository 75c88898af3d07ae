"""score[c] = mean magnitude of the channel, over training images and places (Molchanov et al. 2017, arXiv:1611.06440, section 2.2); the mean
itself behind a ReLU. Across groups it is divided by the group's mean, where the paper divides by the length of the layer's scores.

Taken where the channel is consumed, so behind its norm and nonlinearity whatever they are, and behind pooling; where no layer consumes
it (a query that meets a key), as its own layers make it."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # layers differ in the scale of their activations, and the next layer undoes it
NEEDS: tuple[str, ...] = ("activations",)


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean_of(evidence.activations, channels.readers, channels.group.members)
