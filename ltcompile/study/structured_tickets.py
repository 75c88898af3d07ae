"""Which rewinding and which ranking find structured winning tickets? (Magalhães et al. 2020)

VGG-16 on CIFAR-10 in the paper: filters are ranked layer by layer (local) or over the whole network (global), and what survives goes back
to early weights (weight rewinding) or only to the early learning rate (learning-rate rewinding), at shares of filters removed up to
95 %. Every ticket is compared with its architecture from random weights, and the dense network. Added here: the same curves over MACs and over
measured latency, which the paper lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from ltcompile.core.study import Claim, Estimate, Figure, Series, Table
from ltcompile.prune import Scope
from ltcompile.study._curves import accuracy, band, cell, curve, levels, mean, percent, removed, series
from ltcompile.study._latency import Timed, remark, timed
from ltcompile.study._nouns import Done, Findings, Paper, PruningScale, StudyArm, scales
from ltcompile.study._statistics import BySeed, averaged, difference, estimate, paired

TITLE = "Structured tickets: local or global, weight or learning-rate rewinding"
SOURCE = "Magalhães et al. 2020, SIBGRAPI, pp. 325-332"


@dataclass(frozen=True)
class Regime:
    """How filters are ranked, and what goes back."""

    scope: Scope
    rewind: str

    @property
    def rewinding(self) -> str:
        return {"weight": "weight rewinding", "lr": "learning-rate rewinding"}[self.rewind]

    @property
    def title(self) -> str:
        return f"{self.scope}, {self.rewinding}"

    def __str__(self) -> str:
        return f"{self.scope} pruning with {self.rewinding}"


REGIMES = {f"{scope}-{rewind}": Regime(scope, rewind) for scope in ("local", "global") for rewind in ("weight", "lr")}  # by arms' names
LOW_PERCENT = 50.0  # of the filters removed: up to here a level is called low
DENSE = len(REGIMES)  # the dense network's colour


@dataclass(frozen=True, kw_only=True)
class Levels(PruningScale):
    """Rounds of filters; then every network is timed."""

    controls: bool = True  # at each search's own level: the dense network, and the ticket's architecture, with all of its epochs
    seconds_per_network: float = 3.0  # of each network


SCALES = scales(__name__, Levels)
PAPER = Paper(__name__, SOURCE)


def arms(scale: Levels) -> list[StudyArm]:
    """The four regimes; all tickets and their random re-initialisations have one schedule."""
    shared = {"controls": scale.controls, "full_curve": True}
    return [StudyArm.of(scale, name, scale.config(scope=regime.scope, rewind=regime.rewind, **shared)) for name, regime in REGIMES.items()]


def analyse(scale: Levels, done: Mapping[str, Done], device: torch.device) -> Findings:
    """First the networks of all levels are timed in turns, search by search."""
    timings = {name: timed(each, device, scale.seconds_per_network) for name, each in done.items()}
    return compare(done, timings, scale.margin)


def compare(done: Mapping[str, Done], timings: Mapping[str, Timed], margin: float) -> Findings:
    """What the rows and the clock say; a ticket wins where it is less than `margin` points below the dense network."""
    remarks = [*PAPER.remarks(margin=f"{margin:g}", low=f"{LOW_PERCENT:g}"), remark([*timings.values()])]
    return Findings(
        _claims(done, margin), [_winners(done, timings, margin), _table(done, timings, margin)], _figures(done, timings), remarks
    )


# What is picked, on validation


def _gap(done: Done, level: int, against: str = "dense", images: str = "val") -> dict[int, float]:
    """Ticket minus another arm, seed by seed, in points; the dense network stands at level 0."""
    there = 0 if against == "dense" else level
    return difference(accuracy(done.rows, "ticket", level, images), accuracy(done.rows, against, there, images))  # type: ignore[arg-type]


def _answer(done: Done, level: int, margin: float) -> str:
    """Whether the level's ticket wins, by validation."""
    return {"holds": "wins", "does not hold": "loses"}.get(_won(done, level).lies("above", -margin), "undecided")


def _won(done: Done, level: int) -> Estimate:
    return estimate(_gap(done, level))


def _best(done: Done, among: list[int]) -> int:
    """The level whose ticket is best relative to the dense network, by validation."""
    return max(among, key=lambda level: (fmean(_gap(done, level).values()), level))


def _split(done: Done) -> tuple[list[int], list[int]]:
    """Low and high levels."""
    low = [level for level in levels(done.rows) if removed(done.rows, level, "filters") <= LOW_PERCENT]
    return low, [level for level in levels(done.rows) if level not in low]


# Claims, on test


def _claims(done: Mapping[str, Done], margin: float) -> list[Claim]:
    judged = PAPER.claim
    one, best = done["global-weight"], done["global-lr"]

    def at_best(key: str, own: Done, among: list[int], bound: float = 0.0) -> list[Claim]:
        """On test images, at the level that is best on validation."""
        if not among:
            return []
        level = _best(own, among)
        share = f"{removed(own.rows, level, 'filters'):.0f}"
        return [judged(key, estimate(_gap(own, level, images="test")), bound, regime=_capital(REGIMES[own.arm.name]), share=share)]

    low, high = _split(one)
    others = [name for name in REGIMES if name != "global-lr"]
    ours = _capital(REGIMES["global-lr"])
    return [
        *(claim for name in ("local-weight", "local-lr") for claim in at_best("no ticket", done[name], levels(done[name].rows), -margin)),
        *at_best("low", one, low, -margin),
        *at_best("high", one, high, -margin),
        judged("as random", estimate(_over_levels(one, "reinit")), margin, regime=REGIMES["global-weight"]),
        *(judged("better", paired(_mean_accuracy(best), _mean_accuracy(done[o])), ours=ours, other=REGIMES[o]) for o in others),
        judged("most levels", estimate(_share_won(best, margin)), ours=ours, margin=f"{margin:g}"),
        *at_best("beats dense", best, levels(best.rows)),
    ]


