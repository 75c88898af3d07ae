"""What a search was asked, and the dense network that it starts from; checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.deployment import Deployment
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.core.profile import Profile
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.data import Dataset
from ltcompile.errors import BadSetting
from ltcompile.graph import agreeing, trace
from ltcompile.graph.widths import layer_widths
from ltcompile.models import build_model
from ltcompile.prune.budget import Clock, within
from ltcompile.prune.choose import Ranking
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import Meter, Target, check_reachable
from ltcompile.search import methods, rewind
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.kept import Kept
from ltcompile.search.masks import everything, maskable

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Asked:
    """A model on data, the config of the search, the recipe of every training, and the device."""

    def __init__(
        self,
        name: str,
        data: Dataset,
        config: SearchConfig,
        recipe: Recipe,
        weights: str | Path | None,
        device: torch.device,
        profile: Profile | None = None,
        measured: Clock | None = None,
        given: WeightMask | None = None,
    ) -> None:
        """Raises BadSetting where settings do not fit each other or the network; BadModel where it cannot be built or cut; StaleProfile
        where the profile is of another; BadPlan where the given mask is.
        """
        self.profile, self.measured, self.given = profile, measured, given
        self.name, self.arguments = name, data.description.arguments
        self.data, self.config, self.recipe, self.weights, self.device = data, config, recipe, weights, device
        self.rewinding = rewind.load(config.rewind)
        if config.rewind_epoch >= recipe.epochs:
            raise BadSetting(f"--rewind-epoch {config.rewind_epoch} must lie before the last of {recipe.epochs} epochs")
        self.example = data.example
        dense = self.initial(config.seed)
        self.traced = agreeing(dense, self.example, trace(dense, self.example))
        self.groups = _cut_by(config, self.traced, dense)
        config.check_fits(self.groups)
        self._check_given(dense)
        self.whole = Kept(PruningPlan(self.groups), everything(self.maskable(dense)) if config.prune != "filters" else None)
        meter = Meter(dense, self.example)
        self.dense_size, self.dense_bytes = meter.dense, sum(value.nbytes for value in dense.state_dict().values())
        if config.target is not None:
            self._check_reachable(config.target, dense, meter)

    def _check_given(self, dense: nn.Module) -> None:
        """Raises BadSetting or BadPlan unless a given mask can be the only level of the search."""
        if self.config.method != PRUNE and not methods.iterative(self.config.method) and self.weights:
            raise BadSetting(f"--method {self.config.method} draws weights of its own; leave --weights out")
        if self.given is None:
            return
        if self.config.prune != "weights" or self.config.levels != 1:
            raise BadSetting("a given mask is the one level of a search for weights: --prune weights --rounds 1")
        self.given.dropped(dense)

    def _check_reachable(self, target: Target, dense: nn.Module, meter: Meter) -> None:
        ranking = self.ranking(self.groups, {g.name: torch.zeros(g.width) for g in self.groups}, self.config.levels)
        if not target.profiled:
            check_reachable(target, ranking, meter, self.config, self.config.align)
            return
        if self.profile is None:
            raise BadSetting(f"a target of {target.measure} needs a profile; make one with `ltcompile profile`")
        if target.measure == "energy" and self.measured is None:
            raise BadSetting("a target of energy needs a meter, as `profiling.joulemeter` makes one on the machine that it is about")
        self.profile.check_fits({"name": self.name, "arguments": self.arguments}, Deployment.parse(self.config.on or ""))
        within(ranking, layer_widths(dense, self.groups), self.profile, target.share * self.profile.dense_ms)

    def initial(self, seed: int) -> nn.Module:
        """The network before any training: from the seed, or from the given weights."""
        return self._build(stream("first weights", seed), self.weights)

    def fresh(self, number: int) -> nn.Module:
        """The network with other weights than `initial`'s, from a stream of its own."""
        return self._build(number, None)

    def _build(self, number: int, weights: str | Path | None) -> nn.Module:
        with seeded(number):
            return build_model(self.name, **self.arguments, weights=weights)

    def maskable(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter name -> the weights that a mask may drop, of the whole network `model`."""
        if self.config.prune == "weights":
            return maskable(model, self.config, (*CONVOLUTIONS, nn.Linear))
        return maskable(model, Limits(), (nn.Linear,))

    def ranking(self, groups: tuple[Group, ...], scores: Mapping[str, Tensor], level: int) -> Ranking:
        """What may go of `groups`, the original network's or what an earlier level left of them, at `level`."""
        floors, kept = self.config.floors(self.groups), self.config.kept(self.groups, level / self.config.levels)
        return Ranking(groups, scores, self.config.scope, floors=floors, kept=kept, align=self.config.align)

    def to_json(self) -> dict[str, Any]:
        """What a resumed run must ask for again."""
        return {
            "model": self.name,
            "arguments": self.arguments,
            "data": self.data.description.name,
            "config": self.config.to_json(),
            "recipe": self.recipe.to_json(),
            "weights": str(self.weights) if self.weights else None,
            **({"given": self.given.digest} if self.given else {}),
        }


def _cut_by(config: SearchConfig, traced: tuple[Group, ...], dense: nn.Module) -> tuple[Group, ...]:
    """The groups as the search may cut them: by its limits; of a hybrid one, those that convolutions alone make; of weights, none.

    Raises BadSetting where nothing is left.
    """
    if config.prune == "weights" or config.method != PRUNE:
        return tuple(replace(g, frozen=g.frozen or "the search is not for filters", tied="") for g in traced)
    if config.prune == "hybrid":
        mixed = "a linear layer makes it, of which single weights are masked"
        traced = tuple(replace(g, frozen=g.frozen or ("" if _by_convolutions(g, dense) else mixed)) for g in traced)
    return config.freeze(traced)


def _by_convolutions(group: Group, model: nn.Module) -> bool:
    return all(isinstance(model.get_submodule(m.layer), CONVOLUTIONS) for m in group.makers)
