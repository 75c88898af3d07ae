"""Does a winning ticket really win? Ma et al.'s five conditions over learning rates (NeurIPS 2021, arXiv:2107.00166).

The same search at several learning rates: the ticket must beat random re-initialisation, and match the dense network, at whichever
rate suits those best. The definition and its margins are `search.conditions`, which every search is judged by; one search knows one rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from ltcompile.core.study import Claim, Figure, Table
from ltcompile.search import NONTRIVIAL_SHARE, Conditions, Margins, conditions_met, margins_of
from ltcompile.study._curves import accuracy, band, cell, curve, levels, mean, percent, removed, series
from ltcompile.study._nouns import Done, Findings, Paper, PruningScale, StudyArm, scales
from ltcompile.study._statistics import BySeed, difference, estimate, paired

TITLE = "Sanity checks: the five conditions of a winning ticket, over learning rates"
SOURCE = "Ma et al. 2021, arXiv:2107.00166"
WORTH = ("jackpot", "secondary prize", "not tested", "none")  # of prizes, the best first


@dataclass(frozen=True, kw_only=True)
class Rates(PruningScale):
    """One search of filters at each of `rates`."""

    rates: tuple[float, ...]


SCALES = scales(__name__, Rates)
PAPER = Paper(__name__, SOURCE)


def arms(scale: Rates) -> list[StudyArm]:
    """The lottery ticket's own search, weight rewinding, at every rate."""
    config = scale.config(rewind="weight", full_curve=True)
    return [StudyArm.of(scale, f"lr-{rate:g}", config, lr=rate) for rate in scale.rates]


@dataclass(frozen=True)
class Judged:
    """A level: the rate (as an arm's name) whose ticket meets most, what it meets, and the rates that suit the controls best."""

    level: int
    ticket: str
    control: str
    dense: str
    met: Conditions


def analyse(scale: Rates, done: Mapping[str, Done], device: torch.device) -> Findings:
    """The conditions at every level, and the claims at the level where the ticket comes closest to the jackpot, by validation."""
    margins = margins_of(scale.data)
    judged = [judge(done, level, margins) for level in levels(next(iter(done.values())).rows)]
    sparse = [each for each in judged if removed(done[each.ticket].rows, each.level, "macs") >= 100 * NONTRIVIAL_SHARE] or judged
    shown = max(sparse, key=lambda each: fmean(slack(done, each, margins, "val").values()))
    picked = {"level": shown.level, "ticket": shown.ticket, "control": shown.control, "dense": shown.dense}
    bounds = {"about": f"{margins.about:g}", "clearly": f"{margins.clearly:g}", "nontrivial": f"{NONTRIVIAL_SHARE:.0%}"}
    remarks = PAPER.remarks(**picked, **bounds)
    return Findings(_claims(done, shown, margins), [_table(done, judged)], _figures(done, shown), remarks)


def judge(done: Mapping[str, Done], level: int, margins: Margins) -> Judged:
    """The conditions at a level, for the rate whose ticket is worth most by them, and then the most accurate."""

    def met(name: str) -> Conditions:
        return conditions_met(done[name].rows, level, margins, [done[other].rows for other in done if other != name])

    ticket = min(done, key=lambda name: (WORTH.index(met(name).prize), -_mean(done[name], "ticket", level)))
    control = max(done, key=lambda name: _mean(done[name], "reinit", level))
    return Judged(level, ticket, control, max(done, key=lambda name: _mean(done[name], "dense", 0)), met(ticket))


def _mean(done: Done, arm: str, level: int) -> float:
    return fmean(accuracy(done.rows, arm, level, "val").values())


def gaps(done: Mapping[str, Done], judged: Judged, images: str) -> dict[str, BySeed]:
    """Condition -> by how many points the ticket is ahead of what it is compared with, seed by seed."""

    def of(name: str, arm: str, level: int) -> dict[int, float]:
        return accuracy(done[name].rows, arm, level, images)  # type: ignore[arg-type]

    ticket = of(judged.ticket, "ticket", judged.level)
    control = difference(ticket, of(judged.control, "reinit", judged.level))
    against = {"2": control, "3": control, "4": difference(ticket, of(judged.ticket, "dense", 0))}
    return {**against, "5": difference(ticket, of(judged.dense, "dense", 0))}


def slack(done: Mapping[str, Done], judged: Judged, margins: Margins, images: str) -> dict[int, float]:
    """Seed by seed, how many points the ticket has to spare in the condition that it meets least: below 0 there is no jackpot."""
    needed = {"2": margins.clearly, "3": 0.0, "4": -margins.about, "5": -margins.about}
    found = gaps(done, judged, images)
    return {seed: min(found[n][seed] - needed[n] for n in needed if seed in found[n]) for seed in found["2"]}


def _claims(done: Mapping[str, Done], shown: Judged, margins: Margins) -> list[Claim]:
    judged, bounds = PAPER.claim, {"2": margins.clearly, "3": 0.0, "4": -margins.about, "5": -margins.about}
    found, spare = gaps(done, shown, "test"), slack(done, shown, margins, "test")
    first, *_, last = done.values()

    def gain(each: Done) -> BySeed:
        found = [difference(accuracy(each.rows, "ticket", lv), accuracy(each.rows, "reinit", lv)) for lv in levels(each.rows)]
        return {seed: fmean(gap[seed] for gap in found) for seed in found[0]}

    return [
        judged("no jackpot", estimate(spare), level=shown.level),
        *(judged(f"condition {n}", estimate(found[n]), bound, level=shown.level) for n, bound in bounds.items()),
        judged("low rates", paired(gain(first), gain(last)), first=first.arm.name, last=last.arm.name),
    ]


def _table(done: Mapping[str, Done], judged: list[Judged]) -> Table:
    words = {True: "yes", False: "no", None: "not tested"}
    rows = []
    for each in judged:
        own = done[each.ticket]
        sizes = [percent(removed(own.rows, each.level, size)) for size in ("filters", "params", "macs")]  # type: ignore[arg-type]
        tested = [
            cell(done[name].rows, arm, level)
            for name, arm, level in ((each.ticket, "ticket", each.level), (each.control, "reinit", each.level), (each.dense, "dense", 0))
        ]
        flags = [words[each.met.flags[n]] for n in sorted(each.met.flags)]
        rows.append([str(each.level), *sizes, each.ticket, *flags, each.met.prize, *tested])
    return PAPER.table("conditions", rows)


def _figures(done: Mapping[str, Done], shown: Judged) -> list[Figure]:
    lines = []
    for colour, (name, each) in enumerate(done.items()):
        x = partial(removed, each.rows, size="filters")
        lines.append(band(f"dense, {name}", colour, mean(each.rows, "dense", 0)))
        lines.append(curve(f"ticket, {name}", "line", colour, each.rows, "ticket", x))
        lines.append(curve(f"re-initialised, {name}", "control", colour, each.rows, "reinit", x))
    rates = [float(each.arm.recipe["lr"]) for each in done.values()]
    at = [
        series(title, "control" if arm == "reinit" else "line", colour, rates, [mean(d.rows, arm, lv) for d in done.values()])
        for colour, (title, arm, lv) in enumerate(
            (("ticket", "ticket", shown.level), ("random re-initialisation", "reinit", shown.level), ("dense", "dense", 0))
        )
    ]
    return [PAPER.figure("rates", lines), PAPER.figure("over-rates", at, level=shown.level)]
