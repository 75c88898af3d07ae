"""Laws of the study of single weights: P_m, stopping and gaps are what rows say; its claims have three answers; its searches are the paper's."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ltcompile as lt
from ltcompile import study
from ltcompile.core.plan import Group
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.study import Study
from ltcompile.errors import InvalidData
from ltcompile.graph import trace
from ltcompile.models.conv import PAIRS
from ltcompile.reporting.study import render
from ltcompile.search.job import CONVOLUTIONS
from ltcompile.search.masks import full_mask, layer_rates, maskable
from ltcompile.study import Done, StudyArm, lottery
from ltcompile.study._lottery_claims import NUMBERS, Said
from ltcompile.study.lottery import NEAR, SCALES, Spot, Subject, Subjects, analyse, curves_of, judge, nearest

WEIGHTS = 10_000
CPU = torch.device("cpu")
NOISE = (0.0, 0.02, -0.02, 0.01)


def row(seed: int, arm: str, level: int, left: float, test: float, *, stop: int = 10, train: float = 100.0) -> Trained:
    """`left` in percent of the weights, accuracies in points."""
    weights = round(WEIGHTS * left / 100)
    sizes = {"filters": round(4 * left), "params": weights + 10, "macs": round(1000 * left)}
    shares = {"train_accuracy": train / 100, "val_score": test / 100, "test_score": test / 100}
    rest: dict[str, Any] = {"epochs": 20, "seconds": 1.0, "train_loss": 0.1, "val_loss": 0.1, "val_correct": "ff", "weights": weights}
    return Trained(seed=seed, arm=arm, level=level, stop_epoch=stop, **sizes, **shares, **rest)  # type: ignore[arg-type]


def done(name: str, rows: list[Trained]) -> Done:
    arm = StudyArm(name, "lenet300", "digits", 8, None, lt.SearchConfig(), {})
    return Done(arm, rows, Verdict(1, "a rule", 0.5, 0.95, {}, [], {}, {}), Path("nowhere"), None)  # type: ignore[arg-type]  # it has no images


def search(left: list[float], *, gain: float, speed: float, gap: float, noise: tuple[float, ...] = NOISE) -> list[Trained]:
    """Tickets at shares `left` that are `gain` points better than the dense network and all controls, stop `speed` times as
    soon as those, and have a gap `gap` points wider."""
    rows = []
    for seed, jitter in enumerate(noise):
        rows.append(row(seed, "dense", 0, 100.0, 90.0, stop=120))
        for level, share in enumerate(left, start=1):
            test = 90.0 + gain + jitter
            rows.append(row(seed, "ticket", level, share, test, stop=round(120 / speed), train=test + 10 + gap + jitter))
            rows += [row(seed, arm, level, share, 90.0, stop=120) for arm in ("reinit", "shuffled")]
    return rows


SHARES = [50.0, 25.0, 22.0, 16.0, 12.0, 8.9, 4.6, 3.6, 2.0, 1.5]


def found(subject: Subject, **reported: Any) -> dict[str, Done]:
    """All searches of a subject, alike, but for those that its tickets are held against: these gain nothing."""
    own, other = search(SHARES, **reported), search(SHARES, **{**reported, "gain": 0.0})
    late = search(SHARES, **{**reported, "gain": 2 * reported["gain"]})
    searches = {subject.name: done(subject.name, own), f"{subject.name}-from-{subject.late}": done("late", late)}
    searches |= {
        f"{subject.name}-oneshot-{r}": done("shot", [r_ for r_ in _one(own, i, reported["gain"] / 2)])
        for i, r in enumerate(subject.shots, start=1)
    }
    return searches | ({subject.plain: done(subject.plain, other)} if subject.plain else {})


def _one(rows: list[Trained], i: int, gain: float) -> list[Trained]:
    """A one-shot search: one level, at 21 and 3.6 % in turn, with half the gain."""
    level = SHARES.index(22.0 if i % 2 else 3.6) + 1
    kept = [dataclasses.replace(r, level=min(r.level, 1)) for r in rows if r.level in (0, level)]
    return [dataclasses.replace(r, test_score=0.9 + gain / 100) if r.arm == "ticket" else r for r in kept]


@given(share=st.floats(0.5, 99), dense=st.floats(10, 99), other=st.floats(10, 99), stop=st.integers(1, 50))
def test_numbers_are_what_rows_say(share: float, dense: float, other: float, stop: int) -> None:
    rows = [row(0, "dense", 0, 100, dense, stop=7), row(0, "ticket", 1, share, other, stop=stop, train=99.0)]
    spot = Spot(rows, 1)
    assert spot.left == pytest.approx(share, abs=0.01)
    assert spot.eliminated("filters") == pytest.approx(100 - rows[1].filters / 4, abs=1e-9)
    assert spot.of("ticket", "stop") == {0: stop} and spot.of("dense", "stop") == {0: 7}
    assert spot.of("ticket", "gap")[0] == pytest.approx(99 - other) and spot.of("dense", "accuracy")[0] == pytest.approx(dense)


@given(left=st.lists(st.floats(0.1, 99), min_size=1, max_size=6), wanted=st.floats(0.1, 99))
def test_a_level_stands_for_a_share_that_is_near(left: list[float], wanted: float) -> None:
    rows = [row(0, "dense", 0, 100, 90), *(row(0, "ticket", level, share, 90) for level, share in enumerate(left, start=1))]
    spots = [Spot(rows, level) for level in range(1, len(left) + 1)]
    apart = [abs(math.log(spot.left / wanted)) for spot in spots]
    reported = nearest(spots, wanted)
    assert (reported is None) == (min(apart) > math.log(NEAR))
    assert reported is None or abs(math.log(reported.left / wanted)) == min(apart)
    assert nearest([], wanted) is None


FULL = SCALES["full"].subjects


@pytest.mark.parametrize("subject", FULL, ids=[subject.name for subject in FULL])
def test_claims_have_three_answers(subject: Subject) -> None:
    """Where rows are as in the paper claims hold, where they are the opposite they do not, and noise decides nothing."""

    def answers(**reported: Any) -> dict[Said, str]:
        curves = curves_of(subject, found(subject, **reported))
        judged = {said: judge(said, curves) for said in subject.said}
        return {said: claim.answer for said, claim in judged.items() if claim is not None}

    good = answers(gain=2.0, speed=3.0, gap=-3.0)
    bad = answers(gain=-2.0, speed=0.5, gap=3.0)
    loud = answers(gain=0.0, speed=1.0, gap=0.0, noise=(9.0, -9.0, 8.0, -8.0))
    assert set(good) == set(bad) == set(loud) == set(subject.said), "every share that is published is near a level"
    none_better = {said for said in subject.said if said.side == "below" and said.number != "gap"}
    for said in subject.said:
        reported = (good[said], bad[said])
        assert reported == (("does not hold", "holds") if said in none_better else ("holds", "does not hold"))
    assert set(loud.values()) == {"not decidable here"}


def test_the_back_of_the_hill_is_flat() -> None:
    """With 3.6 % LeNet is where the dense network is: neither better nor worse by half of what it had gained."""
    lenet = FULL[0]
    curves = curves_of(lenet, found(lenet, gain=0.05, speed=1.0, gap=0.0))
    claims = [judge(said, curves) for said in lenet.said if said.number == "gain" and said.left == 3.6]
    assert [claim.answer for claim in claims if claim] == ["holds", "holds"]


def test_one_seed_decides_nothing_and_far_levels_are_not_compared() -> None:
    lenet = dataclasses.replace(FULL[0], shots=(), late=None)
    rows = search([60.0, 36.0], gain=2.0, speed=2.0, gap=-1.0)
    far = analyse(Subjects(about="", subjects=(lenet,)), {"lenet300": done("lenet300", rows)}, CPU)
    assert far.claims == [] and all(said.statement in far.remarks[-1] for said in lenet.said)
    single = search(SHARES, gain=2.0, speed=2.0, gap=-1.0, noise=(0.0,))
    near = analyse(Subjects(about="", subjects=(lenet,)), {"lenet300": done("lenet300", single)}, CPU)
    assert near.claims and {claim.answer for claim in near.claims} == {"not decidable here"}


def test_tables_and_figures_show_every_level() -> None:
    lenet, plain = FULL[0], next(subject for subject in FULL if subject.name == "conv2")
    dropped = next(subject for subject in FULL if subject.plain == "conv2")
    reported: dict[str, Any] = {"gain": 1.0, "speed": 2.0, "gap": -1.0}
    searches = found(lenet, **reported) | found(dropped, **reported) | found(plain, **reported)
    page = analyse(Subjects(about="", subjects=(lenet, plain, dropped)), searches, CPU)
    assert [len(table.rows) for table in page.tables] == [1 + 2 * len(SHARES) + len(lenet.shots), 1 + len(SHARES), 1 + len(SHARES)]
    assert page.tables[0].rows[1][:4] == ["in rounds", "50.0", "50.0", "50.0"], "half of the units went with half of the weights"
    assert len(page.figures) == 9 and len({figure.name for figure in page.figures}) == 9
    for figure, lines in zip(page.figures[:3], (6, 6, 6), strict=True):
        assert len(figure.series) == lines and figure.log_x
        assert all(line.x == sorted(line.x, reverse=True) for line in figure.series)
        looks = [(line.look, line.colour) for line in figure.series]
        assert len(set(looks)) == len(looks), "no two lines look alike"
    assert page.figures[0].series[1].x == pytest.approx(SHARES) and page.figures[0].series[1].y == pytest.approx([91.0025] * len(SHARES))
    assert page.figures[1].series[1].y == pytest.approx([60.0] * len(SHARES)) and page.figures[1].series[0].y == [120.0]
    assert page.figures[-1].series[-1].name == "ticket of conv2"


# Which searches are run


@functools.cache
def traced(model: str, channels: int, side: int) -> tuple[nn.Module, tuple[Group, ...]]:
    network = lt.build_model(model, 10, channels, side)
    return network, trace(network, torch.zeros(2, channels, side, side))


def planned(arm: StudyArm) -> list[float]:
    """P_m in percent at every level of a search, by counts alone."""
    channels, side = (3 if arm.data == "cifar10" else 1), arm.image_size or (28 if arm.data == "mnist" else 32)
    network, groups = traced(arm.model, channels, side)
    mask = full_mask(maskable(network, arm.config, (*CONVOLUTIONS, nn.Linear)))
    drops = layer_rates(mask, arm.config, groups, arm.config.shares[0], arm.config.levels)
    counts = {name: kept.numel() for name, kept in mask.kept.items()}
    every = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    unmasked, found = every - sum(counts.values()), []
    for _ in arm.config.shares:
        counts = {name: count - math.floor(drops[name] * count) for name, count in counts.items()}
        found.append(100 * (unmasked + sum(counts.values())) / every)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["small", "full"])
def test_levels_reach_what_is_claimed(scale: str) -> None:
    """Beyond smoke, every claim is checked; by layer, rounds drop the published shares."""
    chosen = SCALES[scale]
    left = {arm.name: planned(arm) for arm in lottery.arms(chosen)}
    for subject in chosen.subjects:
        names = {
            "iterative": [subject.name],
            "oneshot": [f"{subject.name}-oneshot-{rounds}" for rounds in subject.shots],
            "late": [f"{subject.name}-from-{subject.late}"],
            "plain": [str(subject.plain)],
        }
        for said in subject.said:
            for curve, _ in (NUMBERS[said.number].ours, NUMBERS[said.number].theirs):
                shares = [share for name in names[curve] for share in left[name]]
                assert min(abs(math.log(share / said.left)) for share in shares) < math.log(NEAR), (subject.name, said.statement)
    if scale == "full":
        assert left["lenet300"][6] == pytest.approx(21.1, abs=0.2) and left["lenet300"][14] == pytest.approx(3.6, abs=0.1)
        assert left["conv2"][10] == pytest.approx(8.8, abs=0.3) and left["conv6"][9] == pytest.approx(15.1, abs=0.3)


def test_searches_are_of_three_kinds() -> None:
    subject = Subject(
        name="s", model="conv2", data="digits", rounds=3, rate=0.5, rates={"0|2": 0.2}, shots=(1, 3), late=2, recipe={"epochs": 4}
    )
    arms = {arm.name: arm for arm in lottery.arms(Subjects(about="", subjects=(subject,), seeds=2))}
    assert list(arms) == ["s", "s-oneshot-1", "s-oneshot-3", "s-from-2"]
    for arm in arms.values():
        assert arm.config.prune == "weights" and arm.config.rewind == "weight" and arm.config.full_curve and not arm.config.controls
    assert arms["s"].config.levels == 3 and arms["s-from-2"].config.rewind_epoch == 2 and arms["s"].config.rewind_epoch == 0
    assert arms["s-oneshot-3"].config.levels == 1 and arms["s-oneshot-3"].config.shares == [pytest.approx(1 - 0.5**3)]
    assert [arms[name].config.ratios["0|2"] for name in ("s", "s-oneshot-1", "s-oneshot-3")] == pytest.approx([0.488, 0.2, 0.488])
    other = lottery.arms(Subjects(about="", subjects=(subject,), data="mnist"))
    assert {arm.data for arm in other} == {"mnist"}, "data that is requested is for all subjects"


def test_recipes_of_the_paper() -> None:
    """Without warm-up where the paper has none; and dropout trains three times as long."""
    reported = {subject.name: subject for subject in FULL}
    assert {name for name, subject in reported.items() if subject.recipe["warmup_epochs"]} == {"vgg19-warm", "resnet-warm"}
    assert {subject.scope for name, subject in reported.items() if name.startswith(("vgg", "res"))} == {"global"}
    for name in PAIRS:
        assert reported[f"{name}-dropout"].recipe["epochs"] == 3 * reported[name].recipe["epochs"]
        assert reported[f"{name}-dropout"].plain == name


# Networks with dropout, and fewer images


@pytest.mark.parametrize("name", PAIRS)
def test_dropout_is_nothing_but_dropout(name: str) -> None:
    torch.manual_seed(0)
    plain = lt.build_model(name, 10, 3, 16)
    torch.manual_seed(0)
    dropping, x = lt.build_model(f"{name}-dropout", 10, 3, 16), torch.randn(4, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dropping.parameters(), strict=True)), "the same first weights"
    assert torch.equal(plain.eval()(x), dropping.eval()(x))
    dropping.train()
    assert not torch.equal(dropping(x), dropping(x))
    assert sum(isinstance(layer, nn.Dropout) for layer in dropping.modules()) == 2


def test_fewer_training_images_are_a_part_of_them_class_by_class() -> None:
    data = lt.load_data("digits", image_size=8)
    fewer = data.with_train_images(300)
    assert abs(len(fewer.train) - 300) <= 5 and fewer.val is data.val and fewer.test is data.test
    counts, whole = torch.bincount(fewer.train.labels), torch.bincount(data.train.labels)
    assert (counts - whole * 300 / len(data.train)).abs().max() <= 0.5
    assert fewer.description.name == f"digits, {len(fewer.train)} training images"
    assert torch.equal(fewer.train.labels, data.with_train_images(300).train.labels)
    assert data.with_train_images(10**6) is data

    def images(of: lt.Dataset) -> set[bytes]:
        return {image.numpy().tobytes() for batch, _ in of.train.batches(64, CPU, None, 0) for image in batch.contiguous()}

    assert images(fewer) <= images(data), "normalised as all are"


def test_streamed_images_are_not_taken_in_part() -> None:
    class Streamed:
        def __len__(self) -> int:
            return 10**6

    data = dataclasses.replace(lt.load_data("digits", image_size=8), train=Streamed())  # type: ignore[arg-type]
    with pytest.raises(InvalidData, match="trains on all of its images"):
        data.with_train_images(300)


# One run, in seconds


@pytest.mark.slow
def test_a_run_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**SCALES["smoke"].subjects[0].recipe, "epochs": 2, "lr": 0.05}
    subject = dataclasses.replace(SCALES["smoke"].subjects[0], train_images=200, rounds=2, rate=0.8, shots=(2,), late=1, recipe=recipe)
    monkeypatch.setitem(SCALES, "smoke", Subjects(about="tiny", subjects=(subject,), seeds=2))
    folder = tmp_path / "study"
    reported = study.run("lottery", folder=folder)
    assert reported == Study.load(folder / "study.json") and reported.seeds == [0, 1]
    assert {note.name for note in reported.arms} == {"lenet300", "lenet300-oneshot-2", "lenet300-from-1"}
    assert all(note.images["train"] < 210 and note.data.endswith("training images") for note in reported.arms)
    assert {claim.answer for claim in reported.claims} <= {"holds", "does not hold", "not decidable here"} and len(reported.claims) >= 5
    left = [float(cells[1]) for cells in reported.tables[0].rows[1:3]]
    assert left == pytest.approx([20.5, 4.5], abs=1.0), "a fifth is left twice over, more of the output layer"
    page = render(reported)
    assert all(f'data-figure="{figure.name}"' in page for figure in reported.figures)
    again = study.run("lottery", folder=folder, resume=True)
    assert (again.claims, again.tables, again.figures) == (reported.claims, reported.tables, reported.figures)
