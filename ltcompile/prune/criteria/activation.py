"""score[c] = mean magnitude of the channel over training images and positions (Molchanov et al. 2017, arXiv:1611.06440, section 2.2).
Across groups it is divided by the group's mean, where the paper divides by the norm of the layer's scores.

It is measured at the input of the layers that consume the channel, after norms, nonlinearities and pooling; if no layer consumes the channel
(attention's queries and keys), at the output of the layers that produce it."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # layers differ in the scale of their activations, and the next layer undoes it
NEEDS: tuple[str, ...] = ("activations",)


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean_of(evidence.activations, channels.readers, channels.group.members)
