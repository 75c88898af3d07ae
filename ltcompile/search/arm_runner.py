"""Trains an arm of a search into a file of its own; a finished arm is read from there ever after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.lease import Lease, LeaseLost
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Score
from ltcompile.errors import TrainingFailed
from ltcompile.graph import cut, dropped_weights, size
from ltcompile.graph.dead_channels import eliminate_dead_channels
from ltcompile.graph.factorise import factorise
from ltcompile.graph.surgeon import zeroing
from ltcompile.search import methods
from ltcompile.search.config import PRUNE
from ltcompile.search.execution import run_execution
from ltcompile.search.health import health, healthy
from ltcompile.search.job import PreparedJob
from ltcompile.search.listener import Listener
from ltcompile.search.masks import shuffle_mask
from ltcompile.search.selection import Selection
from ltcompile.training import ArmTraining, Checkpoint, DefaultTrainer, Epoch, Outcome, Trainer


@dataclass(frozen=True)
class Choice:
    """What a method other than pruning chooses in a training: the share of coordinates to keep, and the network trained before."""

    share: float
    trained: nn.Module | None


class ArmRunner:
    """The arms of a search, finished or still to train. While an arm is trained, `lease` is this process's on it."""

    def __init__(self, prepared: PreparedJob, folder: RunFolder, listener: Listener) -> None:
        self.prepared, self.job, self.folder, self.listener = prepared, prepared.job, folder, listener
        with ranks.first_alone():
            self.execution = run_execution(self.job, folder)
        self.trainer: Trainer = self.job.trainer or DefaultTrainer(self.execution)
        self.lease: Lease | None = None
        self._rows: dict[Arm, tuple[Trained, dict[str, Any]]] = {}

    def run(
        self,
        arm: Arm,
        start: Callable[[], nn.Module],
        selection: Selection,
        recipe: Recipe,
        first_epoch: int = 0,
        choice: Choice | None = None,
    ) -> None:
        """Train what `start` gives into the arm's file.

        With a `choice`, the search's method chooses while it trains, and what a ticket keeps is written to the folder.
        """
        if arm.kind not in ("dense", "ticket") or arm.level == self.job.config.levels:
            recipe = replace(recipe, regulariser="")  # nothing is cut after it
        saved = self._train(arm, start(), selection, recipe, first_epoch, choice)
        if saved is None:
            return
        self._keep(arm, saved)
        self.listener.finished(self.row(arm), False)

    def row(self, arm: Arm) -> Trained:
        """The row of a finished arm, without a test score. Raises InvalidFile."""
        if arm not in self._rows:
            self._keep(arm, self.folder.load(self.folder.training(arm)))
        return self._rows[arm][0]

    def unhealthy(self, arms: list[Arm]) -> list[dict[str, Any]]:
        """The health of the trainings that have something to report, of finished arms."""
        found = [(arm, self._rows[arm][1]) for arm in arms if self.row(arm)]
        return [{"seed": arm.seed, "arm": arm.kind, "level": arm.level, **report} for arm, report in found if not healthy(report)]

    def _keep(self, arm: Arm, saved: dict[str, Any]) -> None:
        with self.folder.fitting(self.folder.training(arm)):
            report = saved["health"]
            healthy(report)
            for epoch in saved["epochs"]:
                Epoch.from_json(epoch)
            self._rows[arm] = Trained.from_json(saved["row"]), report

    def _train(
        self, arm: Arm, model: nn.Module, selection: Selection, recipe: Recipe, first_epoch: int, choice: Choice | None
    ) -> dict[str, Any] | None:
        """Train `model` in place, from its checkpoint if there is one; returns what is in the arm's file then, and None where another process
        writes it.
        """
        checkpoint = self.folder.checkpoint(arm)
        state = self.folder.load(checkpoint) if checkpoint.exists() else None
        with self.folder.fitting(checkpoint):
            before = state["epochs"] if state else []
            self.folder.write_epochs(arm, before)
        if self.lease is not None:
            self.lease.describe(epochs=recipe.epochs - first_epoch)
        self.listener.started(arm.seed, arm.kind, arm.level, recipe.epochs - first_epoch, len(before))
        dropped = selection.dropped(model.to(self.job.device)) if self._masked(arm, selection) and choice is None else {}
        if choice is not None:
            methods.attach(self.job.config.method, model, choice.share, arm.stream("method"), choice.trained)
        try:
            after_step, teacher = zeroing(model, dropped) if dropped else None, self._teacher(arm, recipe)
            done = self.trainer(
                model,
                self.job.task,
                ArmTraining(arm, recipe, self.job.device, first_epoch, after_step, teacher, self._within_epochs(arm)),
                state,
                lambda epoch, reached: self._save_epoch(arm, recipe, epoch, reached),
            )
        except TrainingFailed as error:
            kept = f"the state after its last good epoch is in {checkpoint}" if checkpoint.exists() else "it had no good epoch yet"
            raise TrainingFailed(f"{arm.name} of seed {arm.seed}: {error}. Other settings need another folder=; {kept}") from error
        if ranks.follows():
            return None
        saved = self._finished(arm, model, selection, done, choice)
        self.folder.check_exists()
        self.folder.write_epochs(arm, saved["epochs"])
        self.folder.save(self.folder.training(arm), saved)
        checkpoint.unlink(missing_ok=True)
        self.listener.epoch(arm.seed, arm.kind, arm.level, done.epochs[-1])
        return saved

    def _save_epoch(self, arm: Arm, recipe: Recipe, epoch: Epoch, reached: dict[str, Any]) -> None:
        self.folder.check_exists()
        if self.lease is not None:
            self.lease.beat()  # while a training holds Python's lock, the thread that beats does not run
        self._check_lease(arm)
        if arm.kind == "dense" and epoch.epoch + 1 == self.job.config.rewind_epoch:
            self.folder.save(self.folder.early(arm.seed), {"weights": reached["model"]})
        if epoch.epoch + 1 < recipe.epochs:  # the last one is kept by the arm's own file
            self.folder.save(self.folder.checkpoint(arm), reached)
            self.folder.log(arm, epoch.to_json())
            self.listener.epoch(arm.seed, arm.kind, arm.level, epoch)

    def _check_lease(self, arm: Arm) -> None:
        """Raises LeaseLost, in all processes that train together, where another one took the arm over."""
        if ranks.agreed(self.lease is not None and self.lease.lost):
            raise LeaseLost(arm.name)

    def _within_epochs(self, arm: Arm) -> Checkpoint:
        """Writes states within an epoch to the arm's checkpoint, as often as the job says."""

        def save(state: dict[str, Any]) -> None:
            self._check_lease(arm)
            self.folder.save(self.folder.checkpoint(arm), state)

        return Checkpoint(save, math.inf if (minutes := self.job.checkpoint_minutes) is None else 60 * minutes)

    def _finished(self, arm: Arm, model: nn.Module, selection: Selection, done: Outcome, choice: Choice | None) -> dict[str, Any]:
        """The contents of the file of an arm that has just been trained; saves the selection that a method made."""
        baked = methods.bake(model) if choice is not None else None
        if baked is not None and arm.kind == "ticket":
            selection = Selection(selection.plan, baked.mask)
            self.folder.save_selection(arm.seed, arm.level, selection.plan, selection.mask)
        small, plan = self._without_dead_channels(arm, model, selection)
        remaining = self._remaining(arm, model, selection, baked)
        groups = (plan or selection.plan).remaining()
        return {
            "weights": model.state_dict(),
            "row": self._row(arm, small, model, selection.plan, done, remaining).to_json(),
            "epochs": [epoch.to_json() for epoch in done.epochs],
            "health": health(small if plan else model, groups, self.job.task, self.job.device, done),
        }

    def _without_dead_channels(self, arm: Arm, model: nn.Module, selection: Selection) -> tuple[nn.Module, PruningPlan | None]:
        """The trained network without what its zeros, or a low rank, make idle; the plan on the original that leads there, if one does."""
        example = self._example
        if not arm.unpruned and selection.mask is not None:
            found = eliminate_dead_channels(model, self.prepared.traced, example)
            return found.module, found.plan
        if not arm.unpruned and self.job.config.method != PRUNE:
            return factorise(model, example).module, None
        return (cut(model, selection.plan) if self._masked(arm, selection) else model), selection.plan

    def _remaining(self, arm: Arm, model: nn.Module, selection: Selection, baked: methods.Baked | None) -> tuple[int, int] | None:
        """How many weights and parameters of the unpruned network remain; in another basis, coordinates in their place. None of cut ones."""
        if self.prepared.everything.mask is None and self.job.config.method == PRUNE:
            return None
        weights, params = selection.remaining(model)
        fewer = baked.coordinates - baked.kept if baked is not None and baked.mask is None else 0
        return weights - fewer, params - fewer

    @property
    def _example(self) -> Any:
        """The task's example on the device of the search."""
        return tree_map_only(Tensor, lambda tensor: tensor.to(self.job.device), self.job.example)

    def _row(
        self, arm: Arm, small: nn.Module, model: nn.Module, plan: PruningPlan, done: Outcome, remaining: tuple[int, int] | None
    ) -> Trained:
        counted = size(small, self._example)
        last, stop = done.epochs[-1], min(done.epochs, key=lambda e: e.val_loss)
        producers = {m.layer for g in self.prepared.groups for m in g.producers if not plan.removes(m.layer)}
        return Trained(
            seed=arm.seed,
            arm=arm.kind,
            level=arm.level,
            filters=sum(_filters(small.get_submodule(name)) or _filters(model.get_submodule(name)) for name in producers),
            params=remaining[1] if remaining else counted.params,
            macs=counted.macs,
            epochs=len(done.epochs),
            seconds=sum(e.seconds for e in done.epochs),
            train_loss=last.train_loss,
            train_accuracy=last.train_accuracy,
            val_loss=done.score.loss,
            val_score=done.score.value,
            val_correct=done.score.items,
            val_items=[*done.score.values],
            stop_epoch=stop.epoch + 1,
            weights=remaining[0] if remaining else None,
        )

    # What finished arms left

    def selection(self, arm: Arm) -> Selection:
        """What of the original network an arm trained."""
        if arm.unpruned:
            return self.prepared.everything
        found = Selection(*self.folder.load_selection(arm.seed, arm.level, self.prepared.everything.mask is not None))
        if arm.kind != "shuffled" or found.mask is None:
            return found
        gone = {name: dropped.cpu() for name, dropped in dropped_weights(self.job.initial(arm.seed), found.plan).items()}
        return Selection(found.plan, shuffle_mask(found.mask, arm.stream("shuffled mask"), gone))

    def trained(self, arm: Arm) -> nn.Module:
        """The network of a finished arm, on the CPU; of a masked search, the unpruned one with zeros."""
        model, selection = self.job.initial(arm.seed), self.selection(arm)
        if not self._masked(arm, selection):
            model = cut(model, selection.plan)
        self.folder.load_into(model, self.folder.training(arm))
        return model

    def tested(self, arm: Arm) -> Score:
        """A finished arm on the test items, which nothing else looks at."""
        return self.job.task.evaluate(self.trained(arm).to(self.job.device), "test", self.job.device)

    def early(self, seed: int) -> nn.Module:
        """The dense network at the rewind epoch."""
        model = self.job.initial(seed)
        if self.job.config.rewind_epoch:
            self.folder.load_into(model, self.folder.early(seed))
        return model

    def _teacher(self, arm: Arm, recipe: Recipe) -> nn.Module | None:
        """The seed's dense network, for tickets and, in fairness, their controls; None where nothing is distilled."""
        return self.trained(Arm(arm.seed, "dense", 0)) if recipe.is_taught and not arm.unpruned else None

    def _masked(self, arm: Arm, selection: Selection) -> bool:
        """Whether the arm trains the unpruned network with zeros."""
        if selection.mask is not None:
            return not arm.unpruned
        return self.job.config.masked and arm.kind == "ticket"


def _filters(layer: nn.Module) -> int:
    """The output channels of a producing layer."""
    return int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))
