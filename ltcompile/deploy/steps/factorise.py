"""Replace layers whose weights have a low rank by two smaller ones each: what pruning in a basis leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcompile.deploy.equality import check_rewritten
from ltcompile.deploy.job import ShrinkJob
from ltcompile.pruned import Pruned
from ltcompile.pruned.compaction import has_low_rank, in_two

ORDER = 40


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The network with layers in two; the lines give the rank of each, and why the others stay in one."""
    if not has_low_rank(pruned.method):
        return pruned, {}
    found = in_two(pruned)
    check_rewritten("the network with layers in two and the full one", found.module, pruned.small, pruned.example)
    refused = {name: why for name, why in found.outcomes.items() if name not in found.ranks}
    return replace(pruned, small=found.module), {"ranks": dict(found.ranks), "not_in_two": refused}
