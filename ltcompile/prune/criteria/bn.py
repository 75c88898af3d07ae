"""score[c] = |gamma_c| of the batch norm after the filter (network slimming, Liu et al. 2017, arXiv:1708.06519).

The mean over the group's batch norms; a group without one is scored by the norms of its filters relative to the largest. The paper compares
raw gammas of all layers after a training with an L1 penalty on them; without that penalty layers differ in scale, so scores are divided by
the group's mean."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # see above
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    weights = {(m.layer, m.axis): channels.layer(m).weight for m in channels.norms}
    return channels.mean_of({place: w.detach().abs() for place, w in weights.items() if isinstance(w, Tensor)}, channels.norms)
