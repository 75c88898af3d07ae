"""Are tickets unique? Masks of different criteria compared (Paganini & Forde 2020, arXiv:2001.05050).

The same network is pruned by filters, by weights and by both, by several criteria; then what the sparsest networks of each keep, answer,
and know together, how their weights move from round to round, and how many whole filters unstructured masks empty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.benchmark.similarity import Answers, agreement, answers, distances, ensemble, unanimous
from ltcompile.core.mask import WeightMask
from ltcompile.core.streams import stream
from ltcompile.core.study import Claim, Estimate, Figure, Look, Series, Table
from ltcompile.models import build_model
from ltcompile.search import SearchConfig, shuffle_mask
from ltcompile.study._curves import accuracy, band, levels, percent, series, spread
from ltcompile.study._networks import mask, network, weights
from ltcompile.study._nouns import Done, Findings, Paper, PruningScale, StudyArm, scales
from ltcompile.study._statistics import BySeed, averaged, difference, estimate, paired

TITLE = "Masks: which weights different criteria keep, and what their tickets know together"
SOURCE = "Paganini & Forde 2020, arXiv:2001.05050"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> what the page calls it, and the search
    "l1-filters": ("L1, filters", {"criterion": "l1"}),
    "l2-filters": ("L2, filters", {"criterion": "l2", "group_reduction": "producers"}),
    "linf-filters": ("L-inf, filters", {"criterion": "linf"}),
    "neg-linf-filters": ("-L-inf, filters", {"criterion": "neg_linf"}),
    "random-filters": ("random, filters", {"criterion": "random"}),
    "l1-weights": ("L1, weights", {"prune": "weights"}),
    "l1-weights-global": ("L1, weights, global", {"prune": "weights", "scope": "global"}),
    "random-weights": ("random, weights", {"prune": "weights", "criterion": "random"}),
    "hybrid": ("hybrid", {"prune": "hybrid"}),
    "fc-only": ("linear layers only", {"prune": "weights"}),
    "l1-weights-finetune": ("L1, weights, fine-tuned", {"prune": "weights", "rewind": "finetune"}),
}
FIGURES = {  # the arms of a figure of accuracy
    "filters": [name for name in ARMS if name.endswith("-filters")],
    "weights": [name for name in ARMS if "-weights" in name],
    "mixed": ["l1-filters", "l1-weights", "hybrid", "fc-only"],
}
BEST = 3  # networks of the smaller ensemble
APART = 0.5  # Jaccard's distance from which on two masks are called different networks: they share less than half


SCALES = scales(__name__, PruningScale)
PAPER = Paper(__name__, SOURCE)


def arms(scale: PruningScale) -> list[StudyArm]:
    """A search for each way to prune; without controls, for tickets are compared with each other.

    Weights go in twice as many rounds as filters: a layer loses a share of what makes it and of what it reads, so that about as many
    weights are left.
    """
    return [StudyArm.of(scale, name, _config(scale, name)) for name in ARMS]


def _config(scale: PruningScale, name: str) -> SearchConfig:
    own = ARMS[name][1] | ({"only": tuple(_linear_layers(scale.model))} if name == "fc-only" else {})
    rounds = scale.rounds * (1 + (own.get("prune") == "weights"))
    return scale.config(**{"scope": "local", "rewind": "weight", "rounds": rounds, "controls": False, **own})


def _linear_layers(model: str) -> list[str]:
    """Patterns for the names of a network's linear layers."""
    with torch.device("meta"):
        return [re.escape(name) for name, layer in build_model(model).named_modules() if isinstance(layer, nn.Linear)]


# What a search left


@dataclass(frozen=True)
class Structure:
    """Parameter -> the numbers of filters or units that a mask leaves empty, that a random mask with its counts leaves empty, and of all."""

    empty: dict[str, int]
    by_chance: dict[str, int]
    all: dict[str, int]
    convolutions: tuple[str, ...]

    def share(self, chance: bool = False) -> float:
        """The share of the convolutions' filters that is empty, in percent."""
        found = self.by_chance if chance else self.empty
        return 100 * sum(found[name] for name in self.convolutions) / max(1, sum(self.all[name] for name in self.convolutions))


@dataclass(frozen=True)
class Seen:
    """One seed of a search, by level: percent of weights left, test and validation accuracy in points, structure of the mask, and how
    the surviving weights of a level, after its training, correlate with what they were after the one before. Of the last level, its mask
    and its answers to test images.
    """

    left: dict[int, float]
    test: dict[int, float]
    val: dict[int, float]
    structure: dict[int, Structure]
    stability: dict[int, float]
    mask: WeightMask
    answers: Answers


All = Mapping[str, Mapping[int, Seen]]  # arm -> seed -> what is seen of it


