"""Remove the channels that a mask of single weights leaves without weights: the network gets smaller and answers the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ltcompile.core.mask import WeightMask
from ltcompile.deploy.equality import check_rewritten
from ltcompile.deploy.job import ShrinkJob
from ltcompile.graph import Eliminated, Example, dropped_weights, size
from ltcompile.pruned import Pruned
from ltcompile.pruned.compaction import without_dead_channels

ORDER = 20


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The network without dead channels; the lines give how much of the mask's sparsity they were."""
    if pruned.mask is None:
        return pruned, {}
    found = without_dead_channels(pruned)
    check_rewritten("the network without its dead channels and the masked one", found.module, pruned.small, pruned.example)
    structure = _structure(pruned.mask, pruned.small, found, pruned.example)
    return replace(pruned, small=found.module, plan=found.plan), {"structure": structure}


def summary(record: Mapping[str, Any]) -> list[str]:
    if "structure" not in record:
        return []
    found = record["structure"]
    weights, channels = found["weights"], found["channels"]
    return [
        f"mask keeps {weights['kept']:,} of {weights['all']:,} weights; {found['share_in_removed']:.1%} of the zeros left with "
        f"{channels['constant'] + channels['unread']:,} of {channels['all']:,} channels ({channels['unread']:,} unread, "
        f"{channels['constant']:,} constant)"
    ]


def _structure(mask: WeightMask, masked: nn.Module, found: Eliminated, example: Example) -> dict[str, Any]:
    """How much of the sparsity of `mask` was structure: channels that left `masked` with all their weights."""
    dropped, removed = mask.dropped(masked), dropped_weights(masked, found.plan)
    count = sum(int(gone.sum()) for gone in dropped.values())
    inside = sum(int((gone & removed[name]).sum()) for name, gone in dropped.items() if name in removed)
    before, after = mask.weights
    widths = [widths for name, widths in found.plan.widths.items() if name not in found.plan.frozen]
    return {
        "weights": {"kept": after, "all": before},
        "share_in_removed": inside / count if count else 0.0,  # of the dropped weights, those that sat in removed channels
        "channels": {"constant": found.constant, "unread": found.unread, "all": sum(width for width, _ in widths)},
        "macs": {"before": size(masked, example).macs, "after": size(found.module, example).macs},
    }
