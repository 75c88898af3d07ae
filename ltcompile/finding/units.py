"""One training after another, each in a file of its own: done once, and read from there ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Arm, Trained
from ltcompile.errors import TrainingFailed
from ltcompile.finding.asked import Asked
from ltcompile.finding.health import health, sound
from ltcompile.finding.listener import Listener
from ltcompile.finding.run import RunFolder
from ltcompile.graph import cut, size, zeros
from ltcompile.graph.surgeon import zero_
from ltcompile.train import Epoch, Training, train


@dataclass(frozen=True)
class Unit:
    """One training of a search."""

    seed: int
    arm: Arm
    level: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.level}"

    @property
    def stream(self) -> int:
        """The seed of its training."""
        return self.seed * 7919 + self.level * 31 + len(self.arm)


class Units:
    """The trainings of a search, done or to do."""

    def __init__(self, asked: Asked, folder: RunFolder, listener: Listener) -> None:
        self.asked, self.folder, self.listener = asked, folder, listener
        self.ailing: list[dict[str, Any]] = []  # what there is to tell of trainings that are not sound

    def run(
        self, unit: Unit, start: Callable[[], nn.Module], plan: PruningPlan, recipe: Recipe, first_epoch: int = 0
    ) -> tuple[nn.Module, Trained]:
        """Train what `start` gives, or take it from its file if that was done before; the network on the device, and its row."""
        model, file = start(), self.folder.unit(unit.seed, unit.name)
        found = file.exists()
        if found:
            saved = self.folder.load_into(model, file)
        else:
            saved = self._train(unit, model, plan, recipe, first_epoch)
        with self.folder.fitting(file):
            row, told = Trained.from_json(saved["row"]), saved.get("health")  # runs that began before it have none
        if told and not sound(told):
            self.ailing.append({"seed": unit.seed, "arm": unit.arm, "level": unit.level, **told})
        self.listener.finished(row, found)
        return model.to(self.asked.device), row

    def _train(self, unit: Unit, model: nn.Module, plan: PruningPlan, recipe: Recipe, first_epoch: int) -> dict[str, Any]:
        """Train `model` in place, from its checkpoint if there is one; what is in the unit's file then."""
        partial = self.folder.partial(unit.seed, unit.name)
        state = self.folder.load(partial) if partial.exists() else None
        with self.folder.fitting(partial):
            done_before = len(state["epochs"]) if state else 0
        self.listener.started(unit.seed, unit.arm, unit.level, recipe.epochs - first_epoch, done_before)

        def keep(epoch: Epoch, reached: dict[str, Any]) -> None:
            if unit.arm == "dense" and epoch.epoch + 1 == self.asked.config.rewind_epoch:
                self.folder.save(self.folder.unit(unit.seed, "early"), {"weights": reached["model"]})
            if epoch.epoch + 1 < recipe.epochs:  # the last one is kept by the unit's own file
                self.folder.save(partial, reached)
                self._tell(unit, epoch)

        dropped = zeros(model.to(self.asked.device), plan) if self._masked(unit) else {}
        try:
            done = train(
                model,
                self.asked.data,
                recipe,
                unit.stream,
                self.asked.device,
                first_epoch=first_epoch,
                after_step=(lambda network: zero_(network, dropped)) if dropped else None,
                progress=keep,
                state=state,
                teacher=self._teacher(unit, recipe),
            )
        except TrainingFailed as error:
            kept = f"the state after its last good epoch is in {partial}" if partial.exists() else "it had no good epoch yet"
            raise TrainingFailed(f"{unit.name} of seed {unit.seed}: {error}. Other settings need another --name; {kept}") from error
        small = cut(model, plan) if self._masked(unit) else model
        saved = {
            "weights": model.state_dict(),
            "row": self._row(unit, small, done).to_json(),
            "epochs": [epoch.to_json() for epoch in done.epochs],
            "health": health(small, plan.remaining(), self.asked.data.val, self.asked.device, done),
        }
        self.folder.save(self.folder.unit(unit.seed, unit.name), saved)
        partial.unlink(missing_ok=True)
        self._tell(unit, done.epochs[-1])
        return saved

    def _tell(self, unit: Unit, epoch: Epoch) -> None:
        """An epoch that is in a file now: it will not be run again."""
        self.folder.log({"seed": unit.seed, "unit": unit.name, **epoch.to_json()})
        self.listener.epoch(unit.seed, unit.arm, unit.level, epoch)

    def _row(self, unit: Unit, model: nn.Module, done: Training) -> Trained:
        counted = size(model, self.asked.example.to(self.asked.device))
        last, stop = done.epochs[-1], min(done.epochs, key=lambda e: e.val_loss)
        producers = {m.layer for g in self.asked.groups for m in g.producers}
        return Trained(
            seed=unit.seed,
            arm=unit.arm,
            level=unit.level,
            filters=sum(_filters(model.get_submodule(name)) for name in producers),
            params=counted.params,
            macs=counted.macs,
            epochs=len(done.epochs),
            seconds=sum(e.seconds for e in done.epochs),
            train_loss=last.train_loss,
            train_accuracy=last.train_accuracy,
            val_loss=done.val.loss,
            val_accuracy=done.val.accuracy,
            val_correct=done.val.correct_hex,
            stop_epoch=stop.epoch + 1,
        )

    # What finished trainings left

    def plan(self, unit: Unit) -> PruningPlan:
        """What of the original network it trained."""
        return self.folder.load_plan(unit.seed, unit.level) if unit.arm in ("ticket", "random") else self.asked.whole

    def trained(self, unit: Unit) -> nn.Module:
        """The network of a finished training, on the CPU; of a masked search, the whole one with zeros."""
        model = self.asked.initial(unit.seed)
        if not self._masked(unit):
            model = cut(model, self.plan(unit))
        self.folder.load_into(model, self.folder.unit(unit.seed, unit.name))
        return model

    def early(self, seed: int) -> nn.Module:
        """The dense network at the rewind epoch."""
        model = self.asked.initial(seed)
        if self.asked.config.rewind_epoch:
            self.folder.load_into(model, self.folder.unit(seed, "early"))
        return model

    def _teacher(self, unit: Unit, recipe: Recipe) -> nn.Module | None:
        """The seed's dense network, for tickets and, in fairness, the random control; None where nothing is distilled."""
        taught = recipe.distill > 0 and unit.arm in ("ticket", "random")
        return self.trained(Unit(unit.seed, "dense", 0)) if taught else None

    def _masked(self, unit: Unit) -> bool:
        """Whether it trains the whole network with zeros."""
        return self.asked.config.masked and unit.arm == "ticket"


def _filters(layer: nn.Module) -> int:
    """The output channels of a producing layer."""
    return int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))
