"""The decision of an engine for one batch size, and its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ltcompile.timing import Fastest, is_tie


@dataclass(frozen=True)
class Decision:
    """What runs one batch size: the median milliseconds of all timed candidates, and why the others were refused.

    `ms` of the winner `by` and of the runner-up are from a run of their own, after the winner was picked. `lead` is how many times as long
    the runner-up took there, with the ends of the 95 % interval (None without a runner-up); `tie` says that the interval holds 1.
    `max_error` is the largest difference to the fp32 network's outputs, relative to their largest magnitude. `layers` names what runs each
    layer, where the engine decides that.
    """

    batch: int
    by: str
    ms: Mapping[str, float]
    refused: Mapping[str, str]
    max_error: float
    layers: Mapping[str, str]
    runner_up: str = ""
    lead: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.lead is not None and not (len(self.lead) == 3 and all(isinstance(x, float) for x in self.lead)):
            raise ValueError(f"lead is a ratio and the ends of its interval, not {self.lead!r}")

    @property
    def tie(self) -> bool:
        """Whether the winner is not measurably faster than the runner-up."""
        return self.lead is not None and is_tie(self.lead)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decided(batch: int, picked: Fastest, refused: Mapping[str, str], max_error: float, layers: Mapping[str, str]) -> Decision:
    """The decision for the fastest that was picked."""
    ms = picked.screened_ms | {name: float(np.median(times)) for name, times in picked.times.items()}
    return Decision(batch, picked.name, ms, refused, max_error, layers, picked.runner_up or "", picked.lead)
