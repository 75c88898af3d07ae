"""Does a mask know more than its own task? Tickets of several tasks, what their masks have in common, and that mask on another task.

The classes of a data set are dealt out to four tasks: three give masks, the fourth is trained with one of them, with the weights that most
of them keep, and with those that all keep; from its own first weights, which are those of the other tasks as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from ltcompile.benchmark.similarity import intersection, majority
from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Trained
from ltcompile.core.study import Claim, Figure, Look, Series, Table
from ltcompile.data import Dataset, Split, TensorSplit
from ltcompile.errors import InvalidData
from ltcompile.study._curves import accuracy, band, curve, levels, mean, percent, series, spread
from ltcompile.study._networks import mask
from ltcompile.study._nouns import Done, Findings, Paper, PruningScale, StudyArm, scales
from ltcompile.study._statistics import BySeed, difference, estimate, paired

TITLE = "Transfer: masks that several tasks have in common, on a task that they have not seen"
SOURCE = "Morcos et al. 2019, arXiv:1906.02773, of tickets between data sets; masks in common are a question of this study"
TASKS = 4
SOURCES, TARGET = [f"task-{number}" for number in range(1, TASKS)], f"task-{TASKS}"
WAYS: dict[str, tuple[str, Callable[[Sequence[WeightMask]], WeightMask]]] = {  # name -> what the page calls it, and how it is made
    "one": ("the mask of one other task", lambda masks: masks[0]),
    "majority": ("what most of three other tasks keep", majority),
    "intersection": ("what all of three other tasks keep", intersection),
}


@dataclass(frozen=True, kw_only=True)
class Rounds(PruningScale):
    """Every task is pruned in rounds of every layer's weights; the last masks are handed on.

    The last task's own search goes `own_rounds`, to tickets as small as what masks have in common.
    """

    own_rounds: int


SCALES = scales(__name__, Rounds)
PAPER = Paper(__name__, SOURCE)


def arms(scale: Rounds) -> list[StudyArm]:
    """A search on each task, and trainings of the last task with masks of the others: one for each seed, as every seed has masks of its own."""
    config = scale.config(prune="weights", scope="local", rewind="weight", controls=False)
    found = [replace(StudyArm.of(scale, name, config), change=partial(task, number=number)) for number, name in enumerate(SOURCES)]
    own = replace(
        StudyArm.of(scale, TARGET, replace(config, rounds=scale.own_rounds, full_curve=True)), change=partial(task, number=TASKS - 1)
    )
    given = [
        replace(
            own,
            name=_given(way, seed),
            config=replace(own.config, rounds=1, seed=seed, seeds=1),
            mask=partial(_in_common, way, seed),
            after=tuple(SOURCES),
        )
        for way in WAYS
        for seed in config.all_seeds
    ]
    return [*found, own, *given]


def _given(way: str, seed: int) -> str:
    return f"{way}-seed{seed}"


def _in_common(way: str, seed: int, done: Mapping[str, Done]) -> WeightMask:
    """The mask that a way makes of the last ones of the other tasks. Raises InvalidPlan where they have nothing in common."""
    return WAYS[way][1]([mask(done[name], seed, levels(done[name].rows)[-1]) for name in SOURCES])


# Tasks


def task(data: Dataset, number: int) -> Dataset:
    """The images of one of as many equal shares of the classes as there are tasks, with labels from 0 on.

    Images keep the normalisation of the whole. Raises InvalidData where there are fewer than two classes for each, or images are streamed.
    """
    names = data.description.class_names
    if (each := len(names) // TASKS) < 2:
        raise InvalidData(
            f"{TASKS} tasks need at least two classes each, and {data.description.name} has {len(names)}; choose data with more"
        )
    classes = range(number * each, (number + 1) * each)
    description = replace(
        data.description,
        name=f"{data.description.name}, classes {classes.start} to {classes.stop - 1}",
        class_names=tuple(names[c] for c in classes),
    )
    train, val, test = (_only(split, classes, data.description.name) for split in (data.train, data.val, data.test))
    return replace(data, description=description, train=train, val=val, test=test)


def _only(split: Split, classes: range, name: str) -> TensorSplit:
    """The images of `classes`, which are counted from 0 on."""
    if not isinstance(split, TensorSplit):
        raise InvalidData(f"{name} does not fit in memory: its classes are not dealt out to tasks; choose other data")
    labels = split.labels
    rows = ((labels >= classes.start) & (labels < classes.stop)).nonzero().flatten()
    return split.part(rows).relabelled(labels[rows] - classes.start)


# What is reported


def analyse(scale: Rounds, done: Mapping[str, Done], device: torch.device) -> Findings:
    """What rows say; the weights that masks leave are in them."""
    return compare(done, scale.margin)


def compare(done: Mapping[str, Done], margin: float) -> Findings:
    """Claims, a table and a figure; "about as good" is at most `margin` points worse."""
    handed = {way: _merged(done, way) for way in WAYS}
    remarks = PAPER.remarks(margin=f"{margin:g}")
    return Findings(
        _claims(done[TARGET].rows, handed, margin), [_table(done[TARGET].rows, handed)], [_figure(done[TARGET].rows, handed)], remarks
    )


def _merged(done: Mapping[str, Done], way: str) -> list[Trained]:
    """The rows of one way's trainings, over all seeds."""
    return [row for name, each in done.items() if name.rpartition("-seed")[0] == way for row in each.rows]


