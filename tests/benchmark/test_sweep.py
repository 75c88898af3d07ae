"""Laws of the curve: every level is on it once a runtime and batch, nothing of the test set is, and a pick follows its rule."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from commands import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import HOSTILE, Page, curve, example, made, write
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.benchmark import sweep as sweeping
from ltcompile.benchmark.sweep import Sweep
from ltcompile.cli import app
from ltcompile.cli.sweep import reached_by, shares
from ltcompile.core.curve import Picked
from ltcompile.core.fields import table
from ltcompile.core.picking import KNEE, SMALLEST, WITHIN, Option, Rule, above_line, below, choose, missed_by, pareto_front, pick_by
from ltcompile.core.reached import Reached
from ltcompile.core.records import Measurement
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError, TicketMismatch, Unavailable, UnknownName
from ltcompile.reporting import report

RUNTIMES, BATCHES = ("onnxruntime", "eager"), (1, 3)


def quick(folder: Path, **settings: Any) -> Sweep:
    return sweeping.sweep(folder, **{"batches": (1,), "devices": ("cpu",), "seconds_per_row": 0.02, **settings})


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns("*.json.lock", "lock")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search with two seeds and all controls: of networks that have hardly learnt, as no law here needs more."""
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    recipe = lt.Recipe(epochs=1, batch=64, lr=0.02, flip=False, crop_pixels=0, milestones=())
    config = lt.SearchConfig(rounds=2, rate=0.3, seeds=2)
    lt.find("lenet5", "digits", config, recipe=recipe, image_size=16, folder=folder)
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its curve, where half a joule goes into every image."""
    folder = copied(run, tmp_path_factory.mktemp("swept") / "lenet")
    quick(folder, runtimes=RUNTIMES, batches=BATCHES, pick="fastest-within 100", joules=lambda device, ran, images: (ran(), 0.5)[1])
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return value


class TestCurve:
    def test_every_level_is_there_once_a_backend_and_batch(self, folder: Path, found: dict[str, Any]) -> None:
        history = lt.Ticket.load(folder / "ticket.pt").history
        names = {"dense", *(f"{row.arm}-{row.level}" for row in history if row.arm in ("ticket", "random"))}
        assert len(names) == 4, "dense, two tickets, the random control of one"
        assert [point["name"] for point in found["points"]] == sorted(names, key=["dense", "ticket-1", "ticket-2", *names].index)
        timed = [(row["subject"], row["runtime"], row["batch"]) for row in found["rows"]]
        assert sorted(timed) == sorted((name, runtime, batch) for name in names for runtime in RUNTIMES for batch in BATCHES)
        assert all(row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"] and row["max_error"] < 1e-3 for row in found["rows"])
        assert all((row["speedup"] is None) == (row["subject"] == "dense") for row in found["rows"])

    def test_the_test_set_is_not_read(self, folder: Path, found: dict[str, Any]) -> None:
        assert "test_score" not in (folder / "sweep.json").read_text()
        assert all(row["accuracy"] is None for row in found["rows"])

    def test_score_and_size_are_those_of_the_search(self, folder: Path, found: dict[str, Any]) -> None:
        history = lt.Ticket.load(folder / "ticket.pt").history
        for point in found["points"]:
            rows = [row for row in history if (row.arm, row.level) == (point["arm"], point["level"])]
            assert point["seeds"] == [0, 1]
            assert point["val_score"] == pytest.approx(sum(row.val_score for row in rows) / 2)
            assert (point["val_min"], point["val_max"]) == tuple(sorted(row.val_score for row in rows))
            assert (point["params"], point["macs"]) == (rows[0].params, rows[0].macs)
            assert point["bytes"] > 4 * point["params"] * 0.9

    def test_the_pareto_front(self, found: dict[str, Any]) -> None:
        points = {point["name"]: point for point in found["points"]}
        place = [row for row in found["rows"] if (row["runtime"], row["batch"]) == ("eager", 3)]
        options = [
            Option(points[row["subject"]]["level"], row["ms_p50"], points[row["subject"]]["val_score"], 1)
            for row in place
            if not row["subject"].startswith("random")
        ]
        on_front = {row["subject"] for row in place if row["on_front"]}
        assert on_front == {f"ticket-{option.level}" if option.level else "dense" for option in pareto_front(options)}

    def test_energy(self, found: dict[str, Any]) -> None:
        assert found["energy"] == "" and {row["joules_per_image"] for row in found["rows"]} == {0.5}

    def test_a_masked_search(self, tmp_path: Path) -> None:
        """Its files hold whole networks with zeros; the curve has what is left of them."""
        config = lt.SearchConfig(rounds=1, rate=0.4, masked=True, controls=False)
        recipe = lt.Recipe(epochs=1, batch=64, lr=0.02, flip=False, crop_pixels=0, milestones=())
        lt.find("lenet5", "digits", config, recipe=recipe, image_size=16, folder=tmp_path / "run")
        ticket = lt.Ticket.load(tmp_path / "run/ticket.pt")
        found = sweeping.ticket_of(ticket, tmp_path / "run", ticket.row)
        assert found.plan == ticket.plan and found.weights.keys() == ticket.weights.keys()
        assert all(torch.equal(found.weights[name], value) for name, value in ticket.weights.items())


class TestPicked:
    def test_it_is_the_level_that_was_picked(self, folder: Path, found: dict[str, Any]) -> None:
        pick, ticket = found["pick"], lt.Ticket.load(folder / "picked.pt")
        assert {pick["name"], pick["runner_up"]} == {"ticket-1", "ticket-2"}, "a hundred points below allow everything"
        assert pick["level"] == ticket.level
        assert (pick["runtime"], pick["batch"], pick["checksum"]) == ("onnxruntime", 1, ticket.checksum)
        ms = [row["ms_p50"] for row in found["rows"] if (row["subject"], row["runtime"], row["batch"]) == (pick["name"], "onnxruntime", 1)]
        assert pick["ms_p50"] not in ms, "its figures are of a run of their own"
        assert pick["speedup_low"] <= pick["speedup"] <= pick["speedup_high"]
        assert pick["tie"] == (pick["lead_low"] <= 1 <= pick["lead_high"])
        saved = torch.load(folder / f"seed0/ticket-{ticket.level}.pt", weights_only=True)["weights"]
        assert saved.keys() == ticket.weights.keys() and all(torch.equal(saved[name], value) for name, value in ticket.weights.items())

    def test_it_shrinks(self, folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
        record = lt.shrink(folder / "picked.pt", tmp_path / "picked.onnx").record
        point = next(point for point in found["points"] if point["name"] == found["pick"]["name"])
        assert (record["params"], record["macs"]) == (point["params"], point["macs"])

    @pytest.mark.slow
    def test_without_a_pick_there_is_none(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And no counter of energy: the reason is given once."""

        def uncounted(*_: object) -> float:
            raise Unavailable("no counter here")

        again = copied(folder, tmp_path / "again")
        monkeypatch.setattr("ltcompile.core.picking.choose", lambda *_: (None, "no level is fit"))
        monkeypatch.setattr("ltcompile.benchmark.energy.counter", uncounted)
        done = CliRunner().invoke(
            app, ["sweep", str(again), "--runtime", "eager", "--batch", "2", "--seconds", "0", "--device", "cpu", "--json"]
        )
        assert done.exit_code == 4, done.output
        found = json.loads(done.stdout)
        assert not (again / "picked.pt").exists()
        place = {"runtime": "eager", "device": "cpu", "batch": 2}
        nothing = {"rule": "knee", "name": None, "level": None, "reason": "no level is fit", **place, "checksum": None, "tie": False}
        assert found["pick"] == {**dict.fromkeys(found["pick"]), **nothing}
        assert found["energy"] == "no counter here" and {row["joules_per_image"] for row in found["rows"]} == {None}
        assert "Picked by the rule knee: none" in Page(report(again).read_text()).text


