"""The search itself. Between rounds the network is really cut, so a search gets faster as it prunes.

Per seed: the dense network, then one ticket per level. Over all seeds: the verdict on validation data, the control arms at the
chosen level, and one look at the test set. Every training is a unit with a file of its own: a search is resumed by doing it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile import criteria, rewind
from ltcompile.core.plan import Group, PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Arm, Trained, Verdict, provenance
from ltcompile.core.ticket import Ticket
from ltcompile.data import Dataset, load_data
from ltcompile.errors import BadSetting
from ltcompile.finding.choose import Ranking
from ltcompile.finding.config import SearchConfig
from ltcompile.finding.evidence import gather
from ltcompile.finding.listener import Listener, Silence
from ltcompile.finding.run import RunFolder
from ltcompile.finding.target import Meter, check_reachable, meet
from ltcompile.finding.verdict import choose_level, closest_level, judge
from ltcompile.graph import cut, mask, size, trace, zeros
from ltcompile.graph.surgeon import zero_
from ltcompile.models import build_model, default_recipe, least_size, preprocessing
from ltcompile.paths import locked, write_json
from ltcompile.train import Epoch, Training, evaluate, pick_device, train


@dataclass(frozen=True)
class Found:
    """What a search found: the ticket (the winner, or the closest where none won), all rows, the verdict, the run folder."""

    ticket: Ticket
    rows: tuple[Trained, ...]
    verdict: Verdict
    folder: Path


def find(
    model: str = "vgg16",
    data: str | Dataset = "digits",
    config: SearchConfig | None = None,
    *,
    recipe: Recipe | None = None,
    data_root: str | Path = "data",
    image_size: int | None = None,
    download: bool = False,
    weights: str | Path | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
    strict: bool = False,
    listener: Listener | None = None,
) -> Found:
    """Search for the smallest winning ticket of `model` on `data`, and write it to `folder`/ticket.pt.

    Args:
        recipe: how every arm is trained; by default the model's usual recipe, adapted to the data and to given weights.
        weights: trained weights to start from instead of fresh ones. For a `torchvision:` or `timm:` model, images are then prepared
            as for its published ones.
        folder: the run folder, by default runs/MODEL-DATA-REWIND.
        resume: go on with the run in `folder` behind its last finished epoch.
        strict: refuse a folder with unreadable images instead of skipping them.

    Raises:
        LtcompileError: one of its kinds, for a name, setting, data set or file that does not fit.
    """
    config = config or SearchConfig()
    on = pick_device(device)
    if isinstance(data, str):
        data = data_for(model, data, data_root, image_size, weights=weights, download=download, strict=strict)
    search = _Search(model, data, config, recipe or recipe_for(model, data, weights), weights, on, listener or Silence())
    return search.run(Path(folder) if folder is not None else default_folder(model, data, config), resume)


def default_folder(model: str, data: Dataset, config: SearchConfig) -> Path:
    """runs/MODEL-DATA-REWIND."""
    return Path("runs") / "-".join((model, data.description.name, config.rewind)).replace(":", "-").replace("/", "-")


def data_for(
    model: str,
    data: str,
    data_root: str | Path = "data",
    image_size: int | None = None,
    *,
    weights: str | Path | None = None,
    download: bool = False,
    strict: bool = False,
) -> Dataset:
    """The data set as `model` has to see it: large enough, and with `weights` prepared as for its published ones. Raises as `find`."""
    side = image_size or (least_size(model) if data == "mnist" and least_size(model) > 28 else None)
    prepared = preprocessing(model) if weights else None
    return load_data(data, data_root, side, download=download, preprocessing=prepared, strict=strict)


def recipe_for(model: str, data: Dataset, weights: str | Path | None = None) -> Recipe:
    """The model's usual recipe, at a fine-tuning rate where there are trained `weights`, adapted to the data. Raises UnknownName."""
    usual = default_recipe(model)
    return data.adapt(usual.fine_tuning() if weights else usual)


