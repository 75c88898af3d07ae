"""What a search is to do: described first (`SearchJob`), then prepared (`prepare`: the network built, traced and checked)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile import ranks
from ltcompile.core.deployment import Deployment
from ltcompile.core.mask import WeightMask
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.core.profile import Profile, named_network
from ltcompile.core.recipe import Recipe
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import Task
from ltcompile.errors import InvalidSetting
from ltcompile.graph import Size, agreeing, trace
from ltcompile.graph.inputs import Arguments
from ltcompile.graph.widths import layer_widths
from ltcompile.models import build_model
from ltcompile.paths import write_json
from ltcompile.prune.budget import RelativeTimer, solve_budget
from ltcompile.prune.choose import Ranking
from ltcompile.prune.depth import removable
from ltcompile.prune.limits import Limits
from ltcompile.prune.target import SizeCounter, Target, check_reachable
from ltcompile.search import methods, rewind
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.masks import full_mask, maskable
from ltcompile.search.selection import Selection
from ltcompile.training import Trainer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class SearchJob:
    """A model for a task, the config of the search, the recipe of every training, and the device.

    `weights` is a file to start from, `profile` and `measured` belong to a target of time or energy, and `mask` is the one level's where it
    was found elsewhere: see `find`. Without a `trainer`, the project's own loop trains. `build` makes the
    network in the place of the factory that `model` names. `checkpoint_minutes` is how often trainings save within an epoch (None: not at all).
    With `by_tables`, plans follow from the profile alone, and `measured` times the result: as other processes train meanwhile.

    Raises:
        InvalidSetting: settings contradict each other.
    """

    model: str
    task: Task
    config: SearchConfig
    recipe: Recipe
    device: torch.device
    weights: str | Path | None = None
    profile: Profile | None = None
    measured: RelativeTimer | None = None
    mask: WeightMask | None = None
    trainer: Trainer | None = None
    build: Callable[[], nn.Module] | None = None
    checkpoint_minutes: float | None = None
    by_tables: bool = False

    def __post_init__(self) -> None:
        config, target = self.config, self.config.target
        if self.trainer is None and not {"train", "val", "test"} <= self.task.sizes.keys():
            raise InvalidSetting("the default trainer needs a task with the parts train, val and test; pass one, or trainer=")
        ranks.check_shares(self.recipe.virtual_ranks)
        if self.trainer is not None and ranks.world() > 1:
            raise InvalidSetting("several processes train by the project's own loop; leave trainer= out, or start one process")
        if self.checkpoint_minutes is not None and not 0 <= self.checkpoint_minutes < math.inf:
            raise InvalidSetting(f"checkpoint_minutes={self.checkpoint_minutes} must be finite, and not negative")
        if config.rewind_epoch >= self.recipe.epochs:
            raise InvalidSetting(f"rewind_epoch={config.rewind_epoch} must lie before the last of {self.recipe.epochs} epochs")
        if config.method != PRUNE and not methods.iterative(config.method) and self.weights:
            raise InvalidSetting(f"method={config.method} draws weights of its own; leave weights out")
        if self.mask is not None and (config.prune != "weights" or config.levels != 1):
            raise InvalidSetting("a given mask is the one level of a search for weights: prune=weights, rounds=1")
        if target is None or not target.profiled:
            return
        if ranks.world() > 1:
            raise InvalidSetting(f"a target of {target.measure} is measured while nothing else runs; search in one process")
        if self.profile is None:
            raise InvalidSetting(f"a target of {target.measure} needs a profile; make one with `ltcompile profile`")
        if target.measure == "energy" and self.measured is None:
            raise InvalidSetting("a target of energy needs `measured`, from `profiling.joulemeter` on the target machine")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model's factory is called with."""
        found: dict[str, Any] = self.task.description.arguments
        return found

    @cached_property
    def example(self) -> Any:
        return self.task.example

    @cached_property
    def rewinding(self) -> ModuleType:
        return rewind.load(self.config.rewind)

    def initial(self, seed: int) -> nn.Module:
        """The network before any training: from the seed, or from the given weights. Raises InvalidModel where it cannot be built."""
        return self._build(stream("first weights", seed), self.weights)

    def fresh(self, number: int) -> nn.Module:
        """The network with other weights than `initial`'s, from a stream of its own."""
        return self._build(number, None)

    def _build(self, number: int, weights: str | Path | None) -> nn.Module:
        with seeded(number):
            return self.build() if self.build else build_model(self.model, **self.arguments, weights=weights)

    def to_json(self) -> dict[str, Any]:
        """The settings that a resumed run must have too."""
        return {
            "model": self.model,
            "arguments": self.arguments,
            "data": self.task.description.name,
            **({"task": task} if (task := self.task.description.task) != "classification" else {}),
            **({"fingerprint": self.task.fingerprint} if self.task.fingerprint else {}),
            "config": self.config.to_json(),
            "recipe": self.recipe.to_json(),
            "weights": str(self.weights) if self.weights else None,
            **({"mask": self.mask.digest} if self.mask else {}),
        }


