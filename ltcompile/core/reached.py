"""How a cut stands to its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ltcompile.core.records import Record

TOLERANCE = {"macs": 0.0, "params": 0.0, "time": 0.03, "energy": 0.03}  # beyond the target, relative: what measurements scatter by
WORDS = {"macs": "MACs", "params": "parameters", "energy": "energy"}


@dataclass(frozen=True)
class Reached(Record):
    """What a cut leaves of the dense network, as a share: `requested` at most, `found` (None: not measured on this machine).

    `measure` is "macs", "params", "time" or "energy". Time and energy are of a measurement of their own, not of one that a plan was
    chosen by.
    """

    measure: str
    requested: float
    found: float | None

    @property
    def missed_by(self) -> float:
        """How far beyond the target, relative to it; 0 where it is met: to 3 % where it is measured."""
        beyond = 0.0 if self.found is None else self.found / self.requested - 1
        return beyond if beyond > TOLERANCE[self.measure] + 1e-9 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "missed_by": self.missed_by}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises InvalidFile as a Record does; `missed_by` follows from the rest."""
        return super().from_json({k: v for k, v in value.items() if k != "missed_by"} if isinstance(value, Mapping) else value)

    def __str__(self) -> str:
        target = f"target: {self._words(self.requested)}"
        if self.found is None:
            return f"{target}; not measured on this machine"
        return f"{target}, {f'missed by {self.missed_by:.1%}' if self.missed_by else 'met'}: {self._words(self.found)}"

    def _words(self, share: float) -> str:
        return f"{1 / share:.3g} times as fast" if self.measure == "time" else f"{share:.4g} of the dense network's {WORDS[self.measure]}"