class _Search:
    def __init__(
        self,
        name: str,
        data: Dataset,
        config: SearchConfig,
        recipe: Recipe,
        weights: str | Path | None,
        device: torch.device,
        listener: Listener,
    ) -> None:
        channels, side, _ = data.description.shape
        self.name, self.arguments = name, {"classes": data.description.classes, "in_channels": channels, "image_size": side}
        self.data, self.config, self.recipe, self.device, self.listener = data, config, recipe, device, listener
        self.weights = weights
        self.rewinding = rewind.load(config.rewind)
        if config.rewind_epoch >= recipe.epochs:
            raise BadSetting(f"--rewind-epoch {config.rewind_epoch} must lie before the last of {recipe.epochs} epochs")
        self.example = data.example
        model = self._initial(config.seed)
        self.groups = config.freeze(trace(model, self.example))
        config.check_fits(self.groups)
        meter = Meter(model, self.example)
        self.dense_size = meter.dense
        if config.target is not None:
            no_scores = {g.name: torch.zeros(g.width) for g in self.groups}
            check_reachable(config.target, self._ranking(self.groups, no_scores, config.levels), meter, config, config.align)

    # Weights that exist only as a seed

    def _initial(self, seed: int) -> nn.Module:
        """The network before any training: from the seed, or from the given weights."""
        return self._build(seed, self.weights)

    def _fresh(self, seed: int) -> nn.Module:
        """Other first weights than `_initial`'s, for the random control."""
        return self._build(seed + 500_000_009, None)

    def _build(self, seed: int, weights: str | Path | None) -> nn.Module:
        torch.manual_seed(seed)
        return build_model(self.name, **self.arguments, weights=weights)

    # The whole search

    def run(self, path: Path, resume: bool) -> Found:
        with locked(path):
            return self._run(path, resume)

    def _run(self, path: Path, resume: bool) -> Found:
        began = time.perf_counter()
        self.folder = RunFolder(path, self._asked(), resume)
        rows: list[Trained] = []
        for seed in self.config.all_seeds:
            rows += self._descend(seed)
        won, differences = choose_level(rows, self.config.margin_points, self.config.confidence)
        level = won if won is not None else closest_level(differences)
        if self.config.controls:
            for seed in self.config.all_seeds:
                rows += self._controls(seed, level, rows)
        verdict = judge(rows, self.config.margin_points, self.config.confidence, self.config.rewind)
        rows = [self._tested(row) if row.level == level or row.arm == "dense" else row for row in rows]
        ticket = self._ticket(rows, verdict, level)
        ticket.save(path / "ticket.pt")
        self._write(path, ticket, time.perf_counter() - began)
        return Found(ticket, tuple(rows), verdict, path)

    def _asked(self) -> dict[str, Any]:
        return {
            "model": self.name,
            "arguments": self.arguments,
            "data": self.data.description.name,
            "config": self.config.to_json(),
            "recipe": self.recipe.to_json(),
            "weights": str(self.weights) if self.weights else None,
        }

    # One seed

    def _descend(self, seed: int) -> list[Trained]:
        """The dense network and the ticket of every level."""
        plan = PruningPlan(self.groups)
        model, row = self._unit(seed, "dense", 0, lambda: self._initial(seed), plan, self.recipe)
        rows = [row]
        for level, share in enumerate(self.config.shares, start=1):
            inner, plan = self._prune(seed, level, model, plan, share)
            model, row = self._level(seed, level, model, plan, inner)
            rows.append(row)
        return rows

    def _prune(self, seed: int, level: int, model: nn.Module, plan: PruningPlan, share: float) -> tuple[PruningPlan, PruningPlan]:
        """The cut on the network as it stands (in its own coordinates), and the plan on the original that it leads to."""
        remaining = plan.remaining()
        whole = self.folder.plan(seed, level)
        if whole is not None:
            inner = {name: tuple(plan.kept[name].index(c) for c in kept) for name, kept in whole.kept.items()}
            return PruningPlan(remaining, inner), whole
        dice = torch.Generator().manual_seed(seed * 1009 + level)
        small = cut(model, plan) if self.config.masked else model
        evidence = gather(self.config.criterion, small, self.data.train, self.recipe, seed, self.device, dice)
        scores = criteria.score(self.config.criterion, remaining, small, evidence, self.config.group_reduction)
        cut_now = self._choose(self._ranking(remaining, scores, level), small, share)
        whole = plan.then(cut_now)
        self.folder.save_plan(seed, level, whole)
        return cut_now, whole

    def _ranking(self, groups: tuple[Group, ...], scores: Mapping[str, Tensor], level: int) -> Ranking:
        """What may go of `groups`, the original network's or what an earlier level left of them, at `level`."""
        floors, kept = self.config.floors(self.groups), self.config.kept(self.groups, level / self.config.levels)
        return Ranking(groups, scores, self.config.scope, floors=floors, kept=kept, align=self.config.align)

    def _choose(self, ranking: Ranking, small: nn.Module, share: float) -> PruningPlan:
        """The cut of `small` by an entry of the config's shares. On the way to a target, a level goes as far as it can."""
        target = self.config.target
        if target is None:
            return ranking.plan(ranking.steps(share))
        meter = Meter(small, self.example)
        return meet(ranking, lambda found: target.of(meter.left(found)), share * target.of(self.dense_size))

    def _level(self, seed: int, level: int, trained: nn.Module, plan: PruningPlan, inner: PruningPlan) -> tuple[nn.Module, Trained]:
        recipe, first = self.rewinding.recipe(self.recipe), self.rewinding.first_epoch(self.config.rewind_epoch)
        sources = rewind.Sources(trained, lambda: self._early(seed), lambda: self._fresh(seed + level))
        if not self.config.masked:
            return self._unit(seed, "ticket", level, lambda: self.rewinding.restart(sources, plan, inner), plan, recipe, first)
        # The classical search: the same restart of the whole network, with zeros where the fast path cuts.
        whole = PruningPlan(self.groups)
        return self._unit(seed, "ticket", level, lambda: mask(self.rewinding.restart(sources, whole, whole), plan), plan, recipe, first)

    def _early(self, seed: int) -> nn.Module:
        """The dense network at the rewind epoch."""
        model = self._initial(seed)
        if self.config.rewind_epoch:
            saved = self.folder.load(self.folder.unit(seed, "early"))
            assert saved is not None, "the dense training saves it"
            model.load_state_dict(saved["weights"])
        return model

    def _controls(self, seed: int, level: int, rows: list[Trained]) -> list[Trained]:
        """Both controls have the ticket's whole training budget in one schedule: the random one its epochs, the dense one its arithmetic."""
        lineage = [r for r in rows if r.seed == seed and r.arm in ("dense", "ticket") and r.level <= level]
        plan = self.folder.plan(seed, level)
        assert plan is not None, "every level has written its plan"
        long = _stretched(self.recipe, sum(r.epochs for r in lineage))
        _, random = self._unit(seed, "random", level, lambda: cut(self._fresh(seed), plan), plan, long)
        dense_macs = lineage[0].macs
        longer = _stretched(self.recipe, math.ceil(sum(r.epochs * r.macs for r in lineage) / dense_macs))
        _, budget = self._unit(seed, "dense_budget", level, lambda: self._initial(seed), PruningPlan(self.groups), longer)
        return [random, budget]

    def _trained(self, seed: int, unit: str, plan: PruningPlan) -> nn.Module:
        """The network of a finished unit."""
        model = self._initial(seed)
        if not (self.config.masked and unit.startswith("ticket")):
            model = cut(model, plan)
        saved = self.folder.load(self.folder.unit(seed, unit))
        assert saved is not None, "the unit has finished"
        model.load_state_dict(saved["weights"])
        return model

    def _teacher(self, seed: int, arm: Arm, recipe: Recipe) -> nn.Module | None:
        """The seed's dense network, for tickets and, in fairness, the random control; None where nothing is distilled."""
        taught = recipe.distill > 0 and arm in ("ticket", "random")
        return self._trained(seed, "dense-0", PruningPlan(self.groups)) if taught else None

    # One training

    def _unit(
        self, seed: int, arm: Arm, level: int, start: Callable[[], nn.Module], plan: PruningPlan, recipe: Recipe, first_epoch: int = 0
    ) -> tuple[nn.Module, Trained]:
        """Train what `start` gives, or take it from its file if that was done before."""
        unit = f"{arm}-{level}"
        model, file, partial = start(), self.folder.unit(seed, unit), self.folder.partial(seed, unit)
        saved = self.folder.load(file)
        if saved is not None:
            model.load_state_dict(saved["weights"])
            row = Trained.from_json(saved["row"])
            self.listener.finished(row, True)
            return model.to(self.device), row
        state = self.folder.load(partial)
        self.listener.started(seed, arm, level, recipe.epochs - first_epoch, len(state["epochs"]) if state else 0)

        def progress(epoch: Epoch, reached: dict[str, Any]) -> None:
            if arm == "dense" and epoch.epoch + 1 == self.config.rewind_epoch:
                self.folder.save(self.folder.unit(seed, "early"), {"weights": reached["model"]})
            if epoch.epoch + 1 < recipe.epochs:
                self.folder.save(partial, reached)
            self.folder.log({"seed": seed, "unit": unit, **epoch.to_json()})
            self.listener.epoch(seed, arm, level, epoch)

        masked = self.config.masked and arm == "ticket"
        dropped = zeros(model.to(self.device), plan) if masked else {}
        after_step = (lambda network: zero_(network, dropped)) if masked else None
        stream = seed * 7919 + level * 31 + len(arm)
        done = train(
            model,
            self.data,
            recipe,
            stream,
            self.device,
            first_epoch=first_epoch,
            after_step=after_step,
            progress=progress,
            state=state,
            teacher=self._teacher(seed, arm, recipe),
        )
        row = self._row(seed, arm, level, cut(model, plan) if masked else model, done)
        self.folder.save(file, {"weights": model.state_dict(), "row": row.to_json(), "epochs": [e.to_json() for e in done.epochs]})
        partial.unlink(missing_ok=True)
        self.listener.finished(row, False)
        return model, row

    def _row(self, seed: int, arm: Arm, level: int, model: nn.Module, done: Training) -> Trained:
        counted = size(model, self.example.to(self.device))
        last, stop = done.epochs[-1], min(done.epochs, key=lambda e: e.val_loss)
        return Trained(
            seed=seed,
            arm=arm,
            level=level,
            filters=_filters(model, self.groups),
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

    # The end

    def _tested(self, row: Trained) -> Trained:
        """`row` with its accuracy on the test set, which nothing has looked at before."""
        plan = self.folder.plan(row.seed, row.level) if row.arm in ("ticket", "random") else PruningPlan(self.groups)
        assert plan is not None
        model = self._trained(row.seed, f"{row.arm}-{row.level}", plan).to(self.device)
        return replace(row, test_accuracy=evaluate(model, self.data.test, self.recipe, self.device).accuracy)

    def _ticket(self, rows: list[Trained], verdict: Verdict, level: int) -> Ticket:
        """The chosen level's ticket of the seed with the best validation accuracy."""
        best = max((r for r in rows if r.arm == "ticket" and r.level == level), key=lambda r: (r.val_accuracy, -r.seed))
        plan = self.folder.plan(best.seed, level)
        assert plan is not None
        model = self._trained(best.seed, f"ticket-{level}", plan)
        small = cut(model, plan) if self.config.masked else model
        return Ticket(
            model={"name": self.name, "arguments": self.arguments},
            plan=plan,
            weights=small.state_dict(),
            initial_seed=best.seed,
            recipe=self.recipe,
            data=self.data.description.to_json(),
            config=self.config.to_json(),
            history=tuple(rows),
            verdict=verdict,
            level=level,
            seed=best.seed,
            provenance=provenance(),
        )

    def _write(self, path: Path, ticket: Ticket, seconds: float) -> None:
        widths = [
            {"layer": name, "before": before, "after": after, "frozen": ticket.plan.frozen.get(name, "")}
            for name, (before, after) in ticket.plan.widths.items()
        ]
        sizes = {"train": len(self.data.train), "val": len(self.data.val), "test": len(self.data.test)}
        write_json(
            path / "search.json",
            {
                "kind": "search",
                "format": 1,
                "name": path.name,
                "model": dict(ticket.model),
                "data": {**ticket.data, "sizes": sizes},
                "config": self.config.to_json(),
                "recipe": self.recipe.to_json(),
                "seeds": list(self.config.all_seeds),
                "rows": [r.to_json() for r in ticket.history],
                "widths": widths,
                "verdict": ticket.verdict.to_json(),
                "ticket": {
                    "seed": ticket.seed,
                    "level": ticket.level,
                    "won": ticket.verdict.level is not None,
                    "checksum": ticket.checksum,
                },
                "seconds": seconds,
                "provenance": dict(ticket.provenance),
            },
        )


def _stretched(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule over another number of epochs, at least one."""
    epochs = max(1, epochs)
    return replace(recipe, epochs=epochs, warmup_epochs=min(recipe.warmup_epochs, epochs - 1))


def _filters(model: nn.Module, groups: tuple[Group, ...]) -> int:
    """The filters of all groups in the network as it is: output channels of their producing layers."""
    layers = {m.layer for g in groups for m in g.producers}
    return sum(_width(model.get_submodule(name)) for name in layers)


def _width(layer: nn.Module) -> int:
    return int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))
