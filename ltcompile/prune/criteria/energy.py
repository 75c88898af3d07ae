"""score[c] = sum over consumers of sensitivity . weight[:, c]^2 * var(x[c]): by how much the outputs change, squared, without the channel,
for each multiply-accumulate that goes with it.

x[c] is what the consumer reads of the channel, over inputs and places: its mean goes into a bias or a batch norm, and only its variance is
lost. `sensitivity` (a value an output of the consumer) weighs the consumer's outputs by what the network's outputs make of them. No labels
are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence
from ltcompile.prune.criteria._consumers import consumers, work

COMPARABLE = True  # all in units of the network's outputs
NEEDS: tuple[str, ...] = ("moments", "sensitivities", "places")


def score(channels: Channels, evidence: Evidence) -> Tensor:
    found = list(consumers(channels, evidence))
    lost = torch.zeros(channels.width, dtype=torch.float64) if found else channels.mean_of({})
    for consumer in found:
        lost += (consumer.weights.diagonal() * consumer.moments.diagonal())[consumer.index].sum(1)
    return lost / work(channels, evidence)
