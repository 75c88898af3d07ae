"""The arms of a search: one network after one training each, `dense(s) -> ticket(s, 1) -> ... -> ticket(s, L)` and their controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltcompile.core.streams import Purpose, stream

ArmKind = Literal["dense", "ticket", "random", "dense_budget", "reinit", "shuffled"]


@dataclass(frozen=True)
class Arm:
    """One training of a search: which kind of network, at which level, under which seed.

    `dense` is the unpruned network (level 0), `ticket` what a level keeps of it. The controls: `random`, the ticket's architecture or mask on
    fresh weights with the ticket's whole training budget; `dense_budget`, the unpruned network with that budget; `reinit`, as `random` with
    the ticket's own recipe; `shuffled`, as many single weights as the ticket keeps, in other places.
    """

    seed: int
    kind: ArmKind
    level: int

    @property
    def name(self) -> str:
        """Unique within a seed: the stem of its files."""
        return f"{self.kind}-{self.level}"

    @property
    def unpruned(self) -> bool:
        return self.kind in ("dense", "dense_budget")

    def stream(self, purpose: Purpose) -> int:
        """One of its random streams."""
        return stream(purpose, self.seed, arm=self.kind, level=self.level)
