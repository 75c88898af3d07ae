"""Multi-prize tickets by biprop (Diffenderfer & Kailkhura 2021, arXiv:2103.09377): binary weights inside a network that is never trained.

    weight = alpha * sign(w0) * kept,    alpha = |w0 * kept|_1 / count of kept, one for each layer

The gradient passes to the scores as in edge-popup, through w0 and not through its sign, as in the paper's code (chrundle/biprop,
`GetQuantnet_binary`). `lower.binary_weights` writes such a network as signs and alphas.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltcompile.search.methods import _scores

ITERATIVE, recipe = False, _scores.recipe


class Binary(_scores.Scored):
    """Frozen weights -> plus or minus alpha where kept, zero elsewhere."""

    def effective(self, weight: Tensor, kept: Tensor) -> Tensor:
        alpha = torch.where(kept, weight.abs(), 0.0).sum() / self.count
        return torch.where(kept, torch.where(weight < 0, -alpha, alpha), 0.0)


def attach(name: str, model: nn.Module, share: float, seed: int, trained: nn.Module | None) -> None:
    _scores.attach(model, share, seed, Binary)