def _left(rows: Sequence[Trained], level: int) -> float:
    """The share of the maskable weights that a level's tickets keep, in percent; mean over seeds."""
    dense = next(row.weights for row in rows if row.arm == "dense")
    kept = [row.weights for row in rows if (row.arm, row.level) == ("ticket", level)]
    return 100 * fmean((weights or 0) / (dense or 1) for weights in kept)


def _nearest(own: Sequence[Trained], share: float) -> int:
    """The level of the own search that keeps about as many weights."""
    return min(levels(own), key=lambda level: abs(_left(own, level) - share))


def _gaps(own: Sequence[Trained], given: Sequence[Trained]) -> dict[str, BySeed]:
    """By how many points of test accuracy the handed-on masks are ahead, seed by seed."""
    ticket, level = accuracy(given, "ticket", 1), _nearest(own, _left(given, 1))
    return {
        "shuffled": difference(ticket, accuracy(given, "shuffled", 1)),
        "own": difference(ticket, accuracy(own, "ticket", level)),
        "dense": difference(ticket, accuracy(own, "dense", 0)),
    }


def _claims(own: Sequence[Trained], handed: Mapping[str, Sequence[Trained]], margin: float) -> list[Claim]:
    judged, found = PAPER.claim, []
    for way, (title, _) in WAYS.items():
        gaps, left = _gaps(own, handed[way]), _left(handed[way], 1)
        words = {"mask": f"{title[0].upper()}{title[1:]}", "left": percent(left), "own": percent(_left(own, _nearest(own, left)))}
        bounds = {"shuffled": 0.0, "own": -margin, "dense": -margin}
        found += [judged(key, estimate(gaps[key]), bound, **words) for key, bound in bounds.items()]
    tickets = {way: accuracy(handed[way], "ticket", 1) for way in WAYS}
    others = {"most over one": "one", "most over all": "intersection"}
    return found + [judged(key, paired(tickets["majority"], tickets[other])) for key, other in others.items()]


def _table(own: Sequence[Trained], handed: Mapping[str, Sequence[Trained]]) -> Table:
    rows = [["dense", "100.0", *_cells(own, 0, "dense")]]
    rows += [[f"own ticket, level {level}", percent(_left(own, level)), *_cells(own, level)] for level in levels(own)]
    rows += [[WAYS[way][0], percent(_left(given, 1)), *_cells(given, 1)] for way, given in handed.items()]
    return PAPER.table("last task", rows)


def _cells(rows: Sequence[Trained], level: int, *only: str) -> list[str]:
    """Test accuracies of a level's arms; empty where there are none."""
    found = [accuracy(rows, arm, level) for arm in only or ("ticket", "shuffled", "reinit")]
    return [*(spread(estimate(each)) for each in found), *[""] * (3 - len(found))]


def _figure(own: Sequence[Trained], handed: Mapping[str, Sequence[Trained]]) -> Figure:
    x = partial(_left, own)
    lines = [
        band("dense", 4, mean(own, "dense", 0)),
        curve("own ticket", "line", 0, own, "ticket", x),
        curve("its mask, shuffled", "control", 0, own, "shuffled", x),
    ]
    for colour, (way, rows) in enumerate(handed.items(), start=1):
        lines += [
            _point(WAYS[way][0], "line", colour, rows, "ticket"),
            _point(f"{WAYS[way][0]}, shuffled", "control", colour, rows, "shuffled"),
        ]
    return PAPER.figure("handed-on", lines)


def _point(name: str, look: Look, colour: int, rows: Sequence[Trained], arm: str) -> Series:
    return series(name, look, colour, [_left(rows, 1)], [mean(rows, arm, 1)])