def fresh(ms: dict[str, float], spread: float = 0.01) -> Callable[[Sequence[str]], list[Measurement]]:
    """A run in which networks take so many milliseconds, and intervals are as wide as `spread` to both sides."""

    def again(names: Sequence[str]) -> list[Measurement]:
        rows = []
        for name in names:
            ratio = None if name == names[0] else ms[names[0]] / ms[name]
            ends = (None, None) if ratio is None else (ratio * (1 - spread), ratio * (1 + spread))
            rows.append(Measurement(name, "eager", "cpu", "float32", 1, *[ms[name]] * 3, 100, ratio, *ends, None, None, 0.0))
        return rows

    return again


class TestMeasuredAgain:
    """By the first run, level 2 takes 1 ms, level 1 takes 2 and dense 4."""

    options = (Option(0, 4.0, 90, 100), Option(1, 2.0, 90, 50), Option(2, 1.0, 90, 20), Option(3, 0.1, 50, 10))

    def picked(self, rule: str, ms: dict[str, float]) -> Picked:
        row = fresh({"dense": 4.0})(["dense"])[0]
        return pick_by(Rule.parse(rule), self.options, row, fresh(ms))

    def test_figures_are_of_the_fresh_run(self) -> None:
        found = self.picked("fastest-within 1", {"dense": 4.0, "ticket-1": 2.0, "ticket-2": 1.6})
        assert (found.name, found.runner_up, found.ms_p50, found.tie) == ("ticket-2", "ticket-1", 1.6, False)
        assert found.speedup == pytest.approx(2.5) and found.lead == pytest.approx(1.25)
        assert found.speedup_low == pytest.approx(2.5 / 1.01) and found.speedup_high == pytest.approx(2.5 / 0.99)

    def test_ties_are_ties(self) -> None:
        found = self.picked("fastest-within 1", {"dense": 4.0, "ticket-1": 1.605, "ticket-2": 1.6})
        assert (found.name, found.tie) == ("ticket-2", True)

    def test_the_fresh_run_overrules_where_it_is_sure(self) -> None:
        found = self.picked("fastest-within 1", {"dense": 4.0, "ticket-1": 1.0, "ticket-2": 1.6})
        assert (found.name, found.level, found.runner_up, found.ms_p50, found.tie) == ("ticket-1", 1, "ticket-2", 1.0, False)
        almost = self.picked("fastest-within 1", {"dense": 4.0, "ticket-1": 1.595, "ticket-2": 1.6})
        assert (almost.name, almost.tie) == ("ticket-2", True)

    def test_where_speed_alone_does_not_decide_there_is_no_runner_up(self) -> None:
        found = self.picked("knee", {"dense": 4.0, "ticket-2": 1.6})
        assert (found.name, found.runner_up, found.lead, found.tie, found.ms_p50) == ("ticket-2", None, None, False, 1.6)

    def test_what_is_missed_is_said(self) -> None:
        slow = (Option(0, 4.0, 90, 100), Option(1, 2.0, 88, 50), Option(2, 1.0, 80, 20))
        row = fresh({"dense": 4.0})(["dense"])[0]
        found = pick_by(Rule.parse("fastest-within 0.5"), slow, row, fresh({}))
        assert found.name is None and found.missed_by_points == pytest.approx(1.5)
        assert "the closest, level 1, misses that by 1.5 points" in found.reason
        assert missed_by(Rule.parse("fastest-within 5"), slow) is None


