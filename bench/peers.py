"""Accuracy at equal work and at equal measured time, next to Torch-Pruning, on one budget.

    python bench/peers.py --data-root DIR --folder RUN      adds rows to bench/results/peers.jsonl, and writes peers.md

Dense networks for CIFAR-10 are those of bench/repair.py (kept in RUN). Each method cuts the same network, by the same training images, to the
same share of its MACs, and every result is trained by the same recipe, epochs and seed. Sparse learning, ours and theirs, spends half of
these epochs on the dense network before the cut. Settings that were fixed before the first run:

- fine-tuning: SGD 0.02, momentum 0.9, cosine, batch 128; 2 epochs (1 + 1 with sparse learning);
- strengths of sparse learning: what a training of one epoch at this rate needs to bring weights of the usual size to zero for ours; for
  Torch-Pruning those of its own example (5e-4, growing by 1e-4 an epoch for a hundred epochs), times a hundred for one epoch;
- controls: random channels, and the architecture of `l1` from random weights for the epochs of the dense training and of fine-tuning;
- time, with --on: in turns with the dense network; `latency` plans for the time of Torch-Pruning's `l2`;
- the best method of each side is chosen on validation images, and compared on test images.

Rows come in the order of their use: a quarter of the MACs first, both sides in turns, seed by seed. A stopped command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import criteria
import repair
import torch
from _common import RESULTS, finish
from torch import nn

import ltcompile as lt
from ltcompile.benchmark.profiling import stopwatch
from ltcompile.core.plan import PruningPlan
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded, stream
from ltcompile.core.task import Shard
from ltcompile.data import Dataset
from ltcompile.graph.running_statistics import take_statistics
from ltcompile.models import default_recipe
from ltcompile.models.airbench import MultiCrop
from ltcompile.paths import write_text
from ltcompile.search.evidence import gather
from ltcompile.study._statistics import difference, estimate
from ltcompile.tasks import Classification
from ltcompile.training import settled
from ltcompile.training.step import Stepper

CPU = torch.device("cpu")
FILE = RESULTS / "peers.jsonl"
LEVELS = (0.25, 0.5, 0.125)
TUNE_LR = 0.02
STRENGTHS = {"growing": 6.0, "group_lasso": 0.05, "slimming": 0.4}
THEIR_REG, THEIR_GROWTH, THEIR_EPOCHS = 5e-4, 1e-4, 100
OURS: dict[str, dict[str, Any]] = {
    "l1": {},
    "taylor": {"criterion": "taylor"},
    "isomorphic": {"criterion": "taylor", "scope": "isomorphic"},
    "reconstruction, repaired": {"criterion": "reconstruction"},
    "l1 isomorphic, repaired": {"scope": "isomorphic"},
    **{name: {"regulariser": name} for name in STRENGTHS},
    "latency": {"criterion": "taylor"},
    "random": {"criterion": "random"},
    "scratch": {},
}
THEIRS: dict[str, dict[str, Any]] = {
    "l2": {"name": "l2"},
    "bn": {"name": "bn"},
    "taylor": {"name": "taylor"},
    "hessian": {"name": "hessian"},
    "isomorphic": {"name": "l2", "isomorphic": True},
    "group norm": {"name": "l2", "sparse": "GroupNormPruner"},
    "growing": {"name": "l2", "sparse": "GrowingRegPruner"},
}
REPAIRED = ("l1", "isomorphic", "reconstruction, repaired", "l1 isomorphic, repaired", "random")
CONTROLS = ("random", "scratch")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data-root", required=True, help="folder with CIFAR-10 in torchvision's layout")
    arguments.add_argument("--folder", type=Path, required=True, help="where the dense networks are, or will be")
    arguments.add_argument("--model", default="resnet20")
    arguments.add_argument("--epochs", type=int, default=8, help="of the dense training")
    arguments.add_argument("--tune-epochs", type=int, default=2)
    arguments.add_argument("--image-size", type=int, default=32)
    arguments.add_argument("--networks", type=int, default=3, help="trainings, of different seeds")
    arguments.add_argument("--train-images", type=int, default=50_000, help="as many of them, for fine-tuning")
    arguments.add_argument("--inputs", type=int, default=2048, help="calibration images")
    arguments.add_argument("--on", default="", help="also measure times there, such as cpu:onnxruntime:b8:fp32; nothing else may run then")
    arguments.add_argument("--levels", type=float, nargs="*", default=LEVELS, help="shares of the MACs that are left")
    arguments.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")
    arguments.add_argument("--dense-only", action="store_true", help="train the dense networks, print their accuracy, and end")
    options = arguments.parse_args()
    began = time.perf_counter()
    data = lt.load_data("cifar10", options.data_root, options.image_size).with_train_images(options.train_images)
    if options.dense_only:
        for seed in range(options.networks):
            dense = dense_network(options, data, seed)
            alone, over_crops = repair.accuracies(dense, data), repair.accuracies(MultiCrop(dense).eval(), data)
            print(options.model, seed, alone, "over crops", over_crops, flush=True)
        return
    for seed, macs, side, method in schedule(options):
        key = settings(options) | {"seed": seed, "macs": macs, "side": side, "method": method}
        if time.perf_counter() - began > 60 * options.minutes:
            break
        if not any(key.items() <= row.items() for row in rows()):
            bench = Bench(options, data, seed, macs)
            row = key | bench.row(side, method)
            write_text(FILE, (FILE.read_text() if FILE.exists() else "") + json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    found = [row for row in rows() if settings(options).items() <= row.items()]
    write_text(RESULTS / "peers.md", table(options, found))
    print(table(options, found))
    finish("peers", {**settings(options), "rows": len(found), "comparison": comparison(found)})


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("model", "epochs", "tune_epochs", "image_size", "train_images", "inputs", "on")}


def schedule(options: argparse.Namespace) -> Iterator[tuple[int, float, str, str]]:
    """(seed, MACs, side, method), the sides in turns, the most useful first; training from scratch takes longest and comes last."""
    ours = [method for method in OURS if method != "scratch" and (options.on or method != "latency")]
    turns = zip_longest(product(["torch-pruning"], THEIRS), product(["ltcompile"], ours))
    methods = [one for turn in turns for one in turn if one is not None]
    for macs in options.levels:
        for seed in range(options.networks):
            yield from ((seed, macs, *one) for one in methods)
        yield from ((seed, macs, "ltcompile", "scratch") for seed in range(options.networks))


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def dense_network(options: argparse.Namespace, data: Dataset, seed: int) -> nn.Module:
    own = default_recipe(options.model) if options.model == "airbench" else None
    recipe = own and replace(own, epochs=options.epochs, flip=data.flip, precision="bf16", compile="never")
    return repair.dense_network(options, data, seed, recipe)


class Bench:
    """One dense network that is cut to one size."""

    def __init__(self, options: argparse.Namespace, data: Dataset, seed: int, macs: float) -> None:
        self.options, self.data, self.seed, self.macs = options, data, seed, macs
        self.task, self.dense = Classification(data), dense_network(options, data, seed)
        self.images = next(iter(data.train.batches(options.inputs, CPU, None, 0)))[0].split(128)
        computed: dict[str, Any] = {"crop_pixels": options.image_size // 8, "precision": "bf16", "compile": "never"}
        self.recipe = Recipe(options.tune_epochs, 128, TUNE_LR, schedule="cosine", **computed)

    def row(self, side: str, method: str) -> dict[str, Any]:
        """Accuracies [validation, test] of the network: dense, as cut, recalibrated, repaired where that can be, and fine-tuned; sizes; time."""
        began = time.perf_counter()
        try:
            small, recipe, repaired = (self.theirs if side == "torch-pruning" else self.ours)(method)
        except Exception as error:  # a method that cannot cut this network is a result too
            return {"error": f"{type(error).__name__}: {error}"[:300]}
        found: dict[str, Any] = {"dense": self.dense_accuracy(), "cut": self.accuracy(small)}
        planned = time.perf_counter() - began
        if method == "scratch":
            found.pop("cut")
        else:
            take_statistics(small, self.images)
            found["recalibrated"] = self.accuracy(small)
        if repaired is not None:
            found["repaired"] = self.accuracy(repaired)
            small = repaired if method.endswith("repaired") else small
        self.train(small, recipe)
        found["tuned"] = self.accuracy(small)
        dense_size, size = (lt.size(model, self.data.example) for model in (self.dense, small))
        found |= {"macs_left": size.macs / dense_size.macs, "params_left": size.params / dense_size.params}
        if self.options.on:
            found["time_left"] = [stopwatch(self.dense, self.options.on, self.data.example, seconds=2.0)(small) for _ in range(3)]
        return found | {"plan_seconds": planned, "seconds": time.perf_counter() - began}

    def ours(self, method: str) -> tuple[nn.Module, Recipe, nn.Module | None]:
        """What a method leaves, how it is trained, and what repair makes of it."""
        choice, dense, recipe = dict(OURS[method]), self.dense, self.recipe
        if name := choice.pop("regulariser", None):
            choice = {"criterion": "bn"} if name == "slimming" else {"criterion": "l2", "group_reduction": "all"}
            aim = self.plan(dense, method, dict(choice)) if name == "growing" else None  # it takes the channels that are to go
            strength = STRENGTHS[name] / max(self.options.tune_epochs // 2, 1)
            penalty = partial(lt.Regulariser, name, example=self.data.example, plan=aim, strength=strength, ratio=0.0)
            dense, recipe = self.sparse(lambda model: penalty(model).step)
        plan = self.plan(dense, method, choice)
        small = lt.cut(dense, plan).eval()
        if method == "scratch":
            with seeded(stream("fresh weights", self.seed)):
                fresh = lt.build_model(self.options.model, len(self.data.description.class_names), *self.data.description.shape[:2])
            longest = self.options.epochs + self.options.tune_epochs
            return lt.cut(fresh, plan), replace(self.recipe, epochs=longest, lr=0.1, warmup_epochs=1), None
        return small, recipe, lt.repair(small, plan, dense, self.images) if method in REPAIRED else None

    def plan(self, dense: nn.Module, method: str, choice: dict[str, Any]) -> PruningPlan:
        name = choice.get("criterion", "l1")
        if name == "reconstruction":
            choice["inputs"] = self.images
        else:
            choice["evidence"] = gather(name, dense, self.task, self.recipe, self.seed, CPU)
        if method != "latency":
            return lt.plan(dense, self.data.example, target_macs=self.macs, **choice)
        key = settings(self.options) | {"seed": self.seed, "macs": self.macs, "side": "torch-pruning", "method": "l2"}
        share = next(fmean(row["time_left"]) for row in rows() if key.items() <= row.items())
        return lt.plan(dense, self.data.example, target_speedup=1 / share, on=self.options.on, **choice)

    def theirs(self, method: str) -> tuple[nn.Module, Recipe, None]:
        choice, dense, recipe = dict(THEIRS[method]), self.dense, self.recipe
        if kind := choice.pop("sparse", None):
            dense, recipe = self.sparse(partial(self.their_penalty, kind), gradients=True)
        return criteria.theirs(dense, self.data, self.recipe, choice.pop("name"), self.seed, self.macs, **choice), recipe, None

    def their_penalty(self, kind: str, model: nn.Module) -> Callable[[float, float], None]:
        """Its regularising pruner, stronger by as much as there are fewer epochs than in its example."""
        import torch_pruning

        epochs = max(self.options.tune_epochs // 2, 1)
        more = THEIR_EPOCHS / epochs
        growth = {"delta_reg": THEIR_GROWTH * more} if kind == "GrowingRegPruner" else {}
        importance, heads = torch_pruning.importance.GroupMagnitudeImportance(p=2), [m for m in model.modules() if isinstance(m, nn.Linear)]
        usual = {"reg": THEIR_REG * more, "global_pruning": True, "ignored_layers": heads}
        pruner = getattr(torch_pruning.pruner, kind)(model, self.data.example, importance, **usual, **growth)
        grown = 0

        def penalise(rate: float, progress: float) -> None:
            nonlocal grown
            while growth and progress * THEIR_EPOCHS > grown:  # as often as in its example
                pruner.update_reg()
                grown += 1
            pruner.regularize(model)

        return penalise

    def sparse(self, penalty: Callable[[nn.Module], Callable[[float, float], None]], gradients: bool = False) -> tuple[nn.Module, Recipe]:
        """The dense network after half of the epochs with a penalty, and the recipe of the other half."""
        with_it = max(self.options.tune_epochs // 2, 1)
        with seeded(0):
            model = lt.build_model(self.options.model, len(self.data.description.class_names), *self.data.description.shape[:2])
        model.load_state_dict(self.dense.state_dict())
        self.train(model, replace(self.recipe, epochs=with_it), penalty(model), gradients)
        return model.eval(), replace(self.recipe, epochs=max(self.options.tune_epochs - with_it, 1))

    def train(
        self, model: nn.Module, recipe: Recipe, penalty: Callable[[float, float], None] | None = None, gradients: bool = False
    ) -> None:
        """The one training of all methods. A penalty acts on gradients before each step, or on the weights after it."""
        recipe = replace(recipe, flip=self.data.flip)
        stepper = Stepper(model, self.task, recipe, CPU, settled(recipe).dtype, "")
        rate, progress = 0.0, 0.0
        if penalty is not None and gradients:
            stepper.optimiser.register_step_pre_hook(lambda *_: penalty(rate, progress))
        steps = self.task.sizes["train"] // recipe.batch
        for epoch in range(recipe.epochs):
            stepper.train_mode(epoch)
            shard, seed = Shard(epoch=epoch if recipe.alternate_flip else None), stream("batches", self.seed, epoch=epoch)
            for step, batch in enumerate(self.task.batches("train", recipe.batch, CPU, recipe, seed, shard)):
                progress = (epoch + step / steps) / recipe.epochs
                rate = recipe.rate_at(epoch + step / steps)
                stepper([batch], rate, progress)
                if penalty is not None and not gradients:
                    penalty(rate, progress)
        model.eval()

    def dense_accuracy(self) -> list[float]:
        """From another row, where there is one."""
        key = settings(self.options) | {"seed": self.seed}
        return next((row["dense"] for row in rows() if key.items() <= row.items() and "dense" in row), None) or self.accuracy(self.dense)

    def accuracy(self, model: nn.Module) -> list[float]:
        return repair.accuracies(model, self.data)


# What is said of the rows


def values(found: list[dict[str, Any]], macs: float, side: str, method: str, column: str = "tuned", split: int = 1) -> dict[int, float]:
    """Seed -> accuracy."""
    chosen = [row for row in found if (row["macs"], row["side"], row["method"]) == (macs, side, method) and column in row]
    return {row["seed"]: row[column][split] for row in chosen}


def comparison(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size: the best method of each side by validation images, the difference of their test accuracies seed by seed, and its 95 %
    interval (Student's t). "equal_time" is that of `latency` against Torch-Pruning's best method that is at least as fast."""
    result = []
    for macs in dict.fromkeys(row["macs"] for row in found):
        best = {side: _best(found, macs, side, names) for side, names in (("ltcompile", OURS), ("torch-pruning", THEIRS))}
        if all(best.values()):
            gains = difference(*(values(found, macs, side, str(name)) for side, name in best.items()))
            pairs = [round(100 * gain, 3) for gain in gains.values()]
            result.append({"macs": macs, **best, "points": pairs, "interval": interval(pairs)})
    return result


