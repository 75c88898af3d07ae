"""Does a winning ticket really win? Ma et al.'s five conditions over learning rates (NeurIPS 2021, arXiv:2107.00166).

The same search at several learning rates: the ticket must beat random re-initialisation, and stand beside the dense network, at whichever
rate suits those best. The definition and its margins are `finding.conditions`, which every search is judged by; one search knows one rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from ltcompile.core.study import Claim, Figure, Table
from ltcompile.search import SearchConfig
from ltcompile.search.conditions import NONTRIVIAL_SHARE, Conditions, Margins, conditions, margins_of
from ltcompile.study._curves import accuracy, band, curve, levels, percent, removed, series, spread
from ltcompile.study._nouns import Done, Scale, StudyArm, Told
from ltcompile.study._statistics import BySeed, difference, estimate

TITLE = "Sanity checks: the five conditions of a winning ticket, over learning rates"
SOURCE = "Ma et al. 2021, arXiv:2107.00166"
WORTH = ("jackpot", "secondary prize", "not tested", "none")  # of prizes, the best first


@dataclass(frozen=True, kw_only=True)
class Rates(Scale):
    """One search at each of `rates`, in rounds that remove `rate` of the surviving filters; weights go back to `rewind_epoch`."""

    rates: tuple[float, ...]
    rounds: int
    rate: float
    rewind_epoch: int = 0


SCALES = {
    "smoke": Rates(
        about="Smoke: LeNet-5 on 8x8 digits shown at 16x16, 4 epochs, two learning rates, 40 and 64 % of the filters removed. It shows that "
        "the study runs; its numbers say nothing of the paper's networks.",
        model="lenet5",
        data="digits",
        image_size=16,
        recipe={"epochs": 4, "batch": 16, "crop_pixels": 0},
        rates=(0.005, 0.03),
        rounds=2,
        rate=0.4,
    ),
    "small": Rates(
        about="Small: VGG-16 with a quarter of its filters, on all of CIFAR-10 at 16x16, 4 epochs at two learning rates, 30 to 66 % of the filters "
        "removed; weights are rewound to their initial values. The paper trains for 160 epochs: by its first condition, this training is "
        "hardly long enough.",
        model="vgg16-quarter",
        data="cifar10",
        image_size=16,
        recipe={"epochs": 4, "schedule": "cosine", "warmup_epochs": 1, "crop_pixels": 2},
        rates=(0.01, 0.1),
        rounds=3,
        rate=0.3,
    ),
    "full": Rates(
        about="Full: ResNet-20 on CIFAR-10, 160 epochs at batch 64, weight decay 5e-4, rates divided by ten at epochs 80 and 120, and 20 % of "
        "the surviving filters removed in each of 8 rounds (the paper: of the weights, in 14); weights are rewound to epoch 8.",
        model="resnet20",
        data="cifar10",
        recipe={"epochs": 160, "batch": 64, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75), "warmup_epochs": 0},
        rates=(0.01, 0.1),
        rounds=8,
        rate=0.2,
        rewind_epoch=8,
    ),
}


def arms(scale: Rates) -> list[StudyArm]:
    """The lottery ticket's own search, weight rewinding, at every rate."""
    config = SearchConfig(
        rewind="weight",
        rewind_epoch=scale.rewind_epoch,
        rounds=scale.rounds,
        rate=scale.rate,
        seeds=scale.seeds,
        margin_points=margins_of(scale.data).about,
        whole_curve=True,
    )
    return [StudyArm.of(scale, f"lr-{rate:g}", config, lr=rate) for rate in scale.rates]


@dataclass(frozen=True)
class Judged:
    """A level: the rate (as an arm's name) whose ticket meets most, what it meets, and the rates that suit the controls best."""

    level: int
    ticket: str
    control: str
    dense: str
    met: Conditions


def tell(scale: Rates, done: Mapping[str, Done], device: torch.device) -> Told:
    """The conditions at every level, and the claims at the level where the ticket comes closest to the jackpot, by validation."""
    margins = margins_of(scale.data)
    judged = [judge(done, level, margins) for level in levels(next(iter(done.values())).rows)]
    sparse = [each for each in judged if removed(done[each.ticket].rows, each.level, "macs") >= 100 * NONTRIVIAL_SHARE] or judged
    shown = max(sparse, key=lambda each: fmean(slack(done, each, margins, "val").values()))
    remarks = [
        f'"About as good" is at most {margins.about:g} points worse, "clearly" is more than {margins.clearly:g} points. Conditions are of means '
        "of validation accuracy, as in the paper; claims are of test accuracy with intervals.",
        f"Claims are told at level {shown.level}, with the ticket of {shown.ticket}, the random re-initialisation of {shown.control} and the "
        f"dense network of {shown.dense}: the choices that are best for each on validation, among levels without {NONTRIVIAL_SHARE:.0%} "
        "of the MACs at least.",
        "These tickets are of filters: the small dense network of condition 2 has their own architecture, and is the control of condition 3.",
    ]
    return Told(_claims(done, shown, margins), [_table(done, judged)], _figures(done, shown), remarks)


