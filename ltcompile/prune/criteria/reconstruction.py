"""score[c] = the squared change of the outputs when c goes, and the channels that are left make up for it as well as they can; for each
multiply-accumulate that goes with it.

Channels go one by one, the cheapest first. With the covariance H of what a consumer reads, its weights W and a sensitivity a row of W,

    cost[c] = sum over consumers of tr(W[c]^T inverse(inverse(H)[c, c]) W[c])
    W -= inverse(H)[:, c] inverse(inverse(H)[c, c]) W[c]        inverse(H) likewise, for those that stay

as the optimal brain surgeon removes weights (Hassibi and Stork 1993), for whole channels; the places of a kernel make up for themselves
alone. The score is the largest cost up to c, so that scores rank as channels go.
Where no
consumer is known, the length of the weights stands for it. `lt.repair` makes up for it in the same way. No labels are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence
from ltcompile.prune.criteria._consumers import Consumer, consumers, work

COMPARABLE = True  # all in units of the network's outputs
NEEDS: tuple[str, ...] = ("moments", "sensitivities", "places")
RIDGE = 1e-3  # of the mean variance, on the diagonal: what second moments of few inputs do not hold
PARTS = 128  # channels go in at most so many steps


def score(channels: Channels, evidence: Evidence) -> Tensor:
    found, left = [_inverted(consumer) for consumer in consumers(channels, evidence)], torch.arange(channels.width)
    if not found:
        return channels.mean_of({}) / work(channels, evidence)
    scores, highest = torch.zeros(channels.width, dtype=torch.float64), 0.0
    step = -(-channels.width // PARTS)
    while len(left):
        costs = sum((consumer.costs(left) for consumer in found), torch.zeros(len(left), dtype=torch.float64))
        for at in costs.argsort(stable=True)[:step].tolist():
            highest = max(highest, float(costs[at]))
            scores[left[at]] = highest
            for consumer in found:
                consumer.remove(int(left[at]))
        left = left[costs.argsort(stable=True)[step:].sort().values]
    return scores / work(channels, evidence)


class _Inverted:
    """A consumer with the inverse of its second moments, from which channels are removed. `index` are the rows of each channel that is left."""

    def __init__(self, weights: Tensor, inverse: Tensor, index: Tensor) -> None:
        self.weights, self.inverse, self.index = weights, inverse, index

    def costs(self, channels: Tensor) -> Tensor:
        rows = self.index[channels]  # (c, m)
        weights, inverse = (matrix[rows[:, :, None], rows[:, None, :]] for matrix in (self.weights, self.inverse))  # (c, m, m)
        costs: Tensor = torch.linalg.solve(inverse, weights).diagonal(dim1=1, dim2=2).sum(1)
        return costs

    def remove(self, channel: int) -> None:
        rows, stays = self.index[channel], torch.ones(len(self.inverse), dtype=torch.bool)
        stays[rows] = False
        ratio = torch.linalg.solve(self.inverse[rows][:, rows], self.inverse[rows]).T  # (C_in, m)
        weights = torch.addmm(self.weights, ratio, self.weights[rows], alpha=-1)
        self.weights = torch.addmm(weights, weights[:, rows], ratio.T, alpha=-1)[stays][:, stays]
        self.inverse = torch.addmm(self.inverse, ratio, self.inverse[rows], alpha=-1)[stays][:, stays]
        self.index = (stays.cumsum(0) - 1)[self.index]


def _inverted(consumer: Consumer) -> _Inverted:
    size = consumer.moments.diagonal().mean().clamp_min(1e-30)
    ridge = RIDGE * size * torch.eye(len(consumer.moments), dtype=torch.float64)
    return _Inverted(consumer.weights, torch.linalg.inv(consumer.moments + ridge), consumer.index)