def _capital(regime: Regime) -> str:
    return str(regime).capitalize()


def _over_levels(done: Done, against: str) -> dict[int, float]:
    return averaged([_gap(done, level, against, "test") for level in levels(done.rows)])


def _mean_accuracy(done: Done) -> BySeed:
    return averaged([accuracy(done.rows, "ticket", level) for level in levels(done.rows)])


def _share_won(done: Done, margin: float) -> BySeed:
    """Seed by seed, at how many of the levels the ticket is about as good as the dense network, in percent."""
    gaps = [_gap(done, level, images="test") for level in levels(done.rows)]
    return averaged([{seed: 100.0 * (gap >= -margin) for seed, gap in each.items()} for each in gaps])


# Tables


def _winners(done: Mapping[str, Done], timings: Mapping[str, Timed], margin: float) -> Table:
    """The winning tickets of each regime, and what the smallest of them saves."""
    rows = []
    for name, regime in REGIMES.items():
        answers = {level: _answer(done[name], level, margin) for level in levels(done[name].rows)}
        by = {word: [level for level, answer in answers.items() if answer == word] for word in ("wins", "undecided", "loses")}
        failed = min(by["undecided"] + by["loses"], default=len(answers) + 1)  # levels count from 1
        smallest = max((level for level in by["wins"] if level < failed), default=None)  # no level is picked for its luck
        saved = ["none"] * 4 if smallest is None else _saved(done[name], timings[name], smallest)
        rows.append([regime.title, *(str(len(by[word])) for word in by), *saved])
    return PAPER.table("winners", rows)


def _saved(done: Done, timing: Timed, level: int) -> list[str]:
    """The four savings of a level, in percent."""
    latency = timing.levels.get(level)
    sizes = [percent(removed(done.rows, level, size)) for size in ("filters", "params", "macs")]  # type: ignore[arg-type]
    return [*sizes, "not timed" if latency is None else percent(100 - latency.share)]


def _table(done: Mapping[str, Done], timings: Mapping[str, Timed], margin: float) -> Table:
    rows = []
    for name, regime in REGIMES.items():
        own = done[name]
        rows.append([regime.title, "dense", *("0",) * 4, "", "", cell(own.rows, "dense", 0), ""])
        for level in levels(own.rows):
            tested = [cell(own.rows, arm, level) for arm in ("ticket", "reinit")]
            saved = _saved(own, timings[name], level)
            rows.append([regime.title, str(level), *saved, str(_won(own, level)), _answer(own, level, margin), *tested])
    return PAPER.table("levels", rows)


# Figures


def _figures(done: Mapping[str, Done], timings: Mapping[str, Timed]) -> list[Figure]:
    colours = [(colour, name, regime.title) for colour, (name, regime) in enumerate(REGIMES.items())]
    over_macs = [curve(title, "line", c, done[name].rows, "ticket", partial(_left, done[name])) for c, name, title in colours]
    clocked = [_clocked(done[name], timings[name], colour, title) for colour, name, title in colours]
    where = next(iter(timings.values())).where
    return [
        *(PAPER.figure("filters", _by_filters(done, scope), scope=scope) for scope in ("local", "global")),
        PAPER.figure("macs", [_dense(done), *over_macs]),
        PAPER.figure("latency", [_dense(done), *clocked], where=where),
    ]


def _by_filters(done: Mapping[str, Done], scope: str) -> list[Series]:
    """The paper's figure: tickets, and their architectures from random weights."""
    lines = [_dense(done)]
    for colour, (name, regime) in enumerate(REGIMES.items()):
        if regime.scope == scope:
            x = partial(removed, done[name].rows, size="filters")
            lines.append(curve(regime.rewinding, "line", colour, done[name].rows, "ticket", x))
            lines.append(curve(f"its architecture, re-initialised ({regime.rewinding})", "control", colour, done[name].rows, "reinit", x))
    return lines


def _left(done: Done, level: int) -> float:
    return 100 - removed(done.rows, level, "macs")


def _dense(done: Mapping[str, Done]) -> Series:
    """The dense networks of all regimes, which are trained alike."""
    return band("dense", DENSE, estimate(averaged([accuracy(each.rows, "dense", 0) for each in done.values()])))


def _clocked(done: Done, timing: Timed, colour: int, title: str) -> Series:
    found = {level: mean(done.rows, "ticket", level) for level in timing.levels}
    line = series(title, "line", colour, [timing.levels[level].share for level in found], [*found.values()])
    lows, highs = ([getattr(timing.levels[level], end) for level in found] for end in ("low", "high"))
    return Series(line.name, line.look, colour, line.x, line.y, line.low, line.high, lows, highs)
