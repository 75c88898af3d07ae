"""How much a channel matters, one criterion a file.

A file offers `score(group, model, evidence) -> Tensor (C,)`, higher is kept; `COMPARABLE`, whether raw scores may be ranked
across groups (else a global ranking divides them by their group's mean); and `NEEDS_GRADIENTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ltcompile import registry
from ltcompile.core.plan import Group


@dataclass
class Evidence:
    """What a criterion may look at beside the weights: gradients of the training loss by parameter name, and a seeded dice."""

    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    dice: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


def names() -> list[str]:
    """The criteria there are."""
    return list(registry.modules(__name__))


def needs_gradients(name: str) -> bool:
    """Whether the criterion looks at gradients. Raises UnknownName."""
    return bool(registry.load(__name__, "criterion", name).NEEDS_GRADIENTS)


@torch.no_grad()
def score(name: str, groups: tuple[Group, ...], model: nn.Module, evidence: Evidence) -> dict[str, Tensor]:
    """Group -> scores (C,) on the CPU in float64, for every group that may be cut. Raises UnknownName."""
    criterion = registry.load(__name__, "criterion", name)
    scores = {g.name: criterion.score(g, model, evidence).double().cpu() for g in groups if not g.frozen}
    if criterion.COMPARABLE:
        return scores
    return {name: s / s.abs().mean().clamp_min(1e-30) for name, s in scores.items()}