def analyse(scale: PruningScale, done: Mapping[str, Done], device: torch.device) -> Findings:
    """Look into every run folder, then compare."""
    return compare({name: {seed: look(each, seed, device) for seed in each.arm.config.all_seeds} for name, each in done.items()})


def look(done: Done, seed: int, device: torch.device) -> Seen:
    """All levels of a seed. Raises InvalidFile where a file of the run is gone or damaged."""
    left, test, structure, stability = {}, {}, {}, {}
    before = weights(done, seed, 0)
    for level in (0, *levels(done.rows)):
        kept, said = mask(done, seed, level), answers(network(done, seed, level), done.data.test, device)
        left[level], test[level], structure[level] = (
            100 * kept.share,
            100 * said.accuracy,
            _structure(kept, stream("chance mask", seed, level=level)),
        )
        if level:
            after = weights(done, seed, level)
            stability[level], before = _correlation(before, after, kept), after
    val = {level: accuracy(done.rows, "ticket" if level else "dense", level, "val")[seed] for level in left}
    return Seen(left, test, val, structure, stability, kept, said)


def _structure(kept: WeightMask, chance: int) -> Structure:
    def empty(found: WeightMask) -> dict[str, int]:
        return {name: int((~each.flatten(1)).all(1).sum()) for name, each in found.kept.items()}

    convolutions = tuple(name for name, each in kept.kept.items() if each.dim() > 2)
    return Structure(empty(kept), empty(shuffle_mask(kept, chance)), {n: len(each) for n, each in kept.kept.items()}, convolutions)


def _correlation(before: Mapping[str, Tensor], after: Mapping[str, Tensor], kept: WeightMask) -> float:
    """Pearson's, over the weights that `kept` keeps; 0 where one side does not vary."""
    pair = torch.stack([torch.cat([side[name][each] for name, each in kept.kept.items()]).double() for side in (before, after)])
    found = torch.corrcoef(pair)[0, 1].item()
    return found if math.isfinite(found) else 0.0


# Searches compared


def compare(seen: All) -> Findings:
    """Claims, tables and figures of what was seen."""
    return Findings(
        _claims(seen), [_sparsest(seen), _pairs(seen), _ensembles(seen), _layers(seen)], _figures(seen), PAPER.remarks(best=BEST)
    )


def _last(by_level: Mapping[int, Any]) -> Any:
    return by_level[max(by_level)]


def _tested(found: Mapping[int, Seen]) -> dict[int, float]:
    """Seed -> test accuracy of the last level."""
    return {seed: _last(each.test) for seed, each in found.items()}


def _ranked(seen: All) -> list[str]:
    """The arms by validation accuracy at their last levels, the best first."""
    return sorted(seen, key=lambda name: -fmean(_last(each.val) for each in seen[name].values()))


def _together(seen: All, names: Sequence[str]) -> dict[int, float]:
    """Seed -> test accuracy of the ensemble of these arms, in points."""
    seeds = set.intersection(*({*seen[name]} for name in names))
    return {seed: 100 * ensemble([seen[name][seed].answers for name in names]).accuracy for seed in sorted(seeds)}


def _apart(seen: All, one: str, other: str) -> dict[int, float]:
    """Seed -> distance of the last masks of two arms."""
    seeds = sorted(seen[one].keys() & seen[other].keys())
    return {seed: distances(seen[one][seed].mask, seen[other][seed].mask).total for seed in seeds}


def _excess(found: Mapping[int, Seen]) -> dict[int, float]:
    """Seed -> empty filters of the convolutions beyond those of a random mask, at the last level, in points."""
    return {seed: _last(each.structure).share() - _last(each.structure).share(chance=True) for seed, each in found.items()}


def _steady(found: Mapping[int, Seen]) -> dict[int, float]:
    """Seed -> correlation of surviving weights with those of the round before, mean over rounds."""
    return {seed: fmean(each.stability.values()) for seed, each in found.items()}


def _alike_in_size(seen: All, fewer: str, more: str) -> BySeed:
    """Test accuracy of `fewer` (filters, level k) less that of `more` (weights, level 2k), mean over k."""

    def at(name: str, step: int) -> list[dict[int, float]]:
        rounds = len(next(iter(seen[fewer].values())).stability)
        return [{seed: each.test[step * k] for seed, each in seen[name].items()} for k in range(1, rounds + 1)]

    return averaged([difference(ours, theirs) for ours, theirs in zip(at(fewer, 1), at(more, 2), strict=True)])


