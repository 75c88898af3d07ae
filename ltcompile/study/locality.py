"""Does pruning a fully connected network make it local? (Pellegrini & Biroli 2021, arXiv:2104.13343; ICML 2022)

Iterative magnitude pruning of a network that does not know where its pixels are, on images as they are, with their pixels shuffled, and
with labels that mean nothing; then where in the image the connections lie that each node of the first layer kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ltcompile.core.arm import Arm
from ltcompile.core.mask import WeightMask
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import Claim, Estimate, Figure, Look, Maps, Picture, Series, Table
from ltcompile.study._curves import accuracy, band, cell, curve, levels, mean, percent, series, spread
from ltcompile.study._images import pixel_order, shuffled_labels, shuffled_pixels
from ltcompile.study._nouns import Done, Findings, Paper, PruningScale, StudyArm, scales
from ltcompile.study._pairs import NEAR, Pairs, pairs
from ltcompile.study._statistics import BySeed, difference, estimate, paired

TITLE = "Locality: what is left of a fully connected network looks at patches of the image"
SOURCE = "Pellegrini & Biroli 2021, arXiv:2104.13343"
IMAGES, PIXELS, LABELS = "images", "pixels-shuffled", "labels-shuffled"
CHANGES = {IMAGES: None, PIXELS: shuffled_pixels, LABELS: shuffled_labels}
WORDS = {IMAGES: "images as they are", PIXELS: "pixels shuffled", LABELS: "labels shuffled"}
CONNECTED = 0.2  # the least share of a layer's nodes with a connection (their code's `stop_ratio`)
NONE_LEFT = 1.1  # times a shuffled mask: less excess than a tenth is called none
KEPT = ("output",)  # hidden layers alone are pruned
REACH = 10  # pixels each way, of a picture of displacements
NODES = 6  # whose pictures are shown, of each search


SCALES = scales(__name__, PruningScale)
PAPER = Paper(__name__, SOURCE)


def arms(scale: PruningScale) -> list[StudyArm]:
    """The same search on the images and on both controls; masks that are shuffled are trained where the images are as they are."""
    config = scale.config(prune="weights", scope="local", rewind="weight", keep=KEPT, controls=False)
    whole = replace(config, full_curve=True)
    return [replace(StudyArm.of(scale, name, whole if name == IMAGES else config), change=change) for name, change in CHANGES.items()]


# What masks say


@dataclass(frozen=True)
class Seen:
    """A level that is looked at: hidden weights left in percent, the least share of a layer's nodes that are connected, and by seed the
    pairs of connections of one channel, of two channels (none in grey images), and of one channel with moved pixels put back.
    """

    left: float
    connected: float
    same: dict[int, Pairs]
    different: dict[int, Pairs]
    back: dict[int, Pairs]


def analyse(scale: PruningScale, done: Mapping[str, Done], device: torch.device) -> Findings:
    """What masks say of where connections lie, level by level, and what networks they make."""
    seen = {name: look(each) for name, each in done.items()}
    level = max(set.intersection(*(set(levels) for levels in seen.values())))
    margin = scale.margin
    remarks = PAPER.remarks(near=f"{NEAR:g}", connected=f"{CONNECTED:.0%}", level=level)
    figures, maps = _figures(done, seen, level), _maps(done, seen, level)
    return Findings(_claims(done, seen, level, margin), [_table(done, seen)], figures, remarks, maps)


def look(done: Done) -> dict[int, Seen]:
    """Every level that is looked at, the first ones first."""
    found = {}
    for level in levels(done.rows):
        masks = {seed: mask_of(done, seed, level) for seed in done.arm.config.all_seeds}
        seen = _seen(done, masks)
        if seen.connected <= CONNECTED or not all(each.own.any() for each in seen.same.values()):
            break
        found[level] = seen
    return found


def mask_of(done: Done, seed: int, level: int) -> WeightMask:
    """What a ticket kept. Raises InvalidFile where its file is gone or damaged."""
    return WeightMask.load(RunFolder(done.folder).mask(seed, level))


def first_layer(done: Done, mask: WeightMask) -> tuple[str, Tensor]:
    """The name of the first layer's weights, and which of them are kept (nodes, C, H, W)."""
    name, kept = next(iter(mask.kept.items()))
    return name, kept.unflatten(1, done.data.description.shape)


