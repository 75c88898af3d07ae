"""The cutting search against the classical masked one: same seeds, same schedule, VGG-16 on the embedded digits.

    python bench/masked.py [--epochs 1]        writes bench/results/masked.json

Prints seconds per round of both, validation accuracy, and whether the plans are the same. Wall time includes scoring, cutting,
validation and saving; the dense training, which both share, is left out. Of the cutting search it is also given as a multiple of that training,
for the claim that eight rounds at 20 % take at most twice as long as one.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from _common import ROOT, finish

import ltcompile as lt
from ltcompile.core.run_folder import RunFolder
from ltcompile.search import recipe_for
from ltcompile.search.listener import NullListener
from ltcompile.search.settings import SearchSettings


class Clock(NullListener):
    """When each training ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def finished(self, row: object, from_file: bool) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, help="epochs of each round, if not the recipe's")
    options = arguments.parse_args()
    data, settings = lt.load_data("digits"), SearchSettings.load(ROOT / "recipes" / "masked.toml")
    recipe = settings.recipe(recipe_for("vgg16", data))
    recipe = dataclasses.replace(recipe, epochs=options.epochs or recipe.epochs)
    rounds = settings.config().rounds
    found, ends, plans = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for masked in (False, True):
            clock, name = Clock(), "masked" if masked else "cut"
            config = settings.config(masked=masked)
            folder = Path(scratch) / name
            found[name] = lt.find("vgg16", data, config, recipe=recipe, folder=folder, listener=clock)
            ends[name] = clock.ends
            plans[name] = [lt.PruningPlan.load(RunFolder(folder).plan(0, level)) for level in range(1, rounds + 1)]
    print(f"{'level':>5} {'MACs':>12} {'cut s':>8} {'masked s':>9} {'cut val':>8} {'masked val':>10} {'same filters':>12}")
    for level in range(1, rounds + 1):
        cut, masked = found["cut"].rows[level], found["masked"].rows[level]
        same = _shared(plans["cut"][level - 1], plans["masked"][level - 1])
        print(
            f"{level:>5} {cut.macs:>12,} {cut.seconds:>8.2f} {masked.seconds:>9.2f} {cut.val_score:>8.2%} {masked.val_score:>10.2%} {same:>12.1%}"
        )
    wall = {name: e[-1] - e[0] for name, e in ends.items()}
    finish(
        "masked",
        {
            "bench": "masked",
            "rounds": rounds,
            "rate": 0.2,
            "epochs": recipe.epochs,
            "model": "vgg16",
            "data": "digits",
            "cut_wall_s": wall["cut"],
            "masked_wall_s": wall["masked"],
            "dense_s": (dense_s := found["cut"].rows[0].seconds),
            "cut_over_dense": wall["cut"] / dense_s,
            "times_faster": wall["masked"] / wall["cut"],
            "first_plan_same": plans["cut"][0] == plans["masked"][0],
            "cut_val_score": [r.val_score for r in found["cut"].rows],
            "masked_val_score": [r.val_score for r in found["masked"].rows],
        },
    )


def _shared(a: lt.PruningPlan, b: lt.PruningPlan) -> float:
    """The share of kept filters that both plans keep."""
    both = sum(len(set(kept) & set(b.kept[g.name])) for g, kept in a)
    return both / sum(max(len(kept), len(b.kept[g.name])) for g, kept in a)


if __name__ == "__main__":
    main()
