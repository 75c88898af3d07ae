"""The search as a graph of arms: `dense(s) -> ticket(s, 1) -> ... -> ticket(s, L)`, the arms of a curve next to them, controls once the level
is chosen. What is ready follows from which arms are finished, and so from the run folder alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ltcompile.core.arm import Arm
from ltcompile.errors import InvalidSetting
from ltcompile.search import methods
from ltcompile.search.config import PRUNE, SearchConfig

MOST_ARMS = 200_000


@dataclass(frozen=True)
class ArmGraph:
    """The arms of a search and what each waits for. `shuffled`: its curve has shuffled masks."""

    seeds: range
    levels: int
    controls: bool = True
    curve: bool = False
    shuffled: bool = False

    @classmethod
    def of(cls, config: SearchConfig) -> ArmGraph:
        """Raises InvalidSetting where there are more arms than one folder should hold."""
        if config.seeds * (config.levels + 1) > MOST_ARMS:
            raise InvalidSetting(
                f"seeds={config.seeds} of {config.levels} levels are more than {MOST_ARMS:,} trainings; split them over several runs"
            )
        return cls(config.all_seeds, config.levels, config.controls, config.full_curve, has_masks(config))

    @property
    def tickets(self) -> list[Arm]:
        """The dense networks and tickets, from which the level is chosen, seed by seed."""
        return [Arm(seed, "ticket" if level else "dense", level) for seed in self.seeds for level in range(self.levels + 1)]

    @property
    def points(self) -> list[Arm]:
        """The arms of the curve."""
        kinds = ("reinit", "shuffled") if self.shuffled else ("reinit",)
        levels = range(1, self.levels + 1) if self.curve else ()
        return [Arm(seed, kind, level) for seed in self.seeds for level in levels for kind in kinds]  # type: ignore[arg-type]

    def controls_at(self, level: int) -> list[Arm]:
        kinds = ("random", "dense_budget") if self.controls else ()
        return [Arm(seed, kind, level) for seed in self.seeds for kind in kinds]  # type: ignore[arg-type]

    def arms(self, level: int | None) -> list[Arm]:
        """All arms in the order of one process; while the level is not chosen, without controls."""
        return [*self.tickets, *(self.controls_at(level) if level is not None else ()), *self.points]

    def needs(self, arm: Arm) -> Arm | None:
        """The arm that has to be finished before this one can start; None of dense networks, and of controls, which wait for all tickets."""
        if arm.kind in ("reinit", "shuffled"):
            return Arm(arm.seed, "ticket", arm.level)
        if arm.kind != "ticket":
            return None
        return Arm(arm.seed, "ticket" if arm.level > 1 else "dense", arm.level - 1)

    def follow(self, arm: Arm) -> list[Arm]:
        """The arms that wait for this one alone."""
        following = [Arm(arm.seed, "ticket", arm.level + 1)] if arm.kind in ("dense", "ticket") and arm.level < self.levels else []
        if arm.kind == "ticket" and self.curve:
            following += [Arm(arm.seed, "reinit", arm.level), *([Arm(arm.seed, "shuffled", arm.level)] if self.shuffled else [])]
        return following

    def height(self, arm: Arm) -> int:
        """How many trainings at least follow one another from this one to the end."""
        if arm.kind in ("dense", "ticket"):
            return self.levels - arm.level + (2 if self.controls or self.curve else 1)
        return 1


def ready(graph: ArmGraph, done: Collection[Arm], level: int | None = None) -> list[Arm]:
    """The unfinished arms that can start when `done` are finished, in the order of one process; controls where the `level` is chosen."""
    return [arm for arm in graph.arms(level) if arm not in done and ((needed := graph.needs(arm)) is None or needed in done)]


def has_masks(config: SearchConfig) -> bool:
    """Whether a level has a mask of single weights: a search for one, or a method that chooses weights rather than directions."""
    return config.prune != "filters" or (config.method != PRUNE and not methods.iterative(config.method))