def _seen(done: Done, masks: Mapping[int, WeightMask]) -> Seen:
    kept = {seed: first_layer(done, mask)[1] for seed, mask in masks.items()}
    found = {seed: pairs(each) for seed, each in kept.items()}
    moved = done.arm.change is shuffled_pixels
    return Seen(
        left=100 * fmean(mask.share for mask in masks.values()),
        connected=min(layer.any(1).double().mean().item() for mask in masks.values() for layer in mask.kept.values()),
        same={seed: same for seed, (same, _) in found.items()},
        different={seed: different for seed, (_, different) in found.items() if different is not None},
        back={seed: pairs(put_back(each))[0] for seed, each in kept.items()} if moved else {},
    )


def put_back(kept: Tensor) -> Tensor:
    """A mask, or weights, (N, C, H, W) of shuffled pixels where those pixels were before."""
    found = torch.empty_like(kept)
    found.flatten(2)[:, :, pixel_order(kept[0, 0].numel())] = kept.flatten(2)
    return found


def _locality(found: Mapping[int, Pairs]) -> dict[int, float]:
    return {seed: each.locality for seed, each in found.items()}


def _beyond(found: Mapping[int, Pairs]) -> dict[int, float]:
    return {seed: each.beyond for seed, each in found.items()}


# Claims


def _claims(done: Mapping[str, Done], seen: Mapping[str, dict[int, Seen]], level: int, margin: float) -> list[Claim]:
    judged = PAPER.claim
    real, moved, without = (seen[name][level] for name in (IMAGES, PIXELS, LABELS))
    first, rows = min(seen[IMAGES]), done[IMAGES].rows
    gaps = {at: difference(accuracy(rows, "ticket", at, "val"), accuracy(rows, "dense", 0, "val")) for at in levels(rows)}
    best = max(gaps, key=lambda at: (fmean(gaps[at].values()), at))
    words: dict[str, Any] = {
        "near": f"{NEAR:g}",
        "where": f"level {level}, {real.left:.2g} % of the weights left",
        "level": level,
        "first": first,
        "best": best,
    }

    def local(key: str, found: Mapping[int, Pairs]) -> Claim:
        return judged(key, _mean(found), **words)

    def more(key: str, ours: BySeed, theirs: BySeed, bound: float = 0.0) -> Claim:
        return judged(key, paired(ours, theirs), bound, **words)

    return [
        local("local", real.same),
        *([local("between channels", real.different)] if real.different else []),
        judged("not liked pixels", estimate(_beyond(real.same)), **words),
        more("grows", _locality(real.same), _locality(seen[IMAGES][first].same)),
        more("less in shuffled pixels", _locality(real.same), _locality(moved.same)),
        judged("none in shuffled pixels", _mean(moved.same), NONE_LEFT, **words),
        local("put back", moved.back),
        more("less with shuffled labels", _locality(real.same), _locality(without.same)),
        more("less beyond with shuffled labels", _beyond(real.same), _beyond(without.same)),
        more("wins", accuracy(rows, "ticket", best), accuracy(rows, "dense", 0), -margin),
        more("matters", accuracy(rows, "ticket", level), accuracy(rows, "shuffled", level)),
    ]


def _mean(found: Mapping[int, Pairs]) -> Estimate:
    return estimate(_locality(found))


# Table and figures


def _table(done: Mapping[str, Done], seen: Mapping[str, dict[int, Seen]]) -> Table:
    rows = []
    for name, at in seen.items():
        for level, each in at.items():
            others = [spread(_mean(each.different)) if each.different else "grey", spread(estimate(_beyond(each.same)))]
            tested = [cell(done[name].rows, arm, level) for arm in ("ticket", "shuffled")]
            sizes = [f"{each.left:.2f}", percent(100 * each.connected)]
            val = cell(done[name].rows, "ticket", level, "val")
            rows.append([WORDS[name], str(level), *sizes, spread(_mean(each.same)), *others, *tested, val])
    return PAPER.table("levels", rows)


