"""What of the original network an arm may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import PruningPlan
from ltcompile.graph import dropped_weights


@dataclass(frozen=True)
class Selection:
    """Channels by a plan, and single weights by a mask where the search is for one."""

    plan: PruningPlan
    mask: WeightMask | None = None

    def dropped(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter of the unpruned network `model` -> boolean tensor of its shape, True where plan or mask drops the value."""
        found = dropped_weights(model, self.plan)
        for name, gone in (self.mask.dropped(model) if self.mask else {}).items():
            found[name] = found[name] | gone if name in found else gone
        return found

    def remaining(self, model: nn.Module) -> tuple[int, int]:
        """How many values of the unpruned network `model` are not dropped: of matrices and filters, and of all parameters."""
        gone = {name: int(dropped.sum()) for name, dropped in self.dropped(model).items()}
        counts = [(p.dim() > 1, p.numel() - gone.get(name, 0)) for name, p in model.named_parameters()]
        return sum(n for is_matrix, n in counts if is_matrix), sum(n for _, n in counts)

    def as_mask(self, model: nn.Module) -> WeightMask | None:
        """All that is dropped as one mask of the unpruned network's parameters; None where no single weights are masked."""
        if self.mask is None:
            return None
        untouched = {name: torch.ones(kept.shape, dtype=torch.bool) for name, kept in self.mask.kept.items()}
        return WeightMask(untouched | {name: ~gone.cpu() for name, gone in self.dropped(model).items()})
