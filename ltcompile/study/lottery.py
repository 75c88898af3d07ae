"""Do sparse networks train from their own first weights alone? (Frankle & Carbin, ICLR 2019, arXiv:1803.03635, v5)

Weights of lowest magnitude are dropped layer by layer (in the deep networks over all of them), and the others reset to what they were
before training, in rounds or at once; for every ticket also its mask on fresh weights, and a random mask with each layer's count on its
own. Findings over P_m, the share of the weights that is left: test accuracy, the epoch of minimum validation loss, at which early stopping
would stop, and the gap between training and test accuracy. What masks empty is counted as `shrink` removes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import torch

from ltcompile.core.study import Claim, Estimate, Figure, Series, Table
from ltcompile.search import SearchConfig, margins_of
from ltcompile.study import _lottery_claims as paper
from ltcompile.study._curves import Rows, accuracy, band, levels, percent, series, spread
from ltcompile.study._lottery_claims import NUMBERS, Curve, Measure, Said
from ltcompile.study._nouns import Done, Findings, Scale, StudyArm, scales
from ltcompile.study._statistics import estimate

TITLE = "The lottery ticket hypothesis: single weights, in rounds or at once, from their first values"
SOURCE = paper.SOURCE
NEAR = 1.5  # a level stands for a published share of weights that is at most so many times as large, or as small


# How it is done


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network, its images, its recipe, and how it is pruned; `claims` name what the paper says of it (`_lottery_claims.SAID`).

    Each of `rounds` drops `rate` of the surviving weights, of layers that match a pattern of `rates` that pattern's. `shots` drop at once
    what so many rounds do. `late` is an epoch whose weights a further search resets to. `plain` names the same network without dropout.
    """

    name: str
    model: str
    data: str
    rounds: int
    rate: float
    claims: tuple[str, ...] = ()
    image_size: int | None = None
    train_images: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    scope: Literal["local", "global"] = "local"
    shots: tuple[int, ...] = ()
    late: int | None = None
    plain: str | None = None

    @property
    def said(self) -> tuple[Said, ...]:
        return tuple(said for name in self.claims for said in paper.SAID[name])


@dataclass(frozen=True, kw_only=True)
class Subjects(Scale):
    """Several networks, each on images of its own; other `data` is for all of them."""

    subjects: tuple[Subject, ...]
    model: str = ""
    data: str = ""


SCALES = scales(__name__, Subjects)


def arms(scale: Subjects) -> list[StudyArm]:
    """For each subject its search in rounds, those at once, and the one from weights after an epoch."""
    return [arm for subject in scale.subjects for arm in _arms(scale, subject)]


def _arms(scale: Subjects, subject: Subject) -> list[StudyArm]:
    data = scale.data or subject.data

    def arm(name: str, rounds: int, **settings: Any) -> StudyArm:
        config = SearchConfig(
            prune="weights",
            scope=subject.scope,
            rewind="weight",
            rounds=rounds,
            rate=subject.rate,
            ratios={layers: 1 - (1 - rate) ** rounds for layers, rate in subject.rates.items()},
            max_layer_ratio=1.0,
            keep=subject.keep,
            seeds=scale.seeds,
            margin_points=margins_of(data).about,
            controls=False,
            full_curve=True,
            **settings,
        )
        return StudyArm(name, subject.model, data, subject.image_size, subject.train_images, config, subject.recipe)

    found = [arm(subject.name, subject.rounds)]
    found += [arm(_shot(subject, rounds), rounds, schedule="oneshot") for rounds in subject.shots]
    return found + ([arm(_late(subject), subject.rounds, rewind_epoch=subject.late)] if subject.late is not None else [])


def _shot(subject: Subject, rounds: int) -> str:
    return f"{subject.name}-oneshot-{rounds}"


def _late(subject: Subject) -> str:
    return f"{subject.name}-from-{subject.late}"


# What was found


