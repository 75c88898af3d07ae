"""Edge-popup (Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", arXiv:1911.13299): strong tickets.

    weight = w0 * kept

No weight is ever trained, only which of them stay. The paper ranks by score, its code (allenai/hidden-networks, `clamped_scores`) by |score|:
so does this. With the paper's other weights, signed constants, it would be `biprop`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcompile.search.methods import _scores

NAMES = ("edge-popup",)
ITERATIVE, recipe = False, _scores.recipe


class EdgePopupMask(_scores.Scored):
    """Frozen weights -> themselves where kept, zero elsewhere."""

    def effective(self, weight: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, weight, 0.0)


def attach(name: str, model: nn.Module, share: float, seed: int, trained: nn.Module | None) -> None:
    _scores.attach(model, share, seed, EdgePopupMask)
