"""What an engine decided for one batch size, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decision:
    """What runs one batch size, and why: the median milliseconds of everyone who was timed, and what kept the others out.

    `max_error` is the largest difference to the fp32 network's outputs, relative to their largest magnitude. `layers` says of each layer
    who runs it, where the engine decides that.
    """

    batch: int
    by: str
    ms: Mapping[str, float]
    refused: Mapping[str, str]
    max_error: float
    layers: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