@dataclass(frozen=True)
class Spot:
    """A level of a search, for all seeds."""

    rows: Rows
    level: int

    @property
    def left(self) -> float:
        """P_m in percent: how many of the dense network's weights are not masked."""
        return self._share("weights")

    def _share(self, size: str) -> float:
        """The ticket's size in percent of the dense network's; mean over seeds."""
        dense = next(row for row in self.rows if row.arm == "dense")
        mean = fmean(getattr(row, size) for row in self.rows if (row.arm, row.level) == ("ticket", self.level))
        return float(100 * mean / getattr(dense, size))

    def eliminated(self, size: str) -> float:
        """The percentage of the dense network's filters or MACs that the ticket's mask eliminates."""
        return 100 - self._share(size)

    def of(self, arm: str, measure: Measure) -> dict[int, float]:
        """Seed -> test accuracy or gap in points, or the epoch of minimum validation loss, counted from the schedule's begin."""
        level = 0 if arm == "dense" else self.level
        tested = accuracy(self.rows, arm, level)
        if measure == "accuracy":
            return tested
        rows = {row.seed: row for row in self.rows if (row.arm, row.level) == (arm, level)}
        if measure == "stop":
            return {seed: float(rows[seed].stop_epoch) for seed in sorted(rows)}
        return {seed: 100 * rows[seed].train_accuracy - tested[seed] for seed in sorted(tested)}

    def estimate(self, arm: str, measure: Measure) -> Estimate:
        return estimate(self.of(arm, measure))


Curves = Mapping[Curve, list[Spot]]


def curves_of(subject: Subject, done: Mapping[str, Done]) -> Curves:
    """The levels of a subject's searches, and of the one that it is compared with, by falling share of weights."""
    return {
        "iterative": _spots([subject.name], done),
        "oneshot": _spots([_shot(subject, rounds) for rounds in subject.shots], done),
        "late": _spots([_late(subject)] if subject.late is not None else [], done),
        "plain": _spots([subject.plain] if subject.plain else [], done),
    }


def _spots(names: list[str], done: Mapping[str, Done]) -> list[Spot]:
    spots = [Spot(done[name].rows, level) for name in names for level in levels(done[name].rows)]
    return sorted(spots, key=lambda spot: -spot.left)


def nearest(spots: list[Spot], left: float) -> Spot | None:
    """The level whose share of weights is nearest to `left` percent, by ratio; None where none is near."""
    found = min(spots, key=lambda spot: abs(math.log(spot.left / left)), default=None)
    return found if found is not None and abs(math.log(found.left / left)) <= math.log(NEAR) else None


def analyse(scale: Subjects, done: Mapping[str, Done], device: torch.device) -> Findings:
    """Claims where a level is near enough to the published share of weights; a table and three figures of each subject."""
    claims, tables, figures, undecided = [], [], [], []
    for subject in scale.subjects:
        curves = curves_of(subject, done)
        judged = {said.statement: judge(said, curves) for said in subject.said}
        claims += [claim for claim in judged.values() if claim is not None]
        undecided += [statement for statement, claim in judged.items() if claim is None]
        tables.append(_table(subject, curves))
        figures += _figures(subject, curves)
    return Findings(claims, tables, figures, [*REMARKS, *_left_out(undecided)])


REMARKS = (
    "Weights left are P_m: those that a mask kept, of all weights of convolutions and linear layers. The output layer is pruned at half the "
    "rate of the others, or not at all where layers are ranked together. Claims are about the level nearest to the published one.",
    "A network stops at the epoch of minimum validation loss, counted from the schedule's begin and no finer than an epoch (the paper looks "
    "every 100 steps); one that learns nothing may stop at once. Test accuracy is that of the end of training.",
    "Training accuracy is the mean over the last epoch while it trains, on images as they are trained on: augmented where the recipe says "
    "so, and with dropout.",
    "Units and filters count as eliminated where `ltcompile shrink` removes them, because their mask left nothing that makes or reads them: "
    "that much of the sparsity is structure.",
)


def _left_out(undecided: list[str]) -> list[str]:
    listed = "; ".join(undecided)
    return [f"Not decided at this scale, because no level has nearly as many weights left: {listed}."] if undecided else []


