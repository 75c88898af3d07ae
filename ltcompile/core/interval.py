"""How sure a share of so many images is."""

from __future__ import annotations

import math

Z95 = 1.959964  # normal quantile of a two-sided 95 % interval


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of the share of `images` that were right; it holds the share itself, also at 0 and at 1."""
    scale = 1 + Z95**2 / images
    centre = (share + Z95**2 / (2 * images)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / images + (Z95 / (2 * images)) ** 2) / scale
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))  # rounding leaves no share outside
