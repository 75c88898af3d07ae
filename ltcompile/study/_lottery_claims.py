"""What Frankle & Carbin say of sparse networks, as bounds on numbers, each at the share of the weights that it is said of: papers/lottery.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltcompile.core.fields import from_json
from ltcompile.core.study import Side
from ltcompile.study._nouns import texts
from ltcompile.study._statistics import BySeed, difference

SOURCE = "Frankle & Carbin 2019, arXiv:1803.03635"

Curve = Literal["iterative", "oneshot", "late", "plain"]
Measure = Literal["accuracy", "stop", "gap"]
Place = tuple[Curve, str]  # a curve, and an arm on it


@dataclass(frozen=True)
class Number:
    """A comparison of two arms, seed by seed, each of the level of its own curve that is nearest to a share of weights."""

    words: str
    unit: str
    measure: Measure
    ours: Place
    theirs: Place
    as_ratio: bool = False

    def compare(self, ours: BySeed, theirs: BySeed) -> dict[int, float]:
        """ours - theirs, or ours / theirs, of every seed that has both."""
        if not self.as_ratio:
            return difference(ours, theirs)
        return {seed: ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


@dataclass(frozen=True)
class Said:
    """A claim: on which side of `bound` a number of `NUMBERS` lies where about `left` percent of the weights are."""

    statement: str
    number: str
    left: float
    bound: float = 0.0
    side: Side = "above"
    source: str = SOURCE


NUMBERS: dict[str, Number] = from_json(texts("lottery")["numbers"], dict[str, Number], "numbers")
SAID: dict[str, tuple[Said, ...]] = from_json(texts("lottery")["said"], dict[str, tuple[Said, ...]], "said")
