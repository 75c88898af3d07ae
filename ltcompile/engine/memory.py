"""The offset of each buffer of a program in one arena, planned before anything runs.

Buffers that live at the same time do not overlap; the largest are placed first, each at the lowest place that is free as long as it lives
(Pisarchyk & Lee 2020, "greedy by size", which stays within a few percent of the largest sum of living bytes on convolutional networks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALIGNMENT_BYTES = 256  # as a GPU's allocator


@dataclass(frozen=True)
class Buffer:
    """A buffer, and the first and last step at which its contents are needed."""

    name: str
    size_bytes: int
    first: int
    last: int

    def overlaps(self, other: Buffer) -> bool:
        """Whether both live at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where each buffer starts, and the size of the arena."""

    offsets: Mapping[str, int]
    size_bytes: int


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Offsets in one arena such that no two buffers overlap that live at the same step."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size_bytes, b.first)):
        offset = 0
        for start, other in sorted(((start, other) for start, other in placed if other.overlaps(buffer)), key=lambda pair: pair[0]):
            if offset + buffer.size_bytes <= start:
                break
            offset = max(offset, _aligned(start + other.size_bytes))
        placed.append((offset, buffer))
    return MemoryPlan(
        {buffer.name: offset for offset, buffer in placed},
        max((offset + _aligned(buffer.size_bytes) for offset, buffer in placed), default=0),
    )


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
