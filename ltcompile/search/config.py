"""The settings of a search, checked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from ltcompile.core.plan import Group
from ltcompile.errors import InvalidSetting, unknown
from ltcompile.graph.tied_groups import tied_groups
from ltcompile.prune import criteria
from ltcompile.prune.choose import Scope
from ltcompile.prune.criteria import Normalisation, Reduction
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import Target
from ltcompile.search import methods, rewind

PruneSchedule = Literal["iterative", "oneshot"]
Pruned = Literal["filters", "weights", "hybrid"]
RATE = 0.2
PRUNE = "prune"  # the method that all else here is about


@dataclass(frozen=True)
class SearchConfig(Limits):
    """Rounds of train, score, prune, rewind, within limits.

    Every round cuts the share `rate` of the surviving filters, 0.2 by default; or the last one leaves `target_macs`, `target_params`,
    `target_time` or `target_energy` of the dense network, as a share, and the rounds before it lie on the way. Time is that of a profile for
    the target `on`; energy is planned by it too, and corrected by what is measured there.
    With a target, `path` may say what every level leaves of the dense network, in falling shares of which the last is the target.
    A ticket is "not inferior" if the lower bound of (its validation accuracy - the dense network's) lies above -`margin_points`.
    With `depth`, each round may also remove residual branches (`ltcompile.prune.depth`); `normalize` is that of `criteria.score`.
    `masked` runs the classical search that only zeroes what a round drops: slow, the reference for the real one.
    `prune` "weights" drops single weights of convolutions and linear layers instead, by a mask; "hybrid" filters of convolutions, and
    single weights of linear layers (Paganini & Forde 2020). `method` finds tickets otherwise: see `ltcompile.search.methods`; level by level, it
    keeps what a rate leaves of the weights, or of the coordinates in its basis. `full_curve`
    also trains, at every level, the ticket's architecture or mask on fresh weights and a shuffled mask, and shows every level the test set:
    the curves of accuracy over size.
    """

    method: str = PRUNE
    prune: Pruned = "filters"
    rewind: str = "lr"
    rewind_epoch: int = 0
    scope: Scope = "global"
    schedule: PruneSchedule = "iterative"
    criterion: str = "l1"
    group_reduction: Reduction = "default"
    normalize: Normalisation = "default"
    depth: bool = False
    rounds: int = 8
    rate: float | None = None
    target_macs: float | None = None
    target_params: float | None = None
    target_time: float | None = None
    target_energy: float | None = None
    on: str | None = None
    path: tuple[float, ...] = ()
    align: int = 1
    seed: int = 0
    seeds: int = 1
    controls: bool = True
    full_curve: bool = False
    masked: bool = False
    margin_points: float = 0.5
    confidence: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.rate is not None:
            raise InvalidSetting("give a rate of filters to cut in each round or a target for what is left, not both")
        if self.target is None and self.rate is None:
            object.__setattr__(self, "rate", RATE)
        for kind, name, known in (
            ("rewinding", self.rewind, rewind.names()),
            ("criterion", self.criterion, criteria.names()),
            ("method", self.method, [PRUNE, *methods.names()]),
        ):
            if name not in known:
                raise unknown(kind, name, known)
        checks = {
            f"rate={self.rate}: the share cut in each round lies between 0 and 1": self.rate is None or 0 < self.rate < 1,
            f"rounds={self.rounds}: there must be at least 1": self.rounds >= 1,
            f"seeds={self.seeds}: there must be at least 1": self.seeds >= 1,
            f"seed={self.seed}: the first seed must not be negative": self.seed >= 0,
            f"rewind_epoch={self.rewind_epoch} must not be negative": self.rewind_epoch >= 0,
            f"rewind_epoch={self.rewind_epoch} belongs to rewind=weight, not to rewind={self.rewind}": self.rewind == "weight"
            or self.rewind_epoch == 0,
            f"align={self.align}: widths must be multiples of at least 1": self.align >= 1,
            "a target of time or energy chooses widths by what they cost, and takes no align": not self._profiled or self.align == 1,
            "a target of time or energy, and it alone, needs the place that it is measured at: on=": self._profiled
            == (self.on is not None),
            "a path leads to a target, in iterative rounds": not self.path or (self.target is not None and self.schedule == "iterative"),
            f"the shares of a path must fall, below 1, to the target, not {self.path}": self._leads(),
            f"confidence={self.confidence} must lie between 0.5 and 1": 0.5 < self.confidence < 1,
            f"margin_points={self.margin_points} must not be negative": self.margin_points >= 0,
            f"scope must be one of {', '.join(get_args(Scope))}, not {self.scope!r}": self.scope in get_args(Scope),
            f"the reduction must be one of {', '.join(get_args(Reduction))}, not {self.group_reduction!r}": self.group_reduction
            in get_args(Reduction),
            f"normalize must be one of {', '.join(get_args(Normalisation))}, not {self.normalize!r}": self.normalize
            in get_args(Normalisation),
            "depth= removes branches where filters are cut; leave prune=, method= and masked= out": not self.depth
            or (self.prune == "filters" and self.method == PRUNE and not self.masked),
            f"what is pruned must be one of {', '.join(get_args(Pruned))}, not {self.prune!r}": self.prune in get_args(Pruned),
            f"schedule must be one of {', '.join(get_args(PruneSchedule))}, not {self.schedule!r}": self.schedule
            in get_args(PruneSchedule),
        }
        if self.prune != "filters":
            checks |= self._of_masks()
        if self.method != PRUNE:
            checks |= self._of_method()
        for message, holds in checks.items():
            if not holds:
                raise InvalidSetting(message)

    def _of_masks(self) -> dict[str, bool]:
        """What a search for a mask of weights requires of the other settings."""
        able = [name for name in criteria.names() if criteria.scores_weights(name)]
        return {
            f"a mask of weights takes a rate, and no target: prune={self.prune} leaves their number to you": self.target is None,
            "scope=isomorphic ranks filters; a mask of weights takes local or global": self.scope != "isomorphic",
            f"prune={self.prune} masks by itself; leave masked= out": not self.masked,
            f"widths are aligned where filters are pruned, not with prune={self.prune}": self.align == 1,
            f"criterion {self.criterion!r} scores whole filters; prune=weights takes {', '.join(able)}": self.prune == "hybrid"
            or self.criterion in able,
        }

    def _of_method(self) -> dict[str, bool]:
        """What another method than pruning requires of the other settings."""
        usual = not self.ratios and all(getattr(self, name) == default for name, default in _OF_PRUNING.items())
        restarts = methods.iterative(self.method) or self.rewind == "lr"
        return {
            f"method={self.method} chooses by itself; leave out what pruning takes ({', '.join(_OF_PRUNING)}, ratios)": usual,
            f"method={self.method} takes a rate, and no target": self.target is None,
            f"method={self.method} never trains weights, and rewinds none; leave rewind= out": restarts,
        }

    @property
    def _profiled(self) -> bool:
        return self.target is not None and self.target.profiled

    def _leads(self) -> bool:
        """Whether the path, if there is one, falls to the target."""
        if not self.path or self.target is None:
            return True
        return all(before > after for before, after in pairwise((1.0, *self.path))) and self.path[-1] == self.target.share

    def to_json(self) -> dict[str, Any]:
        """Newer settings are left out at their defaults, so that older runs can be resumed."""
        usual = {"path": (), "method": PRUNE, "prune": "filters", "full_curve": False, "target_energy": None}
        usual |= {"normalize": "default", "depth": False}
        return {name: value for name, value in super().to_json().items() if name not in usual or value != usual[name]}

    @property
    def target(self) -> Target | None:
        """What the last level may leave; None where there is a rate."""
        return Target.one_of(self.target_macs, self.target_params, self.target_time, self.target_energy)

    @property
    def shares(self) -> list[float]:
        """One entry a level: the share of the surviving filters that it drops; with a target, the share of the dense network that it leaves.

        Without a path, the levels on the way to a target leave the same share of each other.
        """
        if self.path:
            return list(self.path)
        if self.target is not None:
            return [self.target.share ** (level / self.levels) for level in range(1, self.levels + 1)]
        assert self.rate is not None, "without a target there is a rate"
        return [self.rate] * self.rounds if self.schedule == "iterative" else [1 - (1 - self.rate) ** self.rounds]

    @property
    def levels(self) -> int:
        """How often the network is cut."""
        if self.path:
            return len(self.path)
        return self.rounds if self.schedule == "iterative" else 1

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def check_fits(self, groups: tuple[Group, ...]) -> None:
        """Raises InvalidSetting where rounds at a rate would empty a layer, or leave less than all the floors together."""
        if self.rate is None or self.prune == "weights" or self.method != PRUNE:
            return
        left, own, floors = (1 - self.rate) ** self.rounds, self.kept(groups), self.floors(groups)
        ranked = [b for b in tied_groups(groups) if not b.frozen and b.name not in own]
        if self.scope == "local":
            thin = min((b for b in ranked if len(b.groups) == 1), key=lambda b: b.steps, default=None)
            if thin is not None and thin.steps * left < 1:
                most = int(math.log(1 / thin.steps) / math.log(1 - self.rate))
                raise InvalidSetting(
                    f"{self.rounds} rounds at rate {self.rate} would empty {thin.name!r} ({thin.steps} filters); "
                    f"at most {most} rounds do not, or prune with scope=global"
                )
            return
        total = sum(b.steps * b.filters_per_step for b in ranked)
        least = sum(b.steps_for(floors) * b.filters_per_step for b in ranked)
        if total * left < least:
            most = int(math.log(least / total) / math.log(1 - self.rate))
            raise InvalidSetting(
                f"{self.rounds} rounds at rate {self.rate} would leave {total * left:.0f} of {total} filters, fewer than the floors of all "
                f"layers together ({least}) and so empty a layer; at most {most} rounds, or lower floors: max_layer_ratio={self.max_layer_ratio} "
                f"and min_channels={self.min_channels}"
            )


_CUT = ("prune", "scope", "criterion", "group_reduction", "normalize", "masked", "align")
_LIMITED = ("keep", "only", "max_layer_ratio", "min_channels")
_OF_PRUNING = {name: SearchConfig.__dataclass_fields__[name].default for name in (*_CUT, *_LIMITED)}
