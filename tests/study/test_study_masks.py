"""What is reported of masks and of tasks: claims follow from what was seen, and what is seen is what the run folders hold."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ltcompile as lt
from ltcompile import study
from ltcompile.benchmark.similarity import Answers
from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.study import Claim, Study
from ltcompile.errors import InvalidData, InvalidPlan, TicketMismatch, UnknownName
from ltcompile.study import Done, StudyArm, masks, transfer
from ltcompile.study._networks import mask, network, weights
from ltcompile.study.masks import ARMS, Seen, Structure

SEEDS = range(3)
LABELS = torch.arange(10) % 2


def answers(right: int) -> Answers:
    """So many of ten images right, all with the same confidence."""
    said = torch.where(torch.arange(10) < right, LABELS, 1 - LABELS)
    return Answers(torch.nn.functional.one_hot(said, 2).double() * 0.8 + 0.1, LABELS)


def seen(
    filters: int, last: float, *, kept: list[bool] | None = None, right: int = 5, empty: int = 0, chance: int = 0, steady: float = 0.5
) -> Seen:
    """A search of so many levels, whose accuracy falls from 90 to `last`; ten filters, of which so many are empty in the end."""
    levels = range(filters + 1)
    accuracy = {level: 90 - (90 - last) * level / filters for level in levels}
    structure = {
        level: Structure({"0.weight": empty * level // filters}, {"0.weight": chance * level // filters}, {"0.weight": 10}, ("0.weight",))
        for level in levels
    }
    found = WeightMask({"0.weight": torch.tensor(kept or [True, False, True, False]).view(4, 1, 1, 1)})
    return Seen(
        {lv: 100 * 0.5**lv for lv in levels}, accuracy, accuracy, structure, dict.fromkeys(levels[1:], steady), found, answers(right)
    )


def everything(**changes: dict[str, Any]) -> dict[str, dict[int, Seen]]:
    """All searches over seeds: filters in one round, weights in two; `changes` by arm, with underscores."""
    found = {}
    for name, (_, requested) in ARMS.items():
        reported = {"filters": 2 if requested.get("prune") == "weights" else 1, "last": 50.0, **changes.get(name.replace("-", "_"), {})}
        found[name] = {seed: dataclasses.replace(seen(**reported)) for seed in SEEDS}
    return found


def claims_of(**changes: dict[str, Any]) -> dict[str, Claim]:
    return {claim.statement: claim for claim in masks.compare(everything(**changes)).claims}


def claim_of(start: str, **changes: dict[str, Any]) -> Claim:
    return next(claim for statement, claim in claims_of(**changes).items() if statement.startswith(start))


class TestClaimsOfMasks:
    @pytest.mark.parametrize(("filters", "answer"), [(70.0, "holds"), (30.0, "does not hold"), (50.0, "not decidable here")])
    def test_random_pruning(self, filters: float, answer: str) -> None:
        """Compared where about as many weights are left: level k of filters, 2k of weights."""
        found = claim_of("Pruning random filters", random_filters={"last": filters}, random_weights={"last": 50.0})
        assert found.answer == answer and found.found.mean == pytest.approx(filters - 50)

    def test_empty_filters_count_beyond_chance(self) -> None:
        start = "Pruning weights by magnitude, with weight rewinding"
        assert claim_of(start, l1_weights={"empty": 6, "chance": 1}).found.mean == pytest.approx(50)
        assert claim_of(start, l1_weights={"empty": 3, "chance": 4}).answer == "does not hold"
        assert claim_of(start, l1_weights={"empty": 3, "chance": 3}).answer == "not decidable here"

    def test_rewinding_against_fine_tuning(self) -> None:
        both = {"l1_weights": {"empty": 6}, "l1_weights_finetune": {"empty": 2}}
        assert claim_of("Fine-tuning in place", **both).found.mean == pytest.approx(40)
        assert claim_of("Fine-tuning in place", l1_weights_finetune={"empty": 2}).answer == "does not hold"

    def test_masks_that_are_one_are_not_different(self) -> None:
        assert claim_of("Trainable sparse networks").answer == "does not hold"
        other = {"kept": [False, True, False, True]}
        assert claim_of("Trainable sparse networks", l1_weights=other).found.mean == 1

    def test_ensembles(self) -> None:
        """The best by validation has them all right; three together are two for it, all are ten against."""
        strong = {name: {"last": 80.0, "right": 10} for name in ("hybrid", "fc_only")}
        weak = {name.replace("-", "_"): {"right": 0} for name in ARMS if name.replace("-", "_") not in strong}
        alone, best = "Tickets of all criteria know more", "The best 3 together"
        assert claim_of(alone, **strong, **weak).found.mean == -100 and claim_of(best, **strong, **weak).found.mean == 100
        assert claim_of(alone).answer == "not decidable here"

    def test_stability(self) -> None:
        assert claim_of("Weights are steadier", l1_weights={"steady": 0.9}).found.mean == pytest.approx(0.4)

    def test_tables_hold_every_pair_and_layer(self) -> None:
        reported = masks.compare(everything())
        tables = {table.title: table for table in reported.tables}
        assert len(tables["Pairs of tickets"].rows) == len(ARMS) * (len(ARMS) - 1) // 2
        assert "distance in 0.weight" in tables["Pairs of tickets"].columns
        assert len(tables["The sparsest tickets of each search"].rows) == len(ARMS)
        drawn = {line.name for figure in reported.figures for line in figure.series}
        assert {title for title, _ in ARMS.values()} <= drawn


def test_structure_counts_filters_without_weights() -> None:
    kept = torch.ones(4, 2, 3, 3, dtype=torch.bool)
    kept[1], kept[3, 0] = False, False
    linear = torch.zeros(5, 4, dtype=torch.bool)
    linear[0, 0] = True
    found = masks._structure(WeightMask({"0.weight": kept, "1.weight": linear}), 0)
    assert found.empty == {"0.weight": 1, "1.weight": 4} and found.all == {"0.weight": 4, "1.weight": 5}
    assert found.share() == 25 and found.by_chance["1.weight"] == 4, "one weight is in one unit wherever it is"


def test_what_stays_correlates_with_itself() -> None:
    values = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}
    kept = WeightMask({"w": torch.arange(12).view(3, 4) % 3 > 0})

    def against(other: Tensor) -> float:
        return masks._correlation(values, {"w": other}, kept)

    assert against(2 * values["w"] + 1) == pytest.approx(1) and against(-values["w"]) == pytest.approx(-1)
    assert against(torch.where(kept.kept["w"], values["w"], 99.0)) == pytest.approx(1), "what is dropped does not count"
    assert against(torch.zeros(3, 4)) == 0


class TestArms:
    @pytest.mark.parametrize("scale", masks.SCALES.values())
    def test_all_ways_to_prune_are_searched(self, scale: masks.Rounds) -> None:
        found = {arm.name: arm.config for arm in masks.arms(scale)}
        assert {"l1", "l2", "linf", "neg_linf", "random"} == {c.criterion for c in found.values() if c.prune == "filters"}
        assert all(c.scope == ("global" if name.endswith("global") else "local") for name, c in found.items())
        assert found["fc-only"].only == ("7", "9", "11") and found["l1-weights-finetune"].rewind == "finetune"
        for config in found.values():
            levels = (1 - scale.rate) ** config.levels
            assert config.prune == "hybrid" or levels == pytest.approx(
                (1 - scale.rate) ** (scale.rounds * (1 + (config.prune == "weights")))
            )

    @pytest.mark.parametrize(("module", "size"), [(module, size) for module in (masks, transfer) for size in module.SCALES])
    def test_all_scales_name_folders_of_their_own(self, module: Any, size: str) -> None:
        names = [arm.name for arm in module.arms(module.SCALES[size])]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)


QUICK = {"epochs": 1, "lr": 0.05, "crop_pixels": 0}


def shrunk(monkeypatch: pytest.MonkeyPatch, module: Any, **changes: Any) -> None:
    scale = dataclasses.replace(module.SCALES["smoke"], recipe=QUICK, **changes)
    monkeypatch.setattr(module, "SCALES", {**module.SCALES, "smoke": scale})


@pytest.mark.slow
class TestMasksOnDigits:
    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
        folder = tmp_path_factory.mktemp("masks") / "m"
        with pytest.MonkeyPatch.context() as patch:
            shrunk(patch, masks, rounds=1)
            return study.run("masks", "smoke", folder=folder, seeds=1, device="cpu"), folder

    def test_it_is_reported(self, finished: tuple[Study, Path]) -> None:
        found, folder = finished
        assert Study.load(folder / "study.json") == found
        assert len(found.arms) == len(ARMS) and {claim.answer for claim in found.claims} == {"not decidable here"}, "of one seed"
        assert len(found.figures) == 5

    def test_resuming_reports_the_same(self, finished: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        found, folder = finished
        shrunk(monkeypatch, masks, rounds=1)
        again = study.run("masks", "smoke", folder=folder, seeds=1, device="cpu", resume=True)
        assert (again.claims, again.tables) == (found.claims, found.tables)

    @pytest.mark.parametrize("name", ["l1-filters", "l1-weights", "hybrid", "fc-only"])
    def test_networks_are_what_their_searches_tested(self, finished: tuple[Study, Path], name: str) -> None:
        _, folder = finished
        arm = next(arm for arm in masks.arms(dataclasses.replace(masks.SCALES["smoke"], rounds=1)) if arm.name == name)
        ticket = lt.Ticket.load(folder / name / "ticket.pt")
        done = Done(arm, ticket.history, ticket.verdict, folder / name, lt.load_data("digits", image_size=16))
        last = masks.look(done, 0, torch.device("cpu"))
        row = next(row for row in ticket.history if (row.arm, row.level) == ("ticket", ticket.level))
        assert last.test[row.level] == pytest.approx(100 * (row.test_score or 0))
        for level in last.stability:
            kept, values = mask(done, 0, level), weights(done, 0, level)
            assert all(not values[layer][~each].any() for layer, each in kept.kept.items()), "zeros where nothing is kept"
            if row.weights is not None and row.level == level:
                assert kept.weights[1] == row.weights
        whole = network(done, 0, 0)
        assert sum(p.numel() for p in whole.parameters() if p.dim() > 1) == mask(done, 0, 0).weights[1]


# Tasks


def row(seed: int, arm: str, level: int, test: float, kept: int) -> Trained:
    return Trained(seed, arm, level, 10, 100, 100, 5, 1.0, 0.1, 0.9, 0.1, test / 100, "ff", 4, test / 100, kept)  # type: ignore[arg-type]


def search(name: str, seeds: range, **levels: dict[int, tuple[float, int]]) -> Done:
    """Arm -> level -> accuracy in points, and weights left of 1000."""
    rows = [row(seed, arm, level, *reported) for seed in seeds for arm, by in levels.items() for level, reported in by.items()]
    arm = StudyArm(name, "lenet5", "digits", 16, None, lt.SearchConfig(), {})
    return Done(arm, rows, Verdict(1, "", 0.5, 0.95, {}, [], {}, {}), Path("nowhere"), None)  # type: ignore[arg-type]


def handed_on(**given: tuple[float, float, int]) -> dict[str, Done]:
    """Way -> accuracy of its mask, that of the mask shuffled, weights left; the own tickets keep 600, 300 and 100 of 1000."""
    levels = {1: (90.0, 600), 2: (80.0, 300), 3: (70.0, 100)}
    done = {transfer.TARGET: search(transfer.TARGET, SEEDS, dense={0: (92.0, 1000)}, ticket=levels, shuffled=levels, reinit=levels)}
    for way in transfer.WAYS:
        ticket, shuffled, kept = given.get(way, (75.0, 75.0, 290))
        for seed in SEEDS:
            arms = {"ticket": {1: (ticket, kept)}, "shuffled": {1: (shuffled, kept)}, "reinit": {1: (50.0, kept)}}
            done[f"{way}-seed{seed}"] = search(way, range(seed, seed + 1), dense={0: (92.0, 1000)}, **arms)
    return done


class TestClaimsOfTasks:
    def test_each_way_is_compared_with_its_controls(self) -> None:
        reported = transfer.compare(handed_on(majority=(85.0, 60.0, 290), intersection=(69.8, 80.0, 110)), 0.5)
        found = {claim.statement: claim for claim in reported.claims}
        most, every = "What most of three other tasks keep", "What all of three other tasks keep"
        assert found[f"{most} is a better mask than a random one of its counts"].found.mean == pytest.approx(25)
        assert found[f"{most} is about as good as the task's own ticket"].found.mean == pytest.approx(5), "next to level 2"
        assert found[f"{most} is about as good as the dense network"].answer == "does not hold"
        assert found[f"{every} is about as good as the task's own ticket"].found.mean == pytest.approx(-0.2), "next to level 3"
        assert found[f"{every} is about as good as the task's own ticket"].answer == "holds", "within the margin"
        assert found[f"{every} is a better mask than a random one of its counts"].answer == "does not hold"
        assert found["What most keep is a better mask than one task's"].found.mean == pytest.approx(10)
        assert len(reported.tables[0].rows) == 1 + 3 + 3


@pytest.mark.slow
class TestTasks:
    def test_classes_are_dealt_out(self) -> None:
        digits = lt.load_data("digits", image_size=16)
        tasks = [transfer.task(digits, number) for number in range(transfer.TASKS)]
        for number, each in enumerate(tasks):
            assert each.description.class_names == (str(2 * number), str(2 * number + 1))
            assert set(each.train.labels.tolist()) == {0, 1} and each.description.mean == digits.description.mean
        assert len({each.description.name for each in tasks}) == transfer.TASKS
        images, labels = next(iter(digits.test.batches(len(digits.test), torch.device("cpu"), None, 0)))
        mine, reported = next(iter(tasks[1].test.batches(len(digits.test), torch.device("cpu"), None, 0)))
        assert torch.equal(mine, images[(labels == 2) | (labels == 3)]) and torch.equal(reported + 2, labels[(labels == 2) | (labels == 3)])

    def test_too_few_classes_are_refused(self) -> None:
        with pytest.raises(InvalidData, match="at least two classes each"):
            transfer.task(transfer.task(lt.load_data("digits", image_size=16), 0), 0)

    def test_it_runs_on_digits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shrunk(monkeypatch, transfer, rounds=1)
        found = study.run("transfer", "smoke", folder=tmp_path / "t", seeds=1, device="cpu")
        assert len(found.claims) == 11 and found.seeds == [0]
        kept = {name: WeightMask.load(tmp_path / f"t/{name}/seed0/mask-1.pt") for name in (*transfer.SOURCES, "intersection-seed0")}
        own = [kept[name].kept["3.weight"] for name in transfer.SOURCES]
        assert torch.equal(kept["intersection-seed0"].kept["3.weight"], own[0] & own[1] & own[2])
        digits = lt.load_data("digits", image_size=16)
        with pytest.raises(TicketMismatch, match="data"):
            lt.find("lenet5", digits, lt.SearchConfig(), folder=tmp_path / "t/task-1", resume=True)

    def test_masks_without_anything_in_common(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = torch.tensor([[True, False], [False, False]])
        found = iter([WeightMask({"w": one}), WeightMask({"w": one.T}), WeightMask({"w": one.flip(0)})])
        monkeypatch.setattr(transfer, "mask", lambda done, seed, level: next(found))
        done = {name: search(name, SEEDS, ticket={1: (50.0, 1)}) for name in transfer.SOURCES}
        with pytest.raises(InvalidPlan, match="keeps no weight"):
            transfer._in_common("intersection", 0, done)


def test_both_studies_are_listed() -> None:
    assert {"masks", "transfer"} <= set(study.names())
    with pytest.raises(UnknownName, match="Did you mean masks"):
        study.load("mask")
