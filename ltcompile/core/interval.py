"""How sure a share of so many images is; without scipy, which is not there where networks are verified."""

from __future__ import annotations

import math

Z95 = 1.959964  # normal quantile of a two-sided 95 % interval


def wilson(share: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of the share of `images` that were right; it holds the share itself, also at 0 and at 1."""
    scale = 1 + Z95**2 / images
    centre = (share + Z95**2 / (2 * images)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / images + (Z95 / (2 * images)) ** 2) / scale
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))  # rounding leaves no share outside


def binomial_tail(least: int, images: int, share: float) -> float:
    """The probability that at least `least` of `images` are right where each is with the probability `share`."""
    if least <= 0 or share >= 1:
        return 1.0
    if share <= 0 or least > images:
        return 0.0
    if least - 0.5 < images * share:  # the other tail is the short one
        return 1 - binomial_tail(images - least + 1, images, 1 - share)
    chosen = math.lgamma(images + 1) - math.lgamma(least + 1) - math.lgamma(images - least + 1)
    term, total = math.exp(chosen + least * math.log(share) + (images - least) * math.log1p(-share)), 0.0
    for k in range(least, images + 1):
        total += term
        if term < 1e-17 * total:
            break
        term *= (images - k) / (k + 1) * share / (1 - share)
    return min(1.0, total)
