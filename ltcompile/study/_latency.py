"""The measured latency of the levels of a search: their cut networks and the dense one are timed in turns, on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ltcompile.benchmark.sweep import Sweep, sweep
from ltcompile.core.load import is_busy
from ltcompile.runtimes import unavailable
from ltcompile.study._nouns import Done

BATCH = 64


@dataclass(frozen=True)
class Latency:
    """The time of a batch as a share of the dense network's in the same benchmark, in percent, with its 95 % interval."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Timed:
    """Level -> latency of the first seed's network; where that was, and how busy the machine was just before."""

    levels: dict[int, Latency]
    where: str
    busy_share: float | None


def timed(done: Done, device: torch.device, seconds: float) -> Timed:
    """Time the dense network and every level of a search side by side, `seconds` each, in ONNX Runtime if it runs there, else in PyTorch.

    It leaves sweep.json in the search's folder. Raises as `sweep`.
    """
    runtime = "onnxruntime" if unavailable("onnxruntime", device.type) is None else "eager"
    found = sweep(done.folder, runtimes=(runtime,), devices=(device.type,), batches=(BATCH,), seconds_per_row=seconds)
    return Timed(_shares(found), f"{runtime}, {device.type}, batch {BATCH}", found.busy_share)


def _shares(found: Sweep) -> dict[int, Latency]:
    level = {point.name: point.level for point in found.points if point.arm == "ticket"}
    return {
        level[row.subject]: Latency(100 / row.speedup, 100 / row.speedup_high, 100 / row.speedup_low)
        for row in found.rows
        if row.subject in level and row.speedup and row.speedup_low and row.speedup_high
    }


def remark(found: list[Timed]) -> str:
    """Where latencies come from, and whether they can be trusted."""
    busy = max((one.busy_share or 0.0 for one in found), default=0.0)
    text = f"Latencies are of the first seed's networks ({found[0].where}), each relative to the dense network's in the same benchmark."
    return text + (f" Other work took up to {busy:.0%} of the machine just before: do not quote them." if is_busy(busy) else "")
