"""From scores to a plan: which channels go, per group (local) or ranked over the whole network (global)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ltcompile import criteria
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.errors import BadSetting
from ltcompile.graph import trace

Scope = Literal["global", "local"]


def plan(
    model: nn.Module,
    example: Tensor,
    ratio: float = 0.5,
    scope: Scope = "global",
    criterion: str = "l1",
    align: int = 1,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> PruningPlan:
    """A plan that drops the share `ratio` of the filters of `model`, least important first; the model stays as it is.

    Args:
        example: an input of the network (N, C, H, W), to trace it.
        scope: "global" ranks all filters together, "local" takes the same share from every group.
        criterion: l1, l2, linf, bn, taylor or random.
        align: kept widths are multiples of it where the group is that wide.
        gradients: parameter name -> gradient of the loss; needed by taylor.

    Raises:
        BadSetting: ratio outside (0, 1), or taylor without gradients. BadModel: it cannot be traced or cut.
    """
    if not 0 < ratio < 1:
        raise BadSetting(f"the ratio of filters to drop must be between 0 and 1, not {ratio}")
    if criteria.needs_gradients(criterion) and gradients is None:
        raise BadSetting(f"criterion {criterion!r} needs gradients of the loss: pass gradients={{parameter name: gradient}}")
    groups = trace(model, example)
    evidence = criteria.Evidence(gradients or {}, torch.Generator().manual_seed(seed))
    return choose(groups, criteria.score(criterion, groups, model, evidence), ratio, scope, align=align)


def choose(
    groups: tuple[Group, ...],
    scores: Mapping[str, Tensor],
    share: float,
    scope: Scope,
    *,
    floors: Mapping[str, int] | None = None,
    align: int = 1,
) -> PruningPlan:
    """Drop the share `share` of the filters of `groups` with the lowest `scores` (C,), ties by position.

    No group falls below its floor (1 by default); with `align`, kept widths are then rounded to the nearest multiple.
    """
    if scope not in get_args(Scope):
        raise BadSetting(f"scope must be one of {', '.join(get_args(Scope))}, not {scope!r}")
    least = {g.name: min(g.width, (floors or {}).get(g.name, 1)) for g in groups}
    free = [g for g in groups if not g.frozen]
    counts = (_local if scope == "local" else _global)(free, scores, share, least)
    kept = {}
    for group in free:
        count = _align(counts[group.name], group.width, least[group.name], align)
        best = torch.argsort(scores[group.name], descending=True, stable=True)[:count]
        kept[group.name] = tuple(sorted(best.tolist()))
    return PruningPlan(groups, kept)


def _local(groups: list[Group], scores: Mapping[str, Tensor], share: float, least: Mapping[str, int]) -> dict[str, int]:
    return {g.name: max(least[g.name], g.width - int(share * g.width)) for g in groups}


def _global(groups: list[Group], scores: Mapping[str, Tensor], share: float, least: Mapping[str, int]) -> dict[str, int]:
    """How many channels each group keeps when the lowest-scoring filters of the whole network go."""
    counts = {g.name: g.width for g in groups}
    owners = [i for i, g in enumerate(groups) for _ in range(g.width)]
    ranked = torch.argsort(torch.cat([scores[g.name] for g in groups]), stable=True).tolist()
    quota = share * sum(g.width * g.filters_per_channel for g in groups)
    for position in ranked:
        group = groups[owners[position]]
        if group.filters_per_channel > quota:
            break
        if counts[group.name] > least[group.name]:
            counts[group.name] -= 1
            quota -= group.filters_per_channel
    return counts


def _align(count: int, width: int, floor: int, multiple: int) -> int:
    nearest = max(1, int(count / multiple + 0.5)) * multiple
    while nearest < floor:
        nearest += multiple
    return min(nearest, width)