def _claims(seen: All) -> list[Claim]:
    judged, ranked = PAPER.claim, _ranked(seen)
    together, best, alone = _together(seen, [*seen]), _together(seen, ranked[:BEST]), _together(seen, ranked[:1])
    excess = {name: _excess(seen[name]) for name in ("l1-weights", "l1-weights-finetune")}
    apart = [_apart(seen, "l1-weights", name) for name in seen if name.startswith("l") and name.endswith("-filters")]
    return [
        judged("random", estimate(_alike_in_size(seen, "random-filters", "random-weights"))),
        judged("empty", estimate(excess["l1-weights"])),
        judged("fine-tuned", paired(excess["l1-weights"], excess["l1-weights-finetune"])),
        judged("not unique", estimate(averaged(apart)), APART),
        judged("ensemble", paired(together, alone), count=len(seen), best=ARMS[ranked[0]][0]),
        judged("best few", paired(best, together), count=BEST, names="; ".join(ARMS[name][0] for name in ranked[:BEST])),
        judged("steady", paired(_steady(seen["l1-weights"]), _steady(seen["random-weights"]))),
    ]


# Tables


def _sparsest(seen: All) -> Table:
    rows = []
    for name, found in seen.items():
        left = fmean(_last(each.left) for each in found.values())
        val = estimate([_last(each.val) for each in found.values()])
        steady = estimate(_steady(found))
        rows.append([ARMS[name][0], percent(left), spread(val), spread(estimate(_tested(found))), spread(steady)])
    return PAPER.table("sparsest", rows)


def _pairs(seen: All) -> Table:
    """Two arms a row: how far their masks are apart, layer by layer, and how often their answers are the same; means over seeds."""
    layers, rows = [*next(iter(seen[next(iter(seen))].values())).mask.kept], []
    for one, other in combinations(seen, 2):
        seeds = sorted(seen[one].keys() & seen[other].keys())
        pairs = [(seen[one][seed], seen[other][seed]) for seed in seeds]
        apart = [distances(a.mask, b.mask) for a, b in pairs]
        alike = 100 * fmean(agreement(a.answers, b.answers) for a, b in pairs)
        by_layer = [fmean(each.layers[layer] for each in apart) for layer in layers]
        cells = [f"{value:.3f}" for value in (fmean(each.total for each in apart), *by_layer)]
        rows.append([ARMS[one][0], ARMS[other][0], percent(alike), *cells])
    return PAPER.table("pairs", rows, *(f"distance in {layer}" for layer in layers))


def _ensembles(seen: All) -> Table:
    ranked, rows = _ranked(seen), []
    sets = {"all": [*seen], f"the best {BEST}": ranked[:BEST], "the best alone": ranked[:1]}
    for title, names in sets.items():
        seeds = sorted(_together(seen, names))
        common = [unanimous([seen[name][seed].answers for name in names]) for seed in seeds]
        shares = [percent(100 * fmean(getattr(each, which) for each in common)) for which in ("same", "right", "wrong")]
        rows.append([title, "; ".join(ARMS[name][0] for name in names), spread(estimate(_together(seen, names))), *shares])
    return PAPER.table("ensembles", rows)


def _layers(seen: All) -> Table:
    """How structured unstructured masks are at their last levels, layer by layer."""
    rows = []
    for name in FIGURES["weights"]:
        last = [_last(each.structure) for each in seen[name].values()]
        for layer, count in last[0].all.items():
            found = [f"{fmean(getattr(each, kind)[layer] for each in last):.1f}" for kind in ("empty", "by_chance")]
            rows.append([ARMS[name][0], layer, str(count), *found])
    return PAPER.table("layers", rows)


# Figures


def _figures(seen: All) -> list[Figure]:
    dense = band("dense", 4, estimate(averaged([{s: each.test[0] for s, each in found.items()} for found in seen.values()])))

    def lines(names: Sequence[str], value: Callable[[Seen, int], float]) -> list[Series]:
        return [_curve(seen[arm], ARMS[arm][0], colour, value) for colour, arm in enumerate(names)]

    empty = lines(FIGURES["weights"], lambda each, level: each.structure[level].share())
    by_chance = "random mask with the counts of L1, weights"
    chance = _curve(seen["l1-weights"], by_chance, 0, lambda each, level: each.structure[level].share(chance=True), "control")
    return [
        *(PAPER.figure(name, [dense, *lines(arms, lambda each, level: each.test[level])]) for name, arms in FIGURES.items()),
        PAPER.figure("empty", [*empty, chance]),
        PAPER.figure("stability", lines(FIGURES["weights"], lambda each, level: each.stability[level])),
    ]


def _curve(found: Mapping[int, Seen], name: str, colour: int, value: Callable[[Seen, int], float], look: Look = "line") -> Series:
    """A number of every level over the weights that are left there."""
    rounds = sorted(next(iter(found.values())).stability)
    places = [fmean(each.left[level] for each in found.values()) for level in rounds]
    values: list[Estimate] = [estimate([value(each, level) for each in found.values()]) for level in rounds]
    return series(name, look, colour, places, values)
