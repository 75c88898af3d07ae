"""Fold batch norms into the layers before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ltcompile.deploy.equality import check_rewritten
from ltcompile.deploy.job import ShrinkJob
from ltcompile.lower import fold_batch_norm
from ltcompile.pruned import Pruned

ORDER = 60


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The folded network; the lines give how many batch norms are folded, and why the others are not."""
    folded, found = fold_batch_norm(pruned.small, pruned.example)
    check_rewritten("the folded network and the cut one", folded, pruned.small, pruned.example)
    refused = {name: why for name, why in found.items() if not why.startswith("folded")}
    return replace(pruned, small=folded), {"folded_batch_norms": len(found) - len(refused), "not_folded": refused}
