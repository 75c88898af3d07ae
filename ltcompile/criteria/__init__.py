"""How much a channel matters, or a weight; one criterion a file.

A file offers `score(channels, evidence) -> Tensor (C,)`, higher is kept; `COMPARABLE`, whether raw scores may be ranked across
groups (else they are divided by their group's mean); `NEEDS`, the fields of `Evidence` that it looks at; and `WEIGHTS = True` where it
scores single weights as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from ltcompile import registry
from ltcompile.core.plan import Group
from ltcompile.core.streams import generator, stream
from ltcompile.criteria._channels import Channels, Reduction, Scored, Weights
from ltcompile.errors import BadSetting

__all__ = ["Channels", "Evidence", "Reduction", "Scored", "Weights", "names", "needs", "score", "score_weights", "scores_weights"]


@dataclass
class Evidence:
    """What a criterion may look at beside the weights; `ltcompile.finding.evidence.gather` collects it.

    `gradients` and `curvature` (the diagonal of the Hessian) are of the training loss, by parameter name. `activations` (mean
    magnitude) and `nonzeros` (share above zero) are means over images and places of what a layer reads (axis "in", (C_in,)) and
    of what it makes ("out" and "each", (C_out,)), by (layer, axis). `rng` is seeded.
    """

    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    curvature: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    nonzeros: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    rng: torch.Generator = field(default_factory=lambda: generator(stream("random scores", 0)))


def names() -> list[str]:
    """The criteria there are."""
    return list(registry.modules(__name__))


def needs(name: str) -> tuple[str, ...]:
    """The fields of `Evidence` without which the criterion cannot score. Raises UnknownName."""
    return tuple(registry.load(__name__, "criterion", name).NEEDS)


def scores_weights(name: str) -> bool:
    """Whether the criterion tells single weights apart. Raises UnknownName."""
    return bool(getattr(registry.load(__name__, "criterion", name), "WEIGHTS", False))


@torch.no_grad()
def score(
    name: str, groups: tuple[Group, ...], model: nn.Module, evidence: Evidence, reduction: Reduction = "producers"
) -> dict[str, Tensor]:
    """Group -> scores (C,) on the CPU in float64, for every group that may be cut.

    Args:
        reduction: which weights speak for a channel: "producers", the filters that make it; "all", every slice that goes with it,
            those of its norms and consumers too (Fang et al. 2023, arXiv:2301.12900). Either way a score is the mean over them.

    Raises:
        UnknownName: no such criterion. BadSetting: no such reduction, or evidence that the criterion needs is missing.
    """
    criterion = registry.load(__name__, "criterion", name)
    if reduction not in get_args(Reduction):
        raise BadSetting(f"the reduction must be one of {', '.join(get_args(Reduction))}, not {reduction!r}")
    _check_evidence(name, evidence)
    scores = {g.name: criterion.score(Channels(g, model, reduction), evidence).double().cpu() for g in groups if not g.frozen}
    if criterion.COMPARABLE:
        return scores
    return {group: s / s.abs().mean().clamp_min(1e-30) for group, s in scores.items()}


@torch.no_grad()
def score_weights(name: str, parameters: Mapping[str, Tensor], evidence: Evidence) -> dict[str, Tensor]:
    """Parameter name -> the scores of its weights, in its shape, on the CPU in float64; they compare across parameters as they are.

    Raises:
        UnknownName: no such criterion. BadSetting: it scores no single weights, or evidence that it needs is missing.
    """
    criterion = registry.load(__name__, "criterion", name)
    if not scores_weights(name):
        able = ", ".join(known for known in names() if scores_weights(known))
        raise BadSetting(f"criterion {name!r} scores whole filters; weights are scored by {able}")
    _check_evidence(name, evidence)
    return {name: criterion.score(Weights(name, p), evidence).double().cpu().reshape(p.shape) for name, p in parameters.items()}


def _check_evidence(name: str, evidence: Evidence) -> None:
    for kind in needs(name):
        if not getattr(evidence, kind):
            raise BadSetting(
                f"criterion {name!r} needs {kind}, and got none: `ltcompile find` gathers them, and in Python ltcompile.finding.evidence.gather"
            )
