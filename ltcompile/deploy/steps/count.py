"""Count parameters and multiply-accumulates, and compare them with the target of size that a search had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltcompile.core.reached import Reached
from ltcompile.deploy.job import ShrinkJob
from ltcompile.graph import size
from ltcompile.pruned import Pruned

ORDER = 55
VALUE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The same network; the lines hold its size and the dense network's, None where that is unknown."""
    small = size(pruned.small, pruned.example)
    dense = size(pruned.dense, pruned.example) if pruned.dense is not None else None
    requested = {} if pruned.ticket is None else pruned.ticket.config
    measure = next((measure for measure in ("macs", "params") if requested.get(f"target_{measure}") is not None), None)
    reached = None
    if measure is not None and dense is not None:
        reached = Reached(measure, requested[f"target_{measure}"], getattr(small, measure) / getattr(dense, measure)).to_json()
    return pruned, {
        "params": small.params,
        "macs": small.macs,
        "dense_params": dense.params if dense else None,
        "dense_macs": dense.macs if dense else None,
        "dense_bytes": dense.params * VALUE_BYTES[job.precision] if dense else None,  # its values in the same precision
        "target": reached,
    }


def summary(record: Mapping[str, Any]) -> list[str]:
    if record["dense_params"] is None:
        return [f"params {record['params']:,}   MACs {record['macs']:,}"]
    fewer = f" ({record['dense_macs'] / record['macs']:.1f}x fewer)" if record["macs"] else ""
    return [f"params {record['dense_params']:,} → {record['params']:,}   MACs {record['dense_macs']:,} → {record['macs']:,}{fewer}"]