@dataclass(frozen=True)
class PreparedJob:
    """A job with its dense network traced: all groups, those that the search may cut, the selection of everything, and its size."""

    job: SearchJob
    traced: tuple[Group, ...]
    groups: tuple[Group, ...]
    everything: Selection
    dense_size: Size
    dense_bytes: int

    def maskable(self, model: nn.Module) -> dict[str, Tensor]:
        """Parameter name -> the weights that a mask may drop, of the unpruned network `model`."""
        return _maskable(self.job.config, model)

    def ranking(self, groups: tuple[Group, ...], scores: Mapping[str, Tensor], level: int) -> Ranking:
        """What may go of `groups`, the original network's or what an earlier level left of them, at `level`."""
        return _ranking(self.job.config, self.groups, groups, scores, level)


def prepare(job: SearchJob) -> PreparedJob:
    """Build and trace the job's dense network, and check that the search can be done on it.

    Raises:
        InvalidSetting: settings do not fit the network. InvalidModel: it cannot be built or cut. ProfileMismatch: the profile is of another.
        InvalidPlan: the given mask is.
    """
    config, dense = job.config, job.initial(job.config.seed)
    traced = agreeing(dense, job.example, trace(dense, job.example))
    groups = _cuttable(config, traced, dense)
    config.check_fits(groups)
    if config.depth and (why := removable(dense, job.example, config)[1]):
        raise InvalidSetting(why)
    if job.mask is not None:
        job.mask.dropped(dense)
    everything = Selection(PruningPlan(groups), full_mask(_maskable(config, dense)) if config.prune != "filters" else None)
    size_counter = SizeCounter(dense, job.example)
    if config.target is not None:
        _check_reachable(job, config.target, groups, dense, size_counter)
    return PreparedJob(job, traced, groups, everything, size_counter.dense, sum(value.nbytes for value in dense.state_dict().values()))


def recorded_profile(folder: RunFolder, profile: Profile) -> Profile:
    """The profile of the run, from which all of its processes plan: `profile` where the folder has none yet. Raises InvalidFile."""
    write_json(folder.profile, profile.to_json(), once=True)
    return Profile.load(folder.profile)


def _check_reachable(job: SearchJob, target: Target, groups: tuple[Group, ...], dense: nn.Module, size_counter: SizeCounter) -> None:
    ranking = _ranking(job.config, groups, groups, {g.name: torch.zeros(g.width) for g in groups}, job.config.levels)
    if not target.profiled:
        check_reachable(target, ranking, size_counter, job.config, job.config.align)
        return
    assert job.profile is not None, "checked by SearchJob"
    model = named_network(dense, Arguments.of(job.example).tensors) if job.build else {"name": job.model, "arguments": job.arguments}
    job.profile.check_fits(model, Deployment.parse(job.config.on or ""))
    solve_budget(ranking, layer_widths(dense, groups), job.profile, target.share * job.profile.dense_ms)


def _maskable(config: SearchConfig, model: nn.Module) -> dict[str, Tensor]:
    if config.prune == "weights":
        return maskable(model, config, (*CONVOLUTIONS, nn.Linear))
    return maskable(model, Limits(), (nn.Linear,))


def _ranking(
    config: SearchConfig, all_groups: tuple[Group, ...], groups: tuple[Group, ...], scores: Mapping[str, Tensor], level: int
) -> Ranking:
    floors, kept = config.floors(all_groups), config.kept(all_groups, level / config.levels)
    return Ranking(groups, scores, config.scope, floors=floors, kept=kept, align=config.align)


def _cuttable(config: SearchConfig, traced: tuple[Group, ...], dense: nn.Module) -> tuple[Group, ...]:
    """The groups as the search may cut them: by its limits; of a hybrid one, those that convolutions alone make; of weights, none.

    Raises InvalidSetting where nothing is left.
    """
    if config.prune == "weights" or config.method != PRUNE:
        return tuple(replace(g, frozen=g.frozen or "the search is not for filters", tied="") for g in traced)
    if config.prune == "hybrid":
        mixed = "a linear layer makes it, of which single weights are masked"
        traced = tuple(replace(g, frozen=g.frozen or ("" if _by_convolutions(g, dense) else mixed)) for g in traced)
    return config.freeze(traced)


def _by_convolutions(group: Group, model: nn.Module) -> bool:
    return all(isinstance(model.get_submodule(m.layer), CONVOLUTIONS) for m in group.makers)
