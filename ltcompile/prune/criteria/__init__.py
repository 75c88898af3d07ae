"""Scores of the importance of channels or weights; one file for each criterion.

A file defines `score(channels, evidence) -> Tensor (C,)`, where high scores are kept; `COMPARABLE`, whether raw scores may be ranked across
groups (otherwise they are divided by their group's mean); `NEEDS`, the fields of `Evidence` that it reads; `REDUCTION`, the default choice
of slices of a group ("producers" if not defined); and `WEIGHTS = True` if it can score single weights. Scores of a criterion of gradients
are means over mini-batches: it is called with one mini-batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol, get_args

import torch
from torch import Tensor, nn

from ltcompile import registry
from ltcompile.core.plan import Group
from ltcompile.core.streams import generator, stream
from ltcompile.errors import InvalidSetting
from ltcompile.prune.criteria._channels import Channels, Reduction, Scored, Weights
from ltcompile.prune.criteria._normalise import NORMALISATIONS, Normalisation

__all__ = [
    "Channels",
    "Evidence",
    "Normalisation",
    "Reduction",
    "Scored",
    "Weights",
    "default_reduction",
    "names",
    "needs",
    "score",
    "score_weights",
    "scores_weights",
]


class Gradients(Protocol):
    """One mapping for each mini-batch: parameter name -> gradient of its mean training loss. It may be computed during the iteration."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Tensor]]: ...


@dataclass
class Evidence:
    """The data that a criterion may use besides the weights; `ltcompile.search.evidence.gather` collects it.

    `curvature` is the diagonal of the loss's Gauss-Newton matrix, by parameter name. `activations` (mean magnitude) and `nonzeros`
    (fraction above zero) are means over images and positions, by (layer, axis): of a layer's inputs for the axis "in" (C_in,), of its
    outputs for "out" and "each" (C_out,). `moments`, `sensitivities`, `responses` and `places` are those of
    `ltcompile.prune.evidence`, which collects all that needs no labels. `rng` is seeded.
    """

    gradients: Gradients = ()
    curvature: Mapping[str, Tensor] = field(default_factory=dict)
    activations: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    nonzeros: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    moments: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    sensitivities: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    responses: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    places: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    rng: torch.Generator = field(default_factory=lambda: generator(stream("random scores", 0)))


def names() -> list[str]:
    """The names of all criteria."""
    return list(registry.modules(__name__))


def needs(name: str) -> tuple[str, ...]:
    """The fields of `Evidence` without which the criterion cannot score. Raises UnknownName."""
    return tuple(registry.load(__name__, "criterion", name).NEEDS)


def default_reduction(name: str) -> Reduction:
    """The criterion's default reduction; see `score`. Raises UnknownName."""
    found: Reduction = getattr(registry.load(__name__, "criterion", name), "REDUCTION", "producers")
    return found


def scores_weights(name: str) -> bool:
    """Whether the criterion scores single weights. Raises UnknownName."""
    return bool(getattr(registry.load(__name__, "criterion", name), "WEIGHTS", False))


@torch.no_grad()
def score(
    name: str,
    groups: tuple[Group, ...],
    model: nn.Module,
    evidence: Evidence,
    reduction: Reduction = "default",
    normalize: Normalisation = "default",
) -> dict[str, Tensor]:
    """Group -> scores (C,) on the CPU in float64, for every group that may be cut.

    Args:
        name: the criterion.
        groups: the groups of `model`.
        model: the network that is scored.
        evidence: at least the fields that the criterion needs.
        reduction: the weights by which a channel is scored: "producers", the filters that produce it; "filters", the slices of its
            consumers' weights too; "all", those of its norms as well (Fang et al. 2023, arXiv:2301.12900); "default", what the criterion's
            file declares. A score is the mean over them.
        normalize: what a group's scores are divided by before groups are compared: their "mean" or "max" magnitude, the sum of those that
            are not smaller ("lamp"), or nothing ("none"); "gaussian" subtracts their mean and divides by their deviation. "default" is
            "none" for a criterion that is comparable, else "mean".

    Raises:
        UnknownName: no such criterion. InvalidSetting: no such reduction or normalisation, or evidence that the criterion needs is missing.
    """
    criterion = registry.load(__name__, "criterion", name)
    if reduction not in get_args(Reduction):
        raise InvalidSetting(f"the reduction must be one of {', '.join(get_args(Reduction))}, not {reduction!r}")
    if normalize not in get_args(Normalisation):
        raise InvalidSetting(f"normalize must be one of {', '.join(get_args(Normalisation))}, not {normalize!r}")
    _check_evidence(name, evidence)
    reduction = default_reduction(name) if reduction == "default" else reduction
    scores = _scored(criterion, {g.name: Channels(g, model, reduction) for g in groups if not g.frozen}, evidence)
    normalise = NORMALISATIONS[("none" if criterion.COMPARABLE else "mean") if normalize == "default" else normalize]
    return {group: normalise(s) for group, s in scores.items()}


@torch.no_grad()
def score_weights(name: str, parameters: Mapping[str, Tensor], evidence: Evidence) -> dict[str, Tensor]:
    """Parameter name -> the scores of its weights, in its shape, on the CPU in float64; scores of different parameters are comparable.

    Raises:
        UnknownName: no such criterion. InvalidSetting: it scores no single weights, or evidence that it needs is missing.
    """
    criterion = registry.load(__name__, "criterion", name)
    if not scores_weights(name):
        able = ", ".join(known for known in names() if scores_weights(known))
        raise InvalidSetting(f"criterion {name!r} scores whole filters; weights are scored by {able}")
    _check_evidence(name, evidence)
    scores = _scored(criterion, {parameter: Weights(parameter, p) for parameter, p in parameters.items()}, evidence)
    return {parameter: found.reshape(parameters[parameter].shape) for parameter, found in scores.items()}


def _scored(criterion: ModuleType, scored: Mapping[str, Scored], evidence: Evidence) -> dict[str, Tensor]:
    """The criterion's scores of `scored`, on the CPU in float64. Gradients are used one mini-batch at a time."""
    if "gradients" not in criterion.NEEDS:
        return {name: criterion.score(one, evidence).double().cpu() for name, one in scored.items()}
    total = {name: torch.zeros(one.width, dtype=torch.float64) for name, one in scored.items()}
    for batch in evidence.gradients:
        for name, one in scored.items():
            total[name] += criterion.score(one, replace(evidence, gradients=(batch,))).double().cpu()
    return {name: value / len(evidence.gradients) for name, value in total.items()}


def _check_evidence(name: str, evidence: Evidence) -> None:
    for kind in needs(name):
        if not getattr(evidence, kind):
            raise InvalidSetting(
                f"criterion {name!r} needs {kind}, and got none: `ltcompile find` gathers them; for lt.plan, "
                "pass inputs=, an iterable of batches, or evidence= of ltcompile.search.evidence.gather"
            )
