"""The roofline of this device, measured and not taken from a data sheet: a large copy and a large matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ltcompile.benchmark.competitors.clock import DeviceClock
from ltcompile.core.records import Record
from ltcompile.lower.passes.precision import DTYPES

RUNS = 10
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # many times any cache
SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Peaks(Record):
    """What this device reached in a precision."""

    precision: str
    bytes_per_s: float
    flop_per_s: float

    def floor_us(self, moved_bytes: float, flop: float) -> float:
        """The least time for so much work."""
        return 1e6 * max(moved_bytes / self.bytes_per_s, flop / self.flop_per_s)


@torch.inference_mode()
def measure(device: str, precision: str, clock: DeviceClock) -> Peaks:
    """On random numbers: all-zero inputs draw less power and run unrealistically fast."""
    side, dtype = SIDE[device], DTYPES[precision]
    source = torch.empty(COPY_BYTES[device] // 4, device=device).normal_()
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    copy_s = _best_s(lambda: target.copy_(source), clock)
    product_s = _best_s(lambda: torch.mm(a, b, out=product), clock)
    return Peaks(precision, 2 * COPY_BYTES[device] / copy_s, 2 * side**3 / product_s)


def _best_s(call: Callable[[], object], clock: DeviceClock) -> float:
    timed, taken = clock.timed(call), []
    for _ in range(RUNS):
        start = clock()
        timed()
        taken.append(clock() - start)
    return min(taken)