options = st.builds(
    lambda dense, tickets: [
        Option(level, ms, worth, macs, sound and level > 0) for level, (ms, worth, macs, sound) in enumerate([dense, *tickets])
    ],
    one := st.tuples(
        st.floats(0.01, 100) | st.sampled_from([1.0, 2.0]),
        st.floats(0, 100) | st.sampled_from([50.0, 90.0]),
        st.integers(1, 9),
        st.booleans(),
    ),
    st.lists(one, min_size=1, max_size=8),
)


class TestRules:
    @pytest.mark.slow
    @settings(deadline=None)
    @given(options)
    def test_the_front_is_what_nothing_beats(self, options: list[Option]) -> None:
        found = pareto_front(options)
        for a in options:
            better = [b for b in options if b.ms <= a.ms and b.worth >= a.worth and (b.ms, b.worth) != (a.ms, a.worth)]
            assert bool(better) != any((b.ms, b.worth) == (a.ms, a.worth) for b in found)

    @settings(deadline=None)
    @given(options)
    def test_the_knee_is_on_the_front_and_farthest(self, options: list[Option]) -> None:
        knee, reason = choose(Rule(KNEE), options)
        line = pareto_front(options)
        assert reason and (knee is None) == (not any(o.level for o in line))
        if knee is not None:
            assert knee in line and knee.level
            assert all(above_line(knee, line) >= above_line(o, line) for o in line if o.level)

    @settings(deadline=None)
    @given(options, st.floats(0, 100))
    def test_fastest_within_is_within_and_fastest(self, options: list[Option], points: float) -> None:
        fastest, reason = choose(Rule(WITHIN, points), options)
        fit = [o for o in options if o.level and below(o, options[0]) <= points]
        assert reason and (fastest is None) == (not fit)
        if fastest is not None:
            assert fastest in fit and all(fastest.ms <= o.ms for o in fit)

    @settings(deadline=None)
    @given(options)
    def test_smallest_is_sound_and_smallest(self, options: list[Option]) -> None:
        smallest, reason = choose(Rule(SMALLEST), options)
        fit = [o for o in options if o.sound]
        assert reason and (smallest is None) == (not fit)
        if smallest is not None:
            assert smallest in fit and all(smallest.macs <= o.macs for o in fit)

    @settings(deadline=None)
    @given(options, st.sampled_from([Rule(KNEE), Rule(SMALLEST), Rule(WITHIN, 1.0)]), st.randoms(use_true_random=False))
    def test_the_order_does_not_matter(self, options: list[Option], rule: Rule, chance: Any) -> None:
        shuffled = chance.sample(options, len(options))
        assert choose(rule, shuffled) == choose(rule, options)

    def test_a_knee_that_anyone_sees(self) -> None:
        curve = [Option(0, 10, 0.98, 9), Option(1, 6, 0.979, 6), Option(2, 3, 0.975, 3), Option(3, 2.5, 0.8, 2), Option(4, 2.2, 0.3, 1)]
        knee, reason = choose(Rule(KNEE), curve)
        assert knee == curve[2] and "level 4 and dense" in reason

    def test_half_a_point_is_within_half_a_point(self) -> None:
        curve = [Option(0, 3, 98, 3), Option(1, 2, 97.5, 2), Option(2, 1, 97.49, 1)]
        assert choose(Rule(WITHIN, 0.5), curve)[0] == curve[1]

    def test_words(self) -> None:
        assert Rule.parse("fastest-within 0.5") == Rule.parse("fastest-within=0.5") == Rule(WITHIN, 0.5)
        assert [Rule.parse(str(rule)) for rule in (Rule(KNEE), Rule(WITHIN, 2.0))] == [Rule(KNEE), Rule(WITHIN, 2.0)]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "best",
            "Knee",
            "knee 1",
            "smallest=2",
            WITHIN,
            "fastest-within x",
            "fastest-within -1",
            *("fastest-within nan", "fastest-within 1 2"),
        ],
    )
    def test_no_rule(self, text: str) -> None:
        with pytest.raises((UnknownName, InvalidSetting)):
            Rule.parse(text)


