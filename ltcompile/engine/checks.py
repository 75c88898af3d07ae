"""What every engine is checked with: batches of the example's images, and how far outputs are from the network's."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tile(images: Tensor, batch: int) -> Tensor:
    """`batch` of the images; where there are fewer, they repeat."""
    return images[torch.arange(batch) % len(images)].contiguous()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest magnitude; infinite where shapes differ or something is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    error = float((found.float().cpu() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return error if math.isfinite(error) else float("inf")
