"""score[c] = ||filter c||_2, its Euclidean norm (He et al. 2018, arXiv:1808.06866). By default the consumers' slices count as well."""

from __future__ import annotations

from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence, Reduction

COMPARABLE = False
REDUCTION: Reduction = "filters"
NEEDS: tuple[str, ...] = ()


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.mean(lambda s: s.values.norm(p=2, dim=1))
