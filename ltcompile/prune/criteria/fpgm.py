"""score[c] = sum over the other filters d of the layer of ||filter c - filter d||_2: the others can replace a filter near
their geometric median (He et al. 2019, arXiv:1811.00250). The paper uses the filters that produce the channels; by default the slices of
those that consume them count as well, with distances within each layer. Torch-Pruning 1.6 takes distances between squared weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.prune.criteria import Channels, Evidence, Reduction

COMPARABLE = False  # it grows with the width of the layer and the size of its filters
REDUCTION: Reduction = "filters"
NEEDS: tuple[str, ...] = ()
CHUNK = 1024  # rows of the table of distances that are in memory at once


def score(channels: Channels, evidence: Evidence) -> Tensor:
    return channels.average([_distances(s.values) for s in channels.slices])


def _distances(rows: Tensor) -> Tensor:
    """The sum of the distances of each row (C, n) to all others (C,)."""
    return torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(CHUNK)])