def judge(said: Said, curves: Curves) -> Claim | None:
    """The claim by its number; None where no level is near the share of weights that it is about."""
    number = NUMBERS[said.number]
    ours, theirs = nearest(curves[number.ours[0]], said.left), nearest(curves[number.theirs[0]], said.left)
    if ours is None or theirs is None:
        return None
    found = number.compare(ours.of(number.ours[1], number.measure), theirs.of(number.theirs[1], number.measure))
    shares = dict.fromkeys(percent(spot.left) for spot in (ours, theirs))  # as many as differ
    return Claim.judged(
        said.statement,
        said.source,
        f"{number.words}, with {' and '.join(shares)} % of the weights left",
        estimate(found),
        said.side,
        said.bound,
        number.unit,
    )


# Tables and figures

WAYS: dict[Curve, str] = {"iterative": "in rounds", "oneshot": "one-shot", "late": "in rounds, from weights after an epoch"}
ARMS = {"ticket": "ticket", "reinit": "its mask on fresh weights", "shuffled": "random mask on its weights"}


def _table(subject: Subject, curves: Curves) -> Table:
    first = curves["iterative"][0]
    dense = [spread(first.estimate("dense", measure)) for measure in ("accuracy", "stop", "gap")]
    rows = [["dense", "100.0", "0.0", "0.0", dense[0], "", "", dense[1], "", "", dense[2], "", ""]]
    for curve, way in WAYS.items():
        for spot in curves[curve]:
            sizes = [percent(spot.left), percent(spot.eliminated("filters")), percent(spot.eliminated("macs"))]
            values = [spread(spot.estimate(arm, measure)) for measure in ("accuracy", "stop", "gap") for arm in ARMS]  # type: ignore[arg-type]
            rows.append([way, *sizes, *values])
    columns = ["pruned", "weights left (%)", "units and filters eliminated (%)", "MACs of them (%)"]
    measures = ("test accuracy (%)", "stops at (epoch)", "gap (points)")
    columns += [f"{arm}: {measure}" for measure in measures for arm in ARMS.values()]
    return Table(f"{subject.name}: every level", columns, rows, "± is half of the 95 % interval.")


def _figures(subject: Subject, curves: Curves) -> list[Figure]:
    axes: dict[Measure, tuple[str, str]] = {
        "accuracy": ("Test accuracy", "test accuracy (%)"),
        "stop": ("Where early stopping stops", "epoch of minimum validation loss (epochs)"),
        "gap": ("Training accuracy less test accuracy", "gap (points)"),
    }
    caption = "Mean over seeds with its 95 % interval, over the share of weights left (P_m); the band is the dense network's, dashed lines are controls."
    return [
        Figure(
            f"{measure}-{subject.name}",
            f"{subject.name}: {title[0].lower()}{title[1:]}",
            "weights left (%)",
            axis,
            caption,
            _lines(subject, curves, measure),
            log_x=True,
        )
        for measure, (title, axis) in axes.items()
    ]


def _lines(subject: Subject, curves: Curves, measure: Measure) -> list[Series]:
    """The dense band, tickets and their controls, each kind in a colour of its own; controls of one-shot tickets are in the table."""

    def line(name: str, look: Literal["line", "control"], colour: int, curve: Curve, arm: str) -> Series:
        spots = curves[curve]
        return series(name, look, colour, [spot.left for spot in spots], [spot.estimate(arm, measure) for spot in spots])

    found = [
        band("dense", 4, curves["iterative"][0].estimate("dense", measure)),
        line("ticket", "line", 0, "iterative", "ticket"),
        line(ARMS["reinit"], "control", 0, "iterative", "reinit"),
        line(ARMS["shuffled"], "control", 1, "iterative", "shuffled"),
    ]
    if curves["oneshot"]:
        found.append(line("one-shot ticket", "line", 2, "oneshot", "ticket"))
    if curves["late"]:
        found.append(line(f"ticket from epoch {subject.late}", "line", 3, "late", "ticket"))
    if curves["plain"]:
        found.append(line(f"ticket of {subject.plain}", "line", 2, "plain", "ticket"))
    return found