class TestPath:
    def test_levels_lie_on_it(self) -> None:
        config = lt.SearchConfig(target_macs=0.1, path=(0.5, 0.3, 0.1))
        assert config.shares == [0.5, 0.3, 0.1] and config.levels == 3
        assert config.to_json()["path"] == (0.5, 0.3, 0.1)

    def test_without_one_settings_are_as_ever(self) -> None:
        assert "path" not in lt.SearchConfig(target_macs=0.1).to_json(), "runs that began before it can be resumed"

    @pytest.mark.parametrize("path", [(0.5, 0.2), (0.1, 0.1), (0.05, 0.1), (1.0, 0.1), (float("nan"), 0.1)])
    def test_others_are_refused(self, path: tuple[float, ...]) -> None:
        with pytest.raises(InvalidSetting, match="path must fall"):
            lt.SearchConfig(target_macs=0.1, path=path)
        with pytest.raises(InvalidSetting, match="path leads to a target"):
            lt.SearchConfig(path=path)

    def test_targets(self) -> None:
        assert shares("2,4, 8") == (0.5, 0.25, 0.125)


@pytest.mark.slow
def test_a_search_and_its_curve_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level leaves as many times fewer MACs as was requested; a completed search is not repeated."""
    command = ["sweep", "--model", "lenet5", "--targets", "2,4", "--name", "t", "--epochs", "1", "--pick", "fastest-within=100"]
    command += ["--runtime", "eager", "--batch", "1", "--seconds", "0.02", "--device", "cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltcompile.cli._stop_signal.StopSignal", dict)  # signals and warnings stay those of the tests
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "wrote runs/t/sweep.json" in done.stdout, done.output
    points = json.loads((tmp_path / "runs/t/sweep.json").read_text())["points"]
    macs = {point["name"]: point["macs"] for point in points}
    assert [name for name in macs if name.startswith("ticket")] == ["ticket-1", "ticket-2"]
    assert 0.3 < macs["ticket-1"] / macs["dense"] <= 0.5 and 0.15 < macs["ticket-2"] / macs["dense"] <= 0.25
    refused(*command, says="--resume", cwd=tmp_path)
    found = json.loads((tmp_path / "runs/t/sweep.json").read_text())
    assert f"fastest-within 100 at eager (cpu), batch 1: {found['pick']['name']}" in done.stdout
    assert "measured again in a fresh run: p50" in done.stdout and ("a tie with" in done.stdout) == found["pick"]["tie"]
    assert lt.Ticket.load(tmp_path / "runs/t/picked.pt").level == found["pick"]["level"]


def test_levels_that_miss_their_targets_are_named(folder: Path, found: dict[str, Any]) -> None:
    """By MACs, or by time where the curve was measured at the place of --on."""
    sweep = table(found, Sweep)
    macs = {point.name: point.macs for point in sweep.points}
    share = macs["ticket-1"] / macs["dense"]
    (one, first), (two, second) = reached_by(sweep, (share, 0.01), None)
    assert (one, first, first.missed_by) == ("ticket-1", Reached("macs", share, share), 0)
    assert two == "ticket-2" and second.missed_by == pytest.approx(macs["ticket-2"] / macs["dense"] / 0.01 - 1)
    (row,) = [r for r in sweep.rows if (r.subject, r.runtime, r.batch) == ("ticket-1", "onnxruntime", 3)]
    assert row.speedup is not None
    assert reached_by(sweep, (0.5,), "cpu:onnxruntime:b3:fp32") == [("ticket-1", Reached("time", 0.5, 1 / row.speedup))]
    assert reached_by(sweep, (0.5,), "cpu:onnxruntime:b7:fp32") == [("ticket-1", Reached("time", 0.5, None))]


@pytest.mark.slow
class TestRefusals:
    def test_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        refused("sweep", tmp_path / "nowhere", says="ltcompile find", cwd=tmp_path)
        refused("sweep", tmp_path / "empty", says="no finished search", cwd=tmp_path)

    def test_no_rule(self, run: Path, tmp_path: Path) -> None:
        refused("sweep", run, "--pick", "kneee", says="Did you mean knee?", cwd=tmp_path)
        refused("sweep", run, "--pick", "fastest-within", says="fastest-within 0.5", cwd=tmp_path)

    @pytest.mark.parametrize("targets", ["4,2", "2,2", "1,2", "0", "-2", "two", "", "2,,4", "nan", "inf"])
    def test_targets_that_do_not_rise(self, targets: str) -> None:
        with pytest.raises(InvalidSetting, match="rising"):
            shares(targets)

    def test_words_that_contradict_each_other(self, run: Path, tmp_path: Path) -> None:
        refused("sweep", "--targets", "4,2", says="rising", cwd=tmp_path)
        refused("sweep", run, "--epochs", 3, says="--epochs", cwd=tmp_path)
        refused("sweep", "--targets", "2", "--profile", "x.json", says="--on", cwd=tmp_path)

    @pytest.mark.parametrize(
        ("gone", "says"), [("seed0/ticket-1.pt", "ticket-1.pt"), ("seed0/plan-2.json", "plan-2.json"), ("search.json", "search")]
    )
    def test_files_that_are_gone(self, run: Path, tmp_path: Path, gone: str, says: str) -> None:
        folder = copied(run, tmp_path / "run")
        (folder / gone).unlink()
        with pytest.raises(InvalidFile, match=says):
            quick(folder)

    def test_files_that_do_not_fit(self, run: Path, tmp_path: Path) -> None:
        folder = copied(run, tmp_path / "run")
        shutil.copy(folder / "seed0/ticket-2.pt", folder / "seed0/ticket-1.pt")
        with pytest.raises(TicketMismatch, match="does not fit"):
            quick(folder)
        torch.save({"weights": [1]}, folder / "seed0/dense-0.pt")
        with pytest.raises(InvalidFile, match=r"dense-0\.pt"):
            quick(folder)

    def test_code_that_was_not_named(self, run: Path, tmp_path: Path) -> None:
        folder = copied(run, tmp_path / "run")
        ticket = lt.Ticket.load(folder / "ticket.pt")
        dataclasses.replace(ticket, model={**ticket.model, "name": "mine:make"}).save(folder / "ticket.pt")
        with pytest.raises(TicketMismatch, match="model=mine:make"):
            quick(folder)


class TestReport:
    def test_it_draws_a_real_run(self, folder: Path, found: dict[str, Any]) -> None:
        page = Page(report(folder).read_text())
        figures = [attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs]
        assert sum(str(name).startswith("curve-") for name in figures) == len(RUNTIMES) * len(BATCHES)
        assert f"Picked by the rule fastest-within 100: {found['pick']['name']}" in page.text

    def test_a_curve_for_each_place(self, tmp_path: Path) -> None:
        html, found = made(tmp_path / "run", example() | {"sweep.json": curve()})
        assert [(each["batch"], each["picked_by"], len(each["points"])) for each in found["sweep"]["curves"]] == [
            (1, True, 6),
            (32, False, 6),
        ]
        assert [p["stage"] for p in found["provenance"]][-1] == "sweep" and found["warnings"] == []
        page = Page(html)
        assert ("a", {"href": "#curve"}) in page.tags and "ticket-3, picked" in page.text and "it lies farthest" in page.text
        assert "Measured again in a fresh run: p50 2.12" in page.text and "a tie with ticket-2" in page.text
        drawn = json.loads(html.split('id="figures">', 1)[1].split("</script>", 1)[0])["curve-1"]
        assert drawn["layout"]["xaxis"]["type"] == "log" and "(ms)" in drawn["layout"]["xaxis"]["title"]["text"]
        assert [trace["name"] for trace in drawn["data"]] == ["Pareto front", "dense", "ticket", "random re-init.", "picked"]
        for words in ("level 3", "MACs", "parameters", "p20", "validation accuracy", "as fast as dense"):
            assert words in drawn["data"][-1]["hovertext"][0]

    def test_hostile_text_stays_text(self, tmp_path: Path) -> None:
        sweep = curve()
        for holder, key in (
            (sweep["points"][1], "name"),
            (sweep["rows"][1], "subject"),
            (sweep["rows"][7], "subject"),
            (sweep["pick"], "reason"),
        ):
            holder[key] = HOSTILE
        sweep["energy"] = HOSTILE
        html, _ = made(tmp_path / "run", example() | {"sweep.json": sweep})
        assert html.count("</script>") == 3 and HOSTILE in Page(html).text
        assert "<script" not in html.split('id="figures">', 1)[1].split("</script>", 1)[0]

    def test_a_shrunk_pick_is_no_other_ticket(self, tmp_path: Path) -> None:
        run = example() | {"sweep.json": curve()}
        run["small.json"]["ticket_checksum"] = "def"
        assert made(tmp_path / "run", run)[1]["warnings"] == []
        run["sweep.json"]["ticket_checksum"] = "other"
        assert "made from another search" in made(tmp_path / "run", run)[1]["warnings"][0]

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("kind", "bench"),
            ("format", 2),
            ("points", []),
            ("points/1/name", "dense"),
            ("points/1/macs", 0),
            ("points/1/seeds", []),
            ("points/1/val_score", 97.5),
            ("points/1/val_min", 1.0),
            ("rows/0/subject", "ticket-9"),
            ("rows/1/subject", "dense"),
            ("rows/1/accuracy", 0.9),
            ("rows/1/ms_p50", 0),
            ("rows/1/on_front", 1),
            ("rows/1/joules_per_image", -1),
            ("rows/1/speedup_low", None),
            ("pick", None),
            ("pick/name", "ticket-9"),
            ("energy", None),
            ("provenance", {}),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, place: str, value: Any) -> None:
        sweep = curve()
        *outer, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
        reduce(lambda table, key: table[key], outer, cast(Any, sweep))[last] = value
        with pytest.raises(InvalidFile, match=r"sweep\.json.*ltcompile sweep.*again"):
            report(write(tmp_path / "run", example() | {"sweep.json": sweep}))

    def test_output_never_replaces_it(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "run", example() | {"sweep.json": curve()})
        with pytest.raises(LtcompileError):
            report(folder, folder / "sweep.html")