def _best(found: list[dict[str, Any]], macs: float, side: str, names: dict[str, Any]) -> str | None:
    means = {name: v for name in names if name not in CONTROLS and (v := values(found, macs, side, name, split=0))}
    most = max((len(v) for v in means.values()), default=0)
    return max((name for name, v in means.items() if len(v) == most), key=lambda name: fmean(means[name].values()), default=None)


def interval(points: list[float]) -> list[float] | None:
    found = estimate(points) if len(points) > 1 else None
    return [round(found.low or 0.0, 2), round(found.high or 0.0, 2)] if found else None


def table(options: argparse.Namespace, found: list[dict[str, Any]]) -> str:
    dense = sorted({row["seed"]: row["dense"][1] for row in found if "dense" in row}.items())
    lines = [
        "# Next to Torch-Pruning, on one budget",
        "",
        f"{options.model} on CIFAR-10 at {options.image_size} pixels, {options.epochs} epochs, {options.tune_epochs} of fine-tuning; dense: "
        f"{', '.join(f'{value:.2%}' for _, value in dense)}. Test accuracy: mean (lowest to highest) over networks. "
        f"{f'Speedup at {options.on}, in turns with the dense network. ' if options.on else ''}Settings: see `bench/peers.py`, which wrote this.",
        "",
        f"| MACs | side | method | networks | cut | recalibrated | repaired | fine-tuned |{' speedup |' if options.on else ''}",
        "| --- " * (9 if options.on else 8) + "|",
    ]
    for macs in dict.fromkeys(row["macs"] for row in found):
        for side, names in (("ltcompile", OURS), ("torch-pruning", THEIRS)):
            for method in names:
                mine = [row for row in found if (row["macs"], row["side"], row["method"]) == (macs, side, method)]
                if errors := [row["error"] for row in mine if "error" in row]:
                    lines.append(f"| {macs:.1%} | {side} | {method} | {len(mine)} | {errors[0]} | | | | |")
                elif mine:
                    cells = [_spread(values(found, macs, side, method, c)) for c in ("cut", "recalibrated", "repaired", "tuned")]
                    speedup = f" {fmean(1 / fmean(row['time_left']) for row in mine):.2f} |" if options.on else ""
                    lines.append(f"| {macs:.1%} | {side} | {method} | {len(mine)} | {' | '.join(cells)} |{speedup}")
    for one in comparison(found):
        lines.append(
            f"\nAt {one['macs']:.1%} of the MACs, `{one['ltcompile']}` against Torch-Pruning's `{one['torch-pruning']}` (each the best of its side on "
            f"validation images): {fmean(one['points']):+.2f} points, by network {one['points']}, 95 % interval: {one['interval'] or 'none'}."
        )
    return "\n".join(lines) + "\n"


def _spread(by_seed: dict[int, float]) -> str:
    found = [f"{value:.1%}" for value in (fmean(by_seed.values()), min(by_seed.values()), max(by_seed.values()))] if by_seed else [""]
    return f"{found[0]} ({found[1]} to {found[2]})" if len(by_seed) > 1 else found[0]


if __name__ == "__main__":
    main()
