"""Whether other work runs on this machine: timings next to it are not worth quoting."""

from __future__ import annotations

import time

SAMPLE_S = 0.5
BUSY = 0.3  # of the machine, taken by other work


def busy_share() -> float | None:
    """The share of all processors' time that was used while this process slept half a second; None where it is unknown."""
    before = ticks()
    time.sleep(SAMPLE_S)
    after = ticks()
    if before is None or after is None:
        return None
    idle, total = (b - a for a, b in zip(before, after, strict=True))
    return 1 - idle / total if total else 0.0


def is_busy(share: float | None) -> bool:
    """Whether other work took so much of the machine that timings are not worth quoting; False where it is not known."""
    return share is not None and share > BUSY


def ticks() -> tuple[int, int] | None:
    """(idle, all) clock ticks since boot, by Linux."""
    try:
        with open("/proc/stat") as file:
            counts = [int(t) for t in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return counts[3] + counts[4], sum(counts)
