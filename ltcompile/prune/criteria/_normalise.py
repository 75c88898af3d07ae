"""How the scores of one group are made comparable with those of others; but for "none", a constant factor of a group changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ltcompile.errors import InvalidSetting

Normalisation = Literal["default", "none", "mean", "max", "gaussian", "lamp"]
LEAST = 1e-30  # that is divided by


def adapted(scores: Tensor) -> Tensor:
    """Each of `scores` (C,), none of them negative, divided by the sum of those that are not smaller: (C,)."""
    rising = scores.sort().values
    not_smaller = rising.flip(0).cumsum(0).flip(0)[torch.searchsorted(rising, scores)]  # equals share one sum
    return scores / not_smaller.clamp_min(LEAST)


def _lamp(scores: Tensor) -> Tensor:
    if bool((scores < 0).any()):
        raise InvalidSetting("normalize='lamp' is for scores that are not negative; choose mean, max or gaussian for this criterion")
    return adapted(scores)


def _gaussian(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std(correction=0).clamp_min(LEAST)


NORMALISATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: scores / scores.abs().mean().clamp_min(LEAST),
    "max": lambda scores: scores / scores.abs().max().clamp_min(LEAST),
    "gaussian": _gaussian,
    "lamp": _lamp,
}
