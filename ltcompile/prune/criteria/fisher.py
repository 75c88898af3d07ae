"""score[c] = mean over inputs of (sum over places of x[c] * d(output)/d(x[c]))^2: to first order, how far the outputs move without the channel,
squared, for each multiply-accumulate that goes with it.

As group Fisher pruning (Liu et al. 2021, arXiv:2108.00708), with random projections of the outputs in place of the loss, so that no labels are
needed. Taken where the channel is consumed; where no layer consumes it, its weights' length stands for it."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence
from ltcompile.prune.criteria._consumers import work

COMPARABLE = True
NEEDS: tuple[str, ...] = ("responses", "places")


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean_of(evidence.responses, channels.readers) / work(channels, evidence)
