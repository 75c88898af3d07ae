"""Laws of studies: a claim is what its interval says; resuming is doing again what is not done; a page shows, and obeys nothing."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from commands import call, refused
from hypothesis import given
from hypothesis import strategies as st
from pages import HOSTILE, Page, example
from scipy import stats
from studies import some_study

import ltcompile as lt
from ltcompile import study
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.study import Claim, Estimate, Study
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch, UnknownName
from ltcompile.graph import trace
from ltcompile.models import default_recipe, least_size
from ltcompile.reporting.study import draw, render
from ltcompile.search import data_for
from ltcompile.search.conditions import Margins, conditions_met, margins_of, prize
from ltcompile.study import Done, StudyArm, sanity, structured_tickets
from ltcompile.study._latency import Latency, Timed
from ltcompile.study._searches import recipe_of
from ltcompile.study._statistics import averaged, estimate, paired

QUICK = {"epochs": 1, "lr": 0.05, "crop_pixels": 0}
POINTS = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def trained(seed: int, arm: str, level: int, accuracy: float, test: float | None = None) -> Trained:
    """Accuracies in points; every level has half the MACs of the one before."""
    sizes = (100 - 20 * level, 1000 // 2**level, 1 << (20 - level))
    shares = accuracy / 100, "ff", 4, (accuracy if test is None else test) / 100
    return Trained(seed, arm, level, *sizes, 5, 1.0, 0.1, 0.99, 0.1, *shares)  # type: ignore[arg-type]


def search(**accuracies: Any) -> list[Trained]:
    """Rows over seeds: of the dense network `dense=[...]`, of other arms by level, `ticket={1: [...]}`."""
    rows = [trained(seed, "dense", 0, value) for seed, value in enumerate(accuracies.pop("dense"))]
    for arm, levels in accuracies.items():
        rows += [trained(seed, arm, level, value) for level, values in levels.items() for seed, value in enumerate(values)]
    return rows


def done(name: str, rows: list[Trained], config: lt.SearchConfig | None = None, **recipe: float) -> Done:
    verdict = Verdict(1, "a rule", 0.5, 0.95, {}, ["a line"], {"1": True}, {})
    arm = StudyArm(name, "lenet5", "digits", 16, None, config or lt.SearchConfig(), recipe)
    return Done(arm, rows, verdict, Path("nowhere"), None)  # type: ignore[arg-type]  # it has no images


class TestStatistics:
    @given(values=POINTS)
    def test_intervals_are_students(self, values: list[float]) -> None:
        found, n = estimate(values), len(values)
        half = stats.t.ppf(0.975, n - 1) * stdev(values) / math.sqrt(n)
        assert found.seeds == n and found.mean == pytest.approx(fmean(values))
        assert (found.low, found.high) == (pytest.approx(found.mean - half), pytest.approx(found.mean + half))

    @given(gap=st.floats(-5, 5), shared=st.lists(st.floats(0, 90), min_size=3, max_size=5))
    def test_what_seeds_share_is_no_spread_of_their_difference(self, gap: float, shared: list[float]) -> None:
        theirs = dict(enumerate(shared))
        found = paired({seed: value + gap for seed, value in theirs.items()}, theirs)
        assert found.mean == pytest.approx(gap, abs=1e-9)
        assert found.high is not None and found.high - found.mean < 1e-9

    def test_only_seeds_of_both_are_paired(self) -> None:
        assert paired({0: 1.0, 1: 2.0, 7: 50.0}, {1: 1.0, 0: 0.0, 3: 9.0}) == estimate([1.0, 1.0])
        assert averaged([{0: 1.0, 1: 3.0}, {1: 5.0, 2: 0.0}]) == {1: 4.0}

    def test_one_seed_has_no_interval(self) -> None:
        assert estimate([3.0]) == Estimate(3.0, None, None, 1)


def claim(values: list[float], side: Any = "above", bound: float = 0.0) -> Claim:
    return Claim.judged("a thing is so", "a paper", "a - b", estimate(values), side, bound)


class TestClaims:
    @pytest.mark.parametrize(
        ("values", "above", "below"),
        [
            ([1.0, 1.1, 0.9], "holds", "does not hold"),
            ([-1.0, -1.1, -0.9], "does not hold", "holds"),
            ([1.0, -1.0, 0.4], "not decidable here", "not decidable here"),
        ],
    )
    def test_the_three_answers(self, values: list[float], above: str, below: str) -> None:
        assert (claim(values).answer, claim(values, "below").answer) == (above, below)
        assert claim(values).note == "" and "95 %" in claim(values).rule

    @given(values=POINTS, bound=st.floats(-100, 100))
    def test_the_sides_are_opposites(self, values: list[float], bound: float) -> None:
        opposite = {"holds": "does not hold", "does not hold": "holds", "not decidable here": "not decidable here"}
        assert claim(values, "below", bound).answer == opposite[claim(values, "above", bound).answer]

    def test_few_seeds_are_reported_and_one_decides_nothing(self) -> None:
        assert claim([50.0]).answer == "not decidable here" and "1 seed only" in claim([50.0]).note
        assert "2 seeds only" in claim([5.0, 5.1]).note

    def test_an_answer_that_is_not_the_intervals_is_refused(self) -> None:
        with pytest.raises(InvalidFile, match="its interval says"):
            dataclasses.replace(claim([1.0, 1.1, 0.9]), answer="does not hold")
        with pytest.raises(InvalidFile, match="not inside its interval"):
            Estimate(5.0, 1.0, 2.0, 3)


class TestConditions:
    """Ma et al. 2021, by means over seeds of validation accuracy."""

    MET = search(dense=[90.0], ticket={1: [90.2]}, reinit={1: [85.0]}, dense_budget={1: [90.1]})

    def test_the_prizes(self) -> None:
        met = conditions_met(self.MET, 1, Margins())
        assert met.prize == "jackpot" and all(met.flags.values()) and len(met.flags) == 5
        best = search(dense=[95.0], ticket={1: [80.0]}, reinit={1: [70.0]}, dense_budget={1: [95.0]})
        assert conditions_met(self.MET, 1, Margins(), [best]).prize == "secondary prize", "the dense network's best recipe is another"
        assert conditions_met(self.MET[:2], 1, Margins()).prize == "not tested"
        assert prize({"1": None, "2": False, "3": True, "4": True, "5": True}) == "none"

    def test_random_weights_at_any_rate_count(self) -> None:
        other = search(dense=[80.0], ticket={1: [80.0]}, reinit={1: [90.5]}, dense_budget={1: [80.0]})
        met = conditions_met(self.MET, 1, Margins(), [other])
        assert conditions_met(self.MET, 1, Margins()).flags["3"] and not met.flags["3"] and not met.flags["2"]
        assert "2 learning rates" in met.reasons["3"]

    def test_the_best_control_is_the_one_to_beat(self) -> None:
        longer = [*self.MET, trained(0, "random", 1, 90.1)]
        assert not conditions_met(longer, 1, Margins()).flags["2"] and conditions_met(longer, 1, Margins()).flags["3"]

    @pytest.mark.parametrize(
        ("data", "about"),
        [
            ("cifar10", 0.5),
            ("cifar100", 1.0),
            ("imagefolder:/data/tiny-imagenet-200", 1.0),
            ("imagefolder:ImageNet/", 1.5),
            ("digits", 0.5),
            ("imagefolder:imagenette", 0.5),
        ],
    )
    def test_margins_by_data(self, data: str, about: float) -> None:
        assert margins_of(data) == Margins(about, 0.5)

    def test_margins_decide(self) -> None:
        behind = search(dense=[90.0], ticket={1: [89.2]}, reinit={1: [80.0]}, dense_budget={1: [90.0]})
        assert not conditions_met(behind, 1, margins_of("cifar10")).flags["4"]
        assert conditions_met(behind, 1, margins_of("cifar100")).prize == "jackpot"

    def test_a_trivial_sparsity_wins_nothing(self) -> None:
        same = [dataclasses.replace(row, macs=1 << 20) for row in self.MET]
        assert not conditions_met(same, 1, Margins()).flags["1"]

    def test_of_masks_weights_count(self) -> None:
        masked = [dataclasses.replace(row, macs=1 << 20, weights=500 if row.level else None) for row in self.MET]
        assert conditions_met(masked, 1, Margins()).flags["1"]


def test_there_are_studies() -> None:
    assert {"structured-tickets", "sanity"} <= set(study.names())
    with pytest.raises(UnknownName, match="structured-tickets"):
        study.load("structured-ticket")
    assert study.load("structured_tickets") is study.load("structured-tickets") is structured_tickets


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [(name, scale) for name in study.names() for scale in study.load(name).SCALES])
def test_every_study_has_every_scale(name: str, scale: str) -> None:
    """Its searches are possible: recipes are whole, and no level empties a layer."""
    module = study.load(name)
    assert {"smoke", "small", "full"} <= set(module.SCALES) <= set(study.SIZES) and module.TITLE and module.SOURCE
    chosen = study.scaled(module, scale, seeds=4)
    arms = module.arms(chosen)
    assert len({arm.name for arm in arms}) == len(arms) > 0 and chosen.about
    for arm in arms:
        assert arm.config.seeds == (4 if arm.mask is None else 1) and arm.config.margin_points == margins_of(arm.data).about
        recipe = dataclasses.replace(default_recipe(arm.model), **arm.recipe)
        assert arm.config.rewind_epoch < recipe.epochs
        channels, side = (3 if "cifar" in arm.data else 1), arm.image_size or max(28 if arm.data == "mnist" else 32, least_size(arm.model))
        network = lt.build_model(arm.model, 10, channels, side)
        arm.config.check_fits(arm.config.freeze(trace(network, torch.zeros(2, channels, side, side))))


def test_scales_are_checked() -> None:
    with pytest.raises(UnknownName, match="smoke, small, full"):
        study.scaled(sanity, "large")
    with pytest.raises(InvalidSetting, match="at least 1 seed"):
        study.scaled(sanity, "smoke", seeds=0)
    assert study.scaled(sanity, "smoke", data="mnist").data == "mnist"


# What studies say of rows that are known


def regimes(**gaps: float) -> dict[str, Done]:
    """Four searches at two levels; each ticket is so many points from its dense network, whose random weights are 3 below it."""
    found = {}
    for name in structured_tickets.REGIMES:
        dense, gap = [90.0, 90.4, 90.2], gaps[name.replace("-", "_")]
        jitter = [0.0, 0.05, -0.05]
        ticket = {level: [d + gap + j for d, j in zip(dense, jitter, strict=True)] for level in (1, 2, 3)}
        found[name] = done(name, search(dense=dense, ticket=ticket, reinit={level: [d - 3.0 for d in dense] for level in ticket}))
    return found


TIMING = Timed({level: Latency(80.0 / level, 75.0 / level, 85.0 / level) for level in (1, 2, 3)}, "onnxruntime, cpu, batch 64", 0.0)


def answers(claims: list[Claim]) -> dict[str, str]:
    return {each.statement: each.answer for each in claims}


def test_structured_tickets_repeats_the_paper_where_rows_do() -> None:
    """Rows as in the paper, but for global weight rewinding, which wins at high levels here as it does at low ones."""
    searches = regimes(local_weight=-2, local_lr=-1.5, global_weight=-3.2, global_lr=1)
    reported = structured_tickets.compare(searches, dict.fromkeys(searches, TIMING), 0.5)
    said = answers(reported.claims)
    assert said.pop("Global pruning with weight rewinding finds tickets at low levels") == "does not hold"
    assert set(said.values()) == {"holds"} and len(said) == 9
    winners = {row[0]: row[1:4] for row in reported.tables[0].rows}
    assert winners["global, learning-rate rewinding"] == ["3", "0", "0"] and winners["local, weight rewinding"] == ["0", "0", "3"]
    assert reported.tables[0].rows[3][4:] == ["60.0", "87.5", "87.5", "73.3"], "what the smallest winner saves"


def test_the_smallest_winner_stands_before_the_first_that_does_not_win() -> None:
    searches = regimes(local_weight=0, local_lr=1, global_weight=1, global_lr=1)
    rows = [dataclasses.replace(r, val_score=0.5) if (r.arm, r.level) == ("ticket", 2) else r for r in searches["global-lr"].rows]
    searches["global-lr"] = done("global-lr", rows)
    reported = structured_tickets.compare(searches, dict.fromkeys(searches, TIMING), 0.5).tables[0].rows[3]
    assert reported[1:4] == ["2", "0", "1"] and reported[4:] == ["20.0", "50.0", "50.0", "20.0"], "level 1: level 3 is behind a failure"


def test_structured_tickets_contradicts_the_paper_where_rows_do() -> None:
    searches = regimes(local_weight=0, local_lr=1, global_weight=0.2, global_lr=-2)
    said = answers(structured_tickets.compare(searches, dict.fromkeys(searches, TIMING), 0.5).claims)
    assert said.pop("Global pruning with weight rewinding finds tickets at low levels") == "holds"
    assert set(said.values()) == {"does not hold"}


def test_structured_tickets_picks_without_the_test_set() -> None:
    """The test accuracy is best at level 3, validation at level 1: that one is reported."""
    searches = regimes(local_weight=0, local_lr=0, global_weight=0, global_lr=0)
    best = searches["global-lr"]
    changed = [
        dataclasses.replace(row, val_score=0.95 if row.level == 1 else 0.8, test_score=0.7 if row.level == 1 else 0.99)
        if row.arm == "ticket"
        else row
        for row in best.rows
    ]
    searches["global-lr"] = dataclasses.replace(best, rows=changed)
    reported = structured_tickets.compare(searches, dict.fromkeys(searches, TIMING), 0.5)
    found = next(each for each in reported.claims if "beats the dense network" in each.statement)
    assert found.found.mean == pytest.approx(70 - 90.2) and "(20 % of the filters removed)" in found.number


def test_structured_tickets_draws_what_the_paper_lacks() -> None:
    searches = regimes(local_weight=-2, local_lr=-1, global_weight=0, global_lr=1)
    drawn = {figure.name: figure for figure in structured_tickets.compare(searches, dict.fromkeys(searches, TIMING), 0.5).figures}
    assert set(drawn) == {"filters-local", "filters-global", "macs", "latency"}
    assert [series.x for series in drawn["macs"].series[1:]] == [[50.0, 25.0, 12.5]] * 4
    assert drawn["latency"].series[1].x == [80.0, 40.0, 80 / 3] and drawn["latency"].series[1].x_low == [75.0, 37.5, 25.0]
    assert {series.look for series in drawn["filters-local"].series} == {"band", "line", "control"}


def rates(low_gain: float, high_gain: float, **high: float) -> dict[str, Done]:
    """Two rates: the higher has the better dense network, and tickets so far ahead of random weights."""
    found = {}
    for name, lr, dense, gain in (("lr-0.01", 0.01, 85.0, low_gain), ("lr-0.1", 0.1, 90.0, high_gain)):
        ticket = {level: [dense + high.get("gap", 0.2) + j for j in (0.0, 0.1, -0.1)] for level in (1, 2)}
        random = {level: [value - gain for value in values] for level, values in ticket.items()}
        rows = search(dense=[dense, dense + 0.1, dense - 0.1], ticket=ticket, reinit=random, dense_budget={1: [dense] * 3})
        found[name] = done(name, rows, lr=lr)
    return found


def test_sanity_finds_a_jackpot_and_its_absence() -> None:
    found = sanity.analyse(sanity.SCALES["full"], rates(2.0, 1.0), torch.device("cpu"))
    said = answers(found.claims)
    assert said.pop("There is no clear jackpot") == "does not hold" and set(said.values()) == {"holds"} and len(said) == 5
    assert {row[-4] for row in found.tables[0].rows} == {"jackpot"}
    found = sanity.analyse(sanity.SCALES["full"], rates(2.0, 0.0), torch.device("cpu"))
    assert answers(found.claims)["There is no clear jackpot"] == "holds"
    assert {row[-4] for row in found.tables[0].rows} == {"none"}


def test_sanity_lets_every_rival_have_its_best_rate() -> None:
    """At the low rate, the ticket is far ahead of random weights, and 5 points behind those of the high rate."""
    found = sanity.judge(rates(20.0, -0.2), 1, Margins())
    assert (found.control, found.dense) == ("lr-0.1", "lr-0.1") and not found.met.flags["3"]


# Whole studies, of seconds


@pytest.fixture(scope="module")
def shrunk() -> Iterator[None]:
    """Smoke in seconds."""
    small = {"recipe": QUICK, "seeds": 2, "rounds": 1, "train_images": 400}
    smoke = dataclasses.replace(structured_tickets.SCALES["smoke"], seconds_per_network=0.05, **small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(structured_tickets.SCALES, "smoke", smoke)
        patch.setitem(sanity.SCALES, "smoke", dataclasses.replace(sanity.SCALES["smoke"], **small))
        yield


class Note:
    """Notes the trainings that begin, and stops before the one that is `last`."""

    def __init__(self, last: int = 0) -> None:
        self.trained, self.last = list[tuple[int, str]](), last

    def __call__(self, arm: StudyArm, recipe: Recipe) -> Note:
        return self

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        self.trained.append((seed, arm))
        if len(self.trained) == self.last:
            raise KeyboardInterrupt

    def epoch(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...


Whole = tuple[Path, Study, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def whole(shrunk: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """A study of a name that has run: its folder, what it found, and the trainings that it began."""

    @functools.cache
    def of(name: str) -> Whole:
        folder, note = tmp_path_factory.mktemp(name) / "s", Note()
        return folder, study.run(name, folder=folder, listen=note), note.trained

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["structured-tickets", "sanity"])
def test_a_study_from_beginning_to_end(whole: Callable[[str], Whole], name: str) -> None:
    folder, found, _ = whole(name)
    assert Study.load(folder / "study.json") == found
    assert {arm.name for arm in found.arms} == {path.parent.name for path in folder.glob("*/search.json")}
    assert all("2 seeds only" in each.note for each in found.claims) and found.seeds == [0, 1]
    assert all(abs(arm.images["train"] - 400) <= 5 for arm in found.arms)
    assert found.provenance["commit"] is None or found.provenance["versions"]["torch"]
    page = lt.report(folder)
    assert page == folder / "study.html" and found.title in page.read_text()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed*/*.pt")}
    with pytest.raises(InvalidFile, match="resume=True"):
        study.run(name, folder=folder)
    again = study.run(name, folder=folder, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/seed*/*.pt")}, "nothing was trained again"
    assert [each.found for each in again.claims] == [each.found for each in found.claims]
    with pytest.raises(TicketMismatch, match="other settings"):
        study.run(name, folder=folder, resume=True, seeds=3)


@pytest.mark.slow
def test_searches_share_dense_networks_where_those_are_the_same(whole: Callable[[str], Whole], tmp_path: Path) -> None:
    folder, _, trained = whole("structured-tickets")
    assert sorted(seed for seed, arm in trained if arm == "dense") == [0, 1], "four searches, one recipe"
    arm = structured_tickets.arms(study.scaled(structured_tickets, "smoke"))[-1]
    images = data_for(arm.model, arm.data, image_size=arm.image_size).with_train_images(400)
    alone = lt.find("lenet5", images, arm.config, recipe=recipe_of(arm, images), folder=tmp_path / "alone")
    shared = json.loads((folder / "global-lr/search.json").read_text())
    assert [row["val_correct"] for row in shared["rows"]] == [row.val_correct for row in alone.rows], "as if each had trained its own"
    _, _, trained = whole("sanity")
    assert sorted(seed for seed, arm in trained if arm == "dense") == [0, 0, 1, 1], "two searches, two rates"


@pytest.mark.slow
def test_a_study_that_was_stopped_is_resumed(whole: Callable[[str], Whole], tmp_path: Path) -> None:
    _, undisturbed, _ = whole("sanity")
    with pytest.raises(KeyboardInterrupt):
        study.run("sanity", folder=tmp_path / "cut", listen=Note(last=9))
    assert not (tmp_path / "cut/study.json").exists()
    resumed = study.run("sanity", folder=tmp_path / "cut", resume=True)
    assert (resumed.claims, resumed.tables, resumed.figures) == (undisturbed.claims, undisturbed.tables, undisturbed.figures)


@pytest.mark.slow
def test_jobs_need_an_executor(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean slurm"):
        study.run("sanity", folder=tmp_path / "none", workers={"jobs": 3, "executor": "slumr", "executor_options": {}, "retries": 1})
    assert not (tmp_path / "none").exists()


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="no study to resume"):
        study.run("sanity", folder=tmp_path / "none", resume=True)


# study.json and its page


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert Study.load(some_study().save(tmp_path)) == some_study()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda value: value.update(kind="sweep"), '"kind": "study"'),
        (lambda value: value.update(format=2), "reads format 1"),
        (lambda value: value.update(new=1), "unknown field new"),
        (lambda value: value["claims"][0].update(answer="does not hold"), "its interval says"),
        (lambda value: value["claims"][0]["found"].update(low=None), "is none"),
        (lambda value: value["figures"][0].update(x_axis="pixels"), "does not name its unit"),
        (lambda value: value["figures"][0]["series"][1]["x"].append(3.0), "different lengths"),
        (lambda value: value["figures"][0]["series"][1]["x"].__setitem__(0, 0.0), "logarithmic"),
        (lambda value: value["figures"].append(value["figures"][0]), "different names"),
        (lambda value: value["tables"][0]["rows"].append(["one"]), "other lengths"),
    ],
)
def test_a_spoiled_study_is_refused(tmp_path: Path, spoil: Any, says: str) -> None:
    path = some_study().save(tmp_path)
    value = json.loads(path.read_text())
    spoil(value)
    path.write_text(json.dumps(value))
    with pytest.raises(InvalidFile, match=says) as reported:
        lt.report(tmp_path)
    assert str(path) in str(reported.value) and "--resume" in str(reported.value)


def test_logarithmic_axes_show_whole_numbers() -> None:
    axis = draw(some_study().figures[0]).layout.xaxis
    assert axis.type == "log" and [float(text) for text in axis.ticktext] == list(axis.tickvals)


def test_a_page_shows_hostile_text_and_obeys_none() -> None:
    page = render(some_study(HOSTILE))
    seen, usual = Page(page), Page(render(some_study()))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in usual.tags], "no tag came from a text"
    assert HOSTILE in seen.text and "</script><script>alert" not in page
    assert not any(value and "evil.test" in value and name in ("src", "href") for _, attrs in seen.tags for name, value in attrs.items())


def test_a_page_says_every_answer_and_draws_every_figure() -> None:
    seen = Page(render(some_study()))
    assert all(word in seen.text for word in ("holds", "does not hold", "is not decidable", "1 seed only"))
    assert [attrs["data-figure"] for _, attrs in seen.tags if "data-figure" in attrs] == ["one"]
    assert "@media print" in render(some_study())


def test_figures_have_axes_with_units_and_intervals() -> None:
    drawn = draw(some_study().figures[0]).to_plotly_json()
    axes = [drawn["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert axes == ["text (%)", "text (points)"] and drawn["layout"]["xaxis"]["type"] == "log"
    line = next(each for each in drawn["data"] if each.get("error_y"))
    assert list(line["error_y"]["array"]) == [1.0, 0.0] and list(line["error_x"]["arrayminus"]) == [0.5, 0.5]
    control = next(each for each in drawn["data"] if each["line"]["dash"] == "dash")
    assert control["marker"]["symbol"].endswith("-open"), "distinguishable without colours"


def test_a_run_is_no_study_because_a_file_is_called_so(tmp_path: Path) -> None:
    """`shrink -o study.onnx` leaves a study.json of its own in a run."""
    (tmp_path / "search.json").write_text(json.dumps(example()["search.json"]))
    (tmp_path / "study.json").write_text('{"kind": "other"}')
    assert lt.report(tmp_path).name == "report.html"


@pytest.mark.slow
class TestCommand:
    def test_without_a_name_they_are_listed(self) -> None:
        listed = call("study")
        assert listed.returncode == 0 and all(name in listed.stdout for name in study.names())
        assert set(json.loads(call("study", "--json").stdout)) == set(study.names())

    def test_bad_input(self, tmp_path: Path) -> None:
        refused("study", "sanitty", says="Did you mean sanity", cwd=tmp_path)
        refused("study", "sanity", "--scale", "huge", says="Known: smoke, small, full", cwd=tmp_path)
        refused("study", "sanity", "--resume", says="no study to resume", cwd=tmp_path)
        refused("study", "sanity", "--scale", "small", says="--download", cwd=tmp_path)
        refused("report", tmp_path, says="not a run folder", cwd=tmp_path)
        assert not (tmp_path / "runs").exists()
