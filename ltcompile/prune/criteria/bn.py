"""score[c] = |gamma_c| of the batch norm behind the filter (network slimming, Liu et al. 2017, arXiv:1708.06519).

The mean over the group's batch norms; a group without one falls back to the length of its filters over the largest. The paper compares
gammas of all layers as they are, behind a training that draws them to zero (L1); without it layers differ in their scale, so groups are
divided by their mean."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence

COMPARABLE = False  # see above
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    weights = {(m.layer, m.axis): channels.layer(m).weight for m in channels.norms}
    return channels.mean_of({place: w.detach().abs() for place, w in weights.items() if isinstance(w, Tensor)}, channels.norms)
