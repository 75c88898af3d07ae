"""Share images out between splits, class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from ltcompile.core.streams import generator


def stratified(labels: Tensor, shares: tuple[float, ...], seed: int) -> list[Tensor]:
    """Indices of `len(shares) + 1` disjoint parts; part i gets `shares[i]` of every class, the last one the rest.

    `labels` is (N,); each part is sorted. A class with few images gives at least one to every part where it can.
    """
    rng = generator(seed)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=rng)]
        start = 0
        for part, share in zip(parts, shares, strict=False):
            count = max(1, round(share * len(members)))
            part.append(members[start : start + count])
            start += count
        parts[-1].append(members[start:])
    return [torch.cat(part).sort().values for part in parts]