def judge(done: Mapping[str, Done], level: int, margins: Margins) -> Judged:
    """The conditions at a level, for the rate whose ticket is worth most by them, and then the most accurate."""

    def met(name: str) -> Conditions:
        return conditions(done[name].rows, level, margins, [done[other].rows for other in done if other != name])

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
    found = {number: estimate([*gap.values()]) for number, gap in gaps(done, shown, "test").items()}
    judged = partial(Claim.judged, source=SOURCE, side="above")
    at = f"test accuracy, level {shown.level}"
    asked = (
        (
            "2",
            "The small dense network is clearly worse than the ticket",
            margins.clearly,
            "ticket - its size from random weights, at its best rate",
        ),
        ("3", "The ticket at some rate beats random re-initialisation at any", 0.0, "ticket - random re-initialisation at its best rate"),
        (
            "4",
            "The ticket is about as good as the dense network at the same rate",
            -margins.about,
            "ticket - dense network at the same rate",
        ),
        (
            "5",
            "The ticket is about as good as the dense network at its best rate",
            -margins.about,
            "ticket - dense network at its best rate",
        ),
    )
    claims = [
        judged(f"Condition {n}: {statement[0].lower()}{statement[1:]}", number=f"{number}; {at}", found=found[n], bound=bound)
        for n, statement, bound, number in asked
    ]
    spare = estimate([*slack(done, shown, margins, "test").values()])
    none = Claim.judged(
        "There is no clear jackpot", SOURCE, f"what the ticket has to spare in the condition that it meets least; {at}", spare, "below"
    )
    return [none, *claims, _over_rates(done)]


def _over_rates(done: Mapping[str, Done]) -> Claim:
    """Their explanation: initial weights matter where the rate is too low for the training to leave them behind."""
    first, *_, last = done.values()

    def gain(each: Done) -> BySeed:
        found = [difference(accuracy(each.rows, "ticket", lv), accuracy(each.rows, "reinit", lv)) for lv in levels(each.rows)]
        return {seed: fmean(gap[seed] for gap in found) for seed in found[0]}

    return Claim.judged(
        "A ticket gains more over random re-initialisation at a low learning rate than at a high one",
        SOURCE,
        f"(ticket - random re-initialisation) at {first.arm.name} less that at {last.arm.name}; test accuracy, mean over levels",
        estimate([*difference(gain(first), gain(last)).values()]),
        "above",
    )


def _table(done: Mapping[str, Done], judged: list[Judged]) -> Table:
    words = {True: "yes", False: "no", None: "not tested"}
    rows = []
    for each in judged:
        own = done[each.ticket]
        sizes = [percent(removed(own.rows, each.level, size)) for size in ("filters", "params", "macs")]  # type: ignore[arg-type]
        tested = [
            spread(estimate([*accuracy(done[name].rows, arm, level).values()]))
            for name, arm, level in ((each.ticket, "ticket", each.level), (each.control, "reinit", each.level), (each.dense, "dense", 0))
        ]
        flags = [words[each.met.flags[n]] for n in sorted(each.met.flags)]
        rows.append([str(each.level), *sizes, each.ticket, *flags, each.met.prize, *tested])
    columns = ["level", *(f"{what} removed (%)" for what in ("filters", "parameters", "MACs")), "ticket of"]
    met = [f"condition {number}" for number in range(1, 6)]
    tested_columns = [f"{what}, test accuracy (%)" for what in ("ticket", "best random re-initialisation", "best dense")]
    note = (
        "At each level the ticket of the rate that meets most; conditions by means of validation accuracy. ± is half of the 95 % interval."
    )
    return Table("The five conditions, level by level", [*columns, *met, "prize", *tested_columns], rows, note)


def _figures(done: Mapping[str, Done], shown: Judged) -> list[Figure]:
    lines = []
    for colour, (name, each) in enumerate(done.items()):
        x = partial(removed, each.rows, size="filters")
        lines.append(band(f"dense, {name}", colour, estimate([*accuracy(each.rows, "dense", 0).values()])))
        lines.append(curve(f"ticket, {name}", "line", colour, each.rows, "ticket", x))
        lines.append(curve(f"re-initialised, {name}", "control", colour, each.rows, "reinit", x))
    caption = "Mean test accuracy over seeds with its 95 % interval; bands are the dense networks, dashed lines random re-initialisation."
    over = Figure("rates", "Accuracy over filters removed, by learning rate", "filters removed (%)", "test accuracy (%)", caption, lines)
    rates = [float(each.arm.recipe["lr"]) for each in done.values()]
    at = [
        series(
            title,
            "control" if arm == "reinit" else "line",
            colour,
            rates,
            [estimate([*accuracy(d.rows, arm, lv).values()]) for d in done.values()],
        )
        for colour, (title, arm, lv) in enumerate(
            (("ticket", "ticket", shown.level), ("random re-initialisation", "reinit", shown.level), ("dense", "dense", 0))
        )
    ]
    told = f"At level {shown.level}. Mean test accuracy over seeds with its 95 % interval."
    by_rate = Figure("over-rates", "Accuracy over the learning rate", "learning rate (per step)", "test accuracy (%)", told, at, log_x=True)
    return [over, by_rate]
