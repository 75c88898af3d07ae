"""One training after another, each in a file of its own: done once, and read from there ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Arm, Trained
from ltcompile.core.streams import Purpose, stream
from ltcompile.errors import TrainingFailed
from ltcompile.graph import cut, size, zeros
from ltcompile.graph.emptied import emptied
from ltcompile.graph.factorise import factorise
from ltcompile.graph.surgeon import zeroing
from ltcompile.search import methods
from ltcompile.search.asked import Asked
from ltcompile.search.config import PRUNE
from ltcompile.search.execution import settle
from ltcompile.search.health import health, sound
from ltcompile.search.kept import Kept
from ltcompile.search.listener import Listener
from ltcompile.search.masks import shuffled
from ltcompile.search.run import RunFolder
from ltcompile.training import Epoch, Training, train

DENSE: tuple[Arm, ...] = ("dense", "dense_budget")


@dataclass(frozen=True)
class Choice:
    """What a method other than pruning chooses in a training: the share of coordinates to keep, and the network trained before."""

    share: float
    trained: nn.Module | None


@dataclass(frozen=True)
class Unit:
    """One training of a search."""

    seed: int
    arm: Arm
    level: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.level}"

    def stream(self, purpose: Purpose) -> int:
        """One of its random streams."""
        return stream(purpose, self.seed, arm=self.arm, level=self.level)


class Units:
    """The trainings of a search, done or to do."""

    def __init__(self, asked: Asked, folder: RunFolder, listener: Listener) -> None:
        self.asked, self.folder, self.listener = asked, folder, listener
        self.execution = settle(asked, folder)
        self.ailing: list[dict[str, Any]] = []  # what there is to tell of trainings that are not sound

    def run(
        self, unit: Unit, start: Callable[[], nn.Module], kept: Kept, recipe: Recipe, first_epoch: int = 0, choice: Choice | None = None
    ) -> tuple[nn.Module, Trained]:
        """Train what `start` gives, or take it from its file if that was done before; the network on the device, and its row.

        With a `choice`, the search's method chooses while it trains, and what a ticket keeps is written down.
        """
        model, file = start(), self.folder.unit(unit.seed, unit.name)
        found = file.exists()
        if found:
            saved = self.folder.load_into(model, file)
        else:
            saved = self._train(unit, model, kept, recipe, first_epoch, choice)
        with self.folder.fitting(file):
            row, told = Trained.from_json(saved["row"]), saved["health"]
        if not sound(told):
            self.ailing.append({"seed": unit.seed, "arm": unit.arm, "level": unit.level, **told})
        self.listener.finished(row, found)
        return model.to(self.asked.device), row

    def _train(self, unit: Unit, model: nn.Module, kept: Kept, recipe: Recipe, first_epoch: int, choice: Choice | None) -> dict[str, Any]:
        """Train `model` in place, from its checkpoint if there is one; what is in the unit's file then."""
        partial = self.folder.partial(unit.seed, unit.name)
        state = self.folder.load(partial) if partial.exists() else None
        with self.folder.fitting(partial):
            done_before = len(state["epochs"]) if state else 0
        self.listener.started(unit.seed, unit.arm, unit.level, recipe.epochs - first_epoch, done_before)

        def save(epoch: Epoch, reached: dict[str, Any]) -> None:
            if unit.arm == "dense" and epoch.epoch + 1 == self.asked.config.rewind_epoch:
                self.folder.save(self.folder.unit(unit.seed, "early"), {"weights": reached["model"]})
            if epoch.epoch + 1 < recipe.epochs:  # the last one is kept by the unit's own file
                self.folder.save(partial, reached)
                self._tell(unit, epoch)

        dropped = kept.zeros(model.to(self.asked.device)) if self._with_zeros(unit, kept) and choice is None else {}
        if choice is not None:
            methods.attach(self.asked.config.method, model, choice.share, unit.stream("method"), choice.trained)
        try:
            done = train(
                model,
                self.asked.data,
                recipe,
                unit.stream("training"),
                self.asked.device,
                execution=self.execution,
                first_epoch=first_epoch,
                after_step=zeroing(model, dropped) if dropped else None,
                progress=save,
                state=state,
                teacher=self._teacher(unit, recipe),
            )
        except TrainingFailed as error:
            told = f"the state after its last good epoch is in {partial}" if partial.exists() else "it had no good epoch yet"
            raise TrainingFailed(f"{unit.name} of seed {unit.seed}: {error}. Other settings need another --name; {told}") from error
        baked = methods.bake(model) if choice is not None else None
        if baked is not None and unit.arm == "ticket":
            kept = Kept(kept.plan, baked.mask)
            self.folder.save_kept(unit.seed, unit.level, kept)
        small, plan = self._lean(unit, model, kept)
        saved = {
            "weights": model.state_dict(),
            "row": self._row(unit, small, model, done, self._left(unit, model, kept, baked)).to_json(),
            "epochs": [epoch.to_json() for epoch in done.epochs],
            "health": health(small if plan else model, (plan or kept.plan).remaining(), self.asked.data.val, self.asked.device, done),
        }
        self.folder.save(self.folder.unit(unit.seed, unit.name), saved)
        partial.unlink(missing_ok=True)
        self._tell(unit, done.epochs[-1])
        return saved

    def _tell(self, unit: Unit, epoch: Epoch) -> None:
        """An epoch that is in a file now: it will not be run again."""
        self.folder.log({"seed": unit.seed, "unit": unit.name, **epoch.to_json()})
        self.listener.epoch(unit.seed, unit.arm, unit.level, epoch)

    def _lean(self, unit: Unit, model: nn.Module, kept: Kept) -> tuple[nn.Module, PruningPlan | None]:
        """The trained network without what its zeros, or a low rank, make idle; the plan on the original that leads there, if one does."""
        example = self.asked.example.to(self.asked.device)
        if unit.arm not in DENSE and kept.mask is not None:
            found = emptied(model, self.asked.traced, example)
            return found.module, found.plan
        if unit.arm not in DENSE and self.asked.config.method != PRUNE:
            return factorise(model, example).module, None
        return (cut(model, kept.plan) if self._with_zeros(unit, kept) else model), kept.plan

    def _left(self, unit: Unit, model: nn.Module, kept: Kept, baked: methods.Baked | None) -> tuple[int, int] | None:
        """How many weights and parameters are left of the whole network; in another basis, coordinates in their place. None of cut ones."""
        if self.asked.whole.mask is None and self.asked.config.method == PRUNE:
            return None
        weights, params = kept.left(model)
        fewer = baked.coordinates - baked.kept if baked is not None and baked.mask is None else 0
        return weights - fewer, params - fewer

    def _row(self, unit: Unit, small: nn.Module, model: nn.Module, done: Training, left: tuple[int, int] | None) -> Trained:
        counted = size(small, self.asked.example.to(self.asked.device))
        last, stop = done.epochs[-1], min(done.epochs, key=lambda e: e.val_loss)
        producers = {m.layer for g in self.asked.groups for m in g.producers}
        return Trained(
            seed=unit.seed,
            arm=unit.arm,
            level=unit.level,
            filters=sum(_filters(small.get_submodule(name)) or _filters(model.get_submodule(name)) for name in producers),
            params=left[1] if left else counted.params,
            macs=counted.macs,
            epochs=len(done.epochs),
            seconds=sum(e.seconds for e in done.epochs),
            train_loss=last.train_loss,
            train_accuracy=last.train_accuracy,
            val_loss=done.val.loss,
            val_accuracy=done.val.accuracy,
            val_correct=done.val.correct_hex,
            stop_epoch=stop.epoch + 1,
            weights=left[0] if left else None,
        )

    # What finished trainings left

    def kept(self, unit: Unit) -> Kept:
        """What of the original network it trained."""
        if unit.arm in DENSE:
            return self.asked.whole
        found = self.folder.load_kept(unit.seed, unit.level, self.asked.whole.mask is not None)
        if unit.arm != "shuffled" or found.mask is None:
            return found
        gone = {name: dropped.cpu() for name, dropped in zeros(self.asked.initial(unit.seed), found.plan).items()}
        return Kept(found.plan, shuffled(found.mask, unit.stream("shuffled mask"), gone))

    def trained(self, unit: Unit) -> nn.Module:
        """The network of a finished training, on the CPU; of a masked search, the whole one with zeros."""
        model = self.asked.initial(unit.seed)
        kept = self.kept(unit)
        if not self._with_zeros(unit, kept):
            model = cut(model, kept.plan)
        self.folder.load_into(model, self.folder.unit(unit.seed, unit.name))
        return model

    def early(self, seed: int) -> nn.Module:
        """The dense network at the rewind epoch."""
        model = self.asked.initial(seed)
        if self.asked.config.rewind_epoch:
            self.folder.load_into(model, self.folder.unit(seed, "early"))
        return model

    def _teacher(self, unit: Unit, recipe: Recipe) -> nn.Module | None:
        """The seed's dense network, for tickets and, in fairness, their controls; None where nothing is distilled."""
        taught = recipe.distill > 0 and unit.arm not in DENSE
        return self.trained(Unit(unit.seed, "dense", 0)) if taught else None

    def _with_zeros(self, unit: Unit, kept: Kept) -> bool:
        """Whether it trains the whole network with zeros."""
        if kept.mask is not None:
            return unit.arm not in DENSE
        return self.asked.config.masked and unit.arm == "ticket"


def _filters(layer: nn.Module) -> int:
    """The output channels of a producing layer."""
    return int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))
