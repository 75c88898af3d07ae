"""score[c] = (sum over the filter of weight * gradient)^2, the squared first-order change of the loss without the filter
(Molchanov et al. 2019, arXiv:1906.10771)."""

from __future__ import annotations

from torch import Tensor, nn

from ltcompile.core.plan import Group
from ltcompile.criteria import Evidence
from ltcompile.criteria._filters import filters, per_producer

COMPARABLE = True
NEEDS_GRADIENTS = True


def score(group: Group, model: nn.Module, evidence: Evidence) -> Tensor:
    def change(name: str, layer: nn.Module, rows: Tensor) -> Tensor:
        gradient = evidence.gradients[f"{name}.weight"]
        return (filters(layer, rows) * filters(layer, rows, gradient)).double().sum(1).square()

    return per_producer(group, model, change)
