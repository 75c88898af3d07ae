"""What every engine is checked with: batches of the example's images, and how far outputs are from the network's."""

from __future__ import annotations

from ltcompile.core.deployment import TOLERANCES
from ltcompile.numerics import largest_error as relative_error
from ltcompile.numerics import tile

__all__ = ["refusal", "relative_error", "tile"]


def refusal(error: float, precision: str) -> str:
    """Why outputs with this error, relative to the largest, are not the network's; "" where they are."""
    return "" if error <= TOLERANCES[precision] else f"its outputs are off by {error:.1e} of the largest"