def _figures(done: Mapping[str, Done], seen: Mapping[str, dict[int, Seen]], level: int) -> list[Figure]:
    real = seen[IMAGES]
    over = [line for name, at in seen.items() for line in _over_levels(name, at)]
    far = [_profile(WORDS[name], "line", colour, at[level].same) for colour, (name, at) in enumerate(seen.items())]
    shown = sorted({*list(real)[:: max(1, len(real) // 3)], level})
    grown = [_profile(f"{real[at].left:.2g} % left (level {at})", "line", colour, real[at].same) for colour, at in enumerate(shown)]
    return [
        PAPER.figure("locality", over, near=f"{NEAR:g}"),
        PAPER.figure("distance", far, level=level),
        PAPER.figure("distance-levels", grown),
        PAPER.figure("accuracy", _accuracies(done[IMAGES], real)),
    ]


def _over_levels(name: str, seen: Mapping[int, Seen]) -> list[Series]:
    x, colour = [each.left for each in seen.values()], list(CHANGES).index(name)
    beyond = [estimate(_beyond(each.same)) for each in seen.values()]
    return [
        series(WORDS[name], "line", colour, x, [_mean(each.same) for each in seen.values()]),
        series(f"{WORDS[name]}, relative to different nodes", "control", colour, x, beyond),
    ]


def _profile(name: str, look: Look, colour: int, found: Mapping[int, Pairs]) -> Series:
    profiles = [each.profile() for each in found.values()]
    return series(name, look, colour, [float(d) for d in profiles[0]], [estimate([each[d] for each in profiles]) for d in profiles[0]])


def _accuracies(done: Done, seen: Mapping[int, Seen]) -> list[Series]:
    rows = [row for row in done.rows if row.arm == "dense" or row.level in seen]
    drawn: tuple[tuple[str, Look, str], ...] = (
        ("ticket", "line", "ticket"),
        ("its mask, other first weights", "control", "reinit"),
        ("shuffled mask, its first weights", "control", "shuffled"),
    )
    lines = [curve(title, look, colour, rows, arm, lambda at: seen[at].left) for colour, (title, look, arm) in enumerate(drawn)]
    return [band("dense", len(drawn), mean(rows, "dense", 0)), *lines]


# Pictures


def _maps(done: Mapping[str, Done], seen: Mapping[str, dict[int, Seen]], level: int) -> list[Maps]:
    where = [picture for name, at in seen.items() for picture in _displacements(WORDS[name], at[level])]
    nodes = [picture for each in done.values() for picture in _features(each, level)]
    seed = min(seen[IMAGES][level].same)
    return [PAPER.maps("displacements", where, level=level), PAPER.maps("features", nodes, nodes=NODES, level=level, seed=seed)]


def _displacements(name: str, seen: Seen) -> list[Picture]:
    kinds = (("one channel", seen.same), ("two channels", seen.different), ("put back", seen.back))
    return [Picture(f"{name}: {kind}", _whole(together(found.values()).contrast(REACH))) for kind, found in kinds if found]


def together(found: Iterable[Pairs]) -> Pairs:
    """The pairs of several masks, counted together."""
    each = list(found)
    return Pairs(*(torch.stack([getattr(one, part) for one in each]).sum(0) for part in ("own", "shuffled", "others")))


def _features(done: Done, level: int) -> list[Picture]:
    """Weights of the most connected nodes of the first seed; with shuffled pixels, also put back."""
    seed = done.arm.config.seed
    name, kept = first_layer(done, mask_of(done, seed, level))
    trained = RunFolder(done.folder).weights(Arm(seed, "ticket", level), f"level {level}")
    weights = trained[name].float().view(kept.shape) * kept
    counts = kept.flatten(1).sum(1)
    nodes = counts.argsort(descending=True, stable=True)[:NODES]
    kinds = {WORDS[done.arm.name]: weights} | ({"put back": put_back(weights)} if done.arm.change is shuffled_pixels else {})
    return [Picture(f"{kind}: {int(counts[node])}", _scaled(each[node].sum(0))) for kind, each in kinds.items() for node in nodes]


def _scaled(values: Tensor) -> list[list[int]]:
    """Values relative to the largest of them."""
    return _whole(values / values.abs().max().clamp_min(torch.finfo(values.dtype).tiny))


def _whole(values: Tensor) -> list[list[int]]:
    """Values from -1 to 1 in percent."""
    rows: list[list[int]] = (100 * values).round().int().tolist()
    return rows
