"""A batch that does not fit into the GPU's memory is computed in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ltcompile.errors import TrainingFailed

T = TypeVar("T")
FEWEST = 2  # images that a part holds: batch norm needs two


def fitting(work: Callable[[int], T], items: int, parts: int = 1) -> tuple[T, int]:
    """`work(parts)`, with twice as many parts of so many `items` whenever memory runs out, and how many parts it took in the end.

    `work` is begun again from its start.

    Raises:
        TrainingFailed: not even two images at a time fit.
    """
    while True:
        found = _attempt(work, parts)
        if found is not None:
            return found, parts
        if parts >= items // FEWEST:
            raise TrainingFailed(
                f"out of memory with {-(-items // parts)} images at a time: end what else fills the GPU, take a smaller image_size=, "
                "or train with device=cpu"
            )
        parts = min(2 * parts, items // FEWEST)


def _attempt(work: Callable[[int], T], parts: int) -> T | None:
    """What `work` returns, or None where memory runs out. A frame of its own: what the attempt has allocated is freed with it."""
    try:
        return work(parts)
    except torch.OutOfMemoryError:
        return None
