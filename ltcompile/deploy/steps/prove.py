"""Prove that the cut network computes what the masked one of the dense shape does, in float64 and output by output."""

from __future__ import annotations

from typing import Any

from ltcompile.deploy.equality import check_cut
from ltcompile.deploy.job import ShrinkJob
from ltcompile.pruned import Pruned

ORDER = 30


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network; the line holds the largest error, None where no dense network and plan are known."""
    if pruned.dense is None or pruned.plan is None:
        return pruned, {"equality_error": None}
    job.on_progress("comparing the cut network with the masked one")
    return pruned, {"equality_error": check_cut(pruned.small, pruned.plan, pruned.dense, pruned.example)}
