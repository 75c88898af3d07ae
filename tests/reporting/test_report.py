"""Laws of the report: its figures follow from the run, its page is one safe file, and a damaged run is named, not met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any, cast

import pytest
from pages import DENSE, HOSTILE, Page, example, made, timing, write

from ltcompile.core.task import ACCURACY
from ltcompile.errors import InvalidFile
from ltcompile.reporting import report, units


def test_figures_follow_from_the_run(tmp_path: Path) -> None:
    run = example()
    _, reported = made(tmp_path / "run", run)
    small = run["bench.json"]["subjects"]["small"]
    for what in reported["sparsity"][:3]:
        ticket = next(row for row in run["search.json"]["rows"] if (row["arm"], row["level"], row["seed"]) == ("ticket", 3, 0))
        assert (what["dense"], what["small"]) == (DENSE[what["what"]], ticket[what["what"]])
        assert what["removed_share"] == pytest.approx(1 - what["small"] / what["dense"])
    for row in reported["bench"]["rows"]:
        if row["subject"] == "small":
            assert row["claimed"] == pytest.approx(DENSE["macs"] / small["macs"])
            assert row["achieved_share"] == pytest.approx(row["speedup"] / row["claimed"])
    assert reported["file"]["removed_share"] == 0.75
    assert reported["accuracy"]["test_difference_points"] == pytest.approx(0.5)
    assert reported["accuracy"]["validation"]["dense"] | {} == reported["levels"][0]["validation"]
    assert reported["levels"][0]["validation"]["sd"] == pytest.approx(0.01 / 2**0.5)
    assert [level["level"] for level in reported["levels"]] == [0, 1, 2, 3, 4]
    assert reported["controls"][0]["difference_points"] == pytest.approx(100 * (0.969 - 0.95))
    assert [p["command"] for p in reported["provenance"]] == [f"ltcompile {stage} x" for stage in ("find", "shrink", "bench")]
    assert reported["missing"] == reported["warnings"] == []


def test_headline_speed_is_the_fastest_comparable_backend(tmp_path: Path) -> None:
    """Not the largest ratio (eager), and not one without a dense network of its dtype (int8)."""
    _, reported = made(tmp_path / "run", example())
    best = reported["bench"]["headline"]
    assert (best["runtime"], best["dtype"], best["batch"], best["speedup"]) == ("onnxruntime", "fp32", 1, 2.0)
    latency = reported["sparsity"][3]
    assert (latency["dense"], latency["small"], latency["removed_share"]) == (6.0, 3.0, 0.5)


def test_headline_speed_of_a_file_in_int8_counts_the_change_of_dtype_too(tmp_path: Path) -> None:
    """Where nothing was timed in one dtype; the page says so."""
    run = example()
    run["bench.json"]["rows"] = [timing("dense", 1, 6.0), timing("small", 1, 2.0, 3.0, dtype="int8")]
    html, reported = made(tmp_path / "run", run)
    best = reported["bench"]["headline"]
    assert (best["dtype"], best["speedup"], best["dense_ms"], best["comparable"]) == ("int8", 3.0, 6.0, False)
    assert reported["sparsity"][3]["ratio"] == 3.0
    assert "the speedup counts the change of dtype too" in Page(html).text


def timed_file(checksum: str) -> dict[str, Any]:
    made = {"output": "small.onnx", "precision": "fp32", "bytes": 2 << 20, "recalibrated": False}
    return {"target": "small.onnx", "file": {**made, "ticket_checksum": checksum, "sha256": "5" * 64}, "ticket_checksum": checksum}


def test_the_file_that_was_timed_is_reported(tmp_path: Path) -> None:
    run = example()
    named = timed_file("abc")
    run["bench.json"] |= named
    _, reported = made(tmp_path / "run", run)
    assert {name: reported["bench"][name] for name in named} == named and reported["warnings"] == []
    run["bench.json"] |= timed_file("other")
    (warning,) = made(tmp_path / "run", run)[1]["warnings"]
    assert "bench.json timed small.onnx, which was made from another ticket" in warning and "ltcompile bench" in warning
    _, older = made(tmp_path / "older", example())
    assert {older["bench"][name] for name in named} == {None}


def test_missed_targets_are_warned_of(tmp_path: Path) -> None:
    run = example()
    run["search.json"]["target"] = {"measure": "time", "requested": 0.2, "found": 0.25, "missed_by": 0.25}
    run["small.json"]["target"] = {"measure": "macs", "requested": 0.9, "found": 0.5, "missed_by": 0.0}
    html, reported = made(tmp_path / "run", run)
    (warning,) = reported["warnings"]
    assert warning == "the ticket misses its target (target: 5 times as fast, missed by 25.0%: 4 times as fast)."
    assert "missed by 25.0%" in Page(html).text
    for field, value in (("measure", "beauty"), ("requested", 0.0), ("found", -1.0)):
        spoiled = example()
        spoiled["search.json"]["target"] = {**run["search.json"]["target"], field: value}
        with pytest.raises(InvalidFile, match="target"):
            made(tmp_path / field, spoiled)


def test_what_is_always_right_may_be(tmp_path: Path) -> None:
    run = example()
    for row in run["search.json"]["rows"]:
        row["val_score"] = 1.0
    reported = made(tmp_path / "run", run)[1]["accuracy"]["validation"]["ticket"]
    assert reported["images_low"] < 1.0 == reported["images_high"]


def test_sections_and_words(tmp_path: Path) -> None:
    page = Page(made(tmp_path / "run", example())[0])
    ids = {attrs.get("id") for _, attrs in page.tags}
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert links == {f"#{name}" for name in ids if f"#{name}" in links} and len(links) == 10
    for words in (
        "A winning ticket was found.",
        "Random re-initialisation of the same architecture did worse",
        "not tested",
        "2.00\u00d7",
        "ltcompile bench x",
        "feeds a reshape",
        "8.00 MiB",
        "one standard deviation, in points, over 2 seeds",
    ):
        assert words in page.text
    assert sum("data-figure" in attrs for _, attrs in page.tags) == 4


@pytest.mark.parametrize("without", ["small.json", "bench.json"])
def test_a_missing_part_names_its_command(tmp_path: Path, without: str) -> None:
    run = example()
    del run[without]
    html, reported = made(tmp_path / "a run", run)
    small, ticket = (f"'{tmp_path / 'a run' / name}'" for name in ("small.onnx", "ticket.pt"))
    command = f"ltcompile shrink {ticket} -o {small}" if without == "small.json" else f"ltcompile bench {small}"
    assert [part["command"] for part in reported["missing"]] == [command]
    assert command in Page(html).text


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    run = example()
    run["search.json"] |= {"seeds": [0], "rows": [row for row in run["search.json"]["rows"] if row["seed"] == 0]}
    html, reported = made(tmp_path / "run", run)
    spread = reported["accuracy"]["test"]["ticket"]
    assert spread["sd"] is None and spread["images_low"] < spread["mean"] < spread["images_high"]
    assert "the spread over seeds is not known" in Page(html).text


def test_a_run_of_masks_is_reported_by_parameters(tmp_path: Path) -> None:
    run = example()
    html, reported = made(tmp_path / "filters", run)
    assert '"MACs removed (%)"' in html and "of the MACs are gone" in reported["verdict"]["sentence"]
    for row in run["search.json"]["rows"]:
        row |= {"weights": row["params"] - 1000, "macs": DENSE["macs"]}  # nothing was eliminated
    html, reported = made(tmp_path / "weights", {"search.json": run["search.json"]})
    assert '"parameters removed (%)"' in html and '"MACs removed (%)"' not in html
    assert "73.8\u00a0% of the parameters are gone" in reported["verdict"]["sentence"] and "the share of parameters removed" in html


def test_no_winner_is_said(tmp_path: Path) -> None:
    run = example()
    run["search.json"]["verdict"]["level"] = None
    run["search.json"]["ticket"]["won"] = False
    html, reported = made(tmp_path / "run", run)
    assert reported["verdict"]["won"] is False
    assert "No winning ticket was found" in Page(html).text and "A winning ticket was found" not in html


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-2.0, -0.1, "did better"),
        (-0.5, 1.5, "is not shown to be worse"),
        (0.1, 2.0, "did worse"),
        (None, None, "is compared on too few seeds to decide between trainings"),
    ],
)
def test_a_control_is_beaten_only_by_a_whole_interval(tmp_path: Path, low: float | None, high: float | None, words: str) -> None:
    run = example()
    run["search.json"]["verdict"]["gaps"]["random"] |= {"low": low, "high": high}
    html, reported = made(tmp_path / "run", run)
    assert f"Random re-initialisation of the same architecture {words}" in Page(html).text
    interval = "not decided" if low is None else f"{units.gap(low, ACCURACY)} to {units.gap(high or 0.0, ACCURACY)}"
    assert interval.replace(units.NBSP, " ") in Page(html).text.replace(units.NBSP, " ")
    assert ("random" in reported["verdict"]["controls_not_beaten"]) == (words != "did worse")


def test_levels_behind_the_first_failure_are_not_tested(tmp_path: Path) -> None:
    run = example()
    verdict = run["search.json"]["verdict"]
    verdict["differences"]["2"]["low"] = -0.9
    html, reported = made(tmp_path / "run", run)
    assert [level["passed"] for level in reported["levels"]] == [None, True, False, None, None]
    assert Page(html).text.count("not tested: a level before it failed") == 2


def test_too_few_seeds_are_not_a_winner(tmp_path: Path) -> None:
    run = example()
    run["search.json"]["verdict"] |= {"decided": False}
    run["search.json"]["ticket"]["won"] = False
    html, reported = made(tmp_path / "run", run)
    assert reported["verdict"]["won"] is False and reported["verdict"]["sentence"].startswith(
        "Not decided between trainings, with 2 seeds."
    )
    assert "A winning ticket was found" not in html and "samples (validation images)" in Page(html).text


def test_the_seed_of_the_saved_weights_is_said(tmp_path: Path) -> None:
    html, _ = made(tmp_path / "run", example())
    assert "the saved weights are those of seed 0: of median validation accuracy" in Page(html).text


def test_missing_controls_are_said(tmp_path: Path) -> None:
    run = example()
    run["search.json"]["rows"] = [row for row in run["search.json"]["rows"] if row["arm"] in ("dense", "ticket")]
    html, reported = made(tmp_path / "run", run)
    assert [control["outcome"] for control in reported["controls"]] == ["missing", "missing"]
    assert Page(html).text.count("Not tested: random re-initialisation") == 1


def test_a_search_that_cut_nothing(tmp_path: Path) -> None:
    run = example()
    search = run["search.json"]
    search |= {"rows": [row for row in search["rows"] if row["arm"] == "dense"], "widths": []}
    search["verdict"] |= {"level": None, "differences": {}, "flags": {}, "summary": []}
    search["ticket"] |= {"level": 0, "won": False}
    _, reported = made(tmp_path / "run", {"search.json": search})
    assert [what["removed_share"] for what in reported["sparsity"][:3]] == [0, 0, 0]


def test_files_of_another_ticket_are_named(tmp_path: Path) -> None:
    run = example()
    run["small.json"] |= {"ticket_checksum": "other", "onnx_error": 1.0}
    run["bench.json"]["subjects"]["small"]["macs"] += 1
    _, reported = made(tmp_path / "run", run)
    assert ["another ticket" in reported["warnings"][0], "small.onnx is off" in reported["warnings"][2]] == [True, True]
    assert "bench.json timed small" in reported["warnings"][1]


def test_a_file_that_does_not_run_here_has_no_error(tmp_path: Path) -> None:
    """As Core ML's: its record holds none, and the page says so."""
    run = example()
    run["small.json"] |= {"output": "small.mlpackage", "onnx_error": None, "tolerance": None}
    html, reported = made(tmp_path / "run", run)
    assert reported["shrinks"][0]["within_tolerance"] is None and reported["warnings"] == []
    assert "not run here" in Page(html).text


def poison(value: Any) -> Any:
    """Every text of a run, and every free key, made hostile."""
    fixed = {"kind", "arm", "date", "checksum", "ticket_checksum", "subject"}
    if isinstance(value, dict):
        return {key: item if key in fixed else poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = {name: poison(content) for name, content in example().items()}
    run["search.json"]["config"][HOSTILE] = HOSTILE
    run["bench.json"]["skipped"][HOSTILE] = HOSTILE
    run["bench.json"]["subjects"][HOSTILE] = run["bench.json"]["subjects"]["small"]
    run["bench.json"]["rows"][1]["subject"] = HOSTILE
    html, _ = made(tmp_path / "run", run)
    clean = Page(made(tmp_path / "clean", example())[0])
    page = Page(html)
    assert page.count("script") == clean.count("script") == 3
    assert html.count("</script>") == 3
    assert page.count("img") == 0 and not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    figures = json.loads(html.split('id="figures">', 1)[1].split("</script>", 1)[0])
    assert "<script" not in json.dumps(figures)  # plotly reads HTML in labels


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    html, _ = made(tmp_path / "run", example())
    page = Page(html)
    assert not [tag for tag, attrs in page.tags if "src" in attrs or tag in ("link", "iframe", "object", "base")]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)
    assert "@import" not in html.split("</style>")[0] and "url(" not in html.split("</style>")[0]
    assert "default-src 'none'" in html
    assert html.count("plotly.js v") == 1


BAD: list[tuple[str, Any]] = [
    ("search.json", []),
    ("search.json", {}),
    ("search.json/kind", "bench"),
    ("search.json/format", 2),
    ("search.json/rows", []),
    ("search.json/rows", None),
    ("search.json/rows/0", 3),
    ("search.json/rows/0", {}),
    ("search.json/rows/0/macs", 0),
    ("search.json/rows/0/macs", "many"),
    ("search.json/rows/0/macs", 10**400),
    ("search.json/rows/0/new", 1),
    ("search.json/rows/2/arm", "fine-tuned"),
    ("search.json/rows/2/arm", [1]),
    ("search.json/rows/2/val_score", float("nan")),
    ("search.json/rows/2/val_score", 97.5),
    ("search.json/rows/2/seed", True),
    ("search.json/ticket", None),
    ("search.json/ticket/level", 9),
    ("search.json/ticket/seed", 9),
    ("search.json/verdict/differences", {"two": {"mean": 0, "low": 0, "n": 1}}),
    ("search.json/verdict/differences", {"2": {"mean": 0}}),
    ("search.json/verdict/flags", {"x": "perhaps"}),
    ("search.json/verdict/gaps", {"random": {"mean": 1}}),
    ("search.json/verdict/gaps", {"random": {"mean": 1, "low": None, "high": 1}}),
    ("search.json/verdict/summary", "won"),
    ("search.json/verdict/confidence", 95),
    ("search.json/data/sizes", {}),
    ("search.json/data/class_names", ["\ud800"]),
    ("search.json/config", {"rate": float("inf")}),
    ("search.json/widths/0/before", 0),
    ("search.json/provenance", {}),
    ("search.json/model/name", None),
    ("small.json/bytes", 0),
    ("small.json/dense_bytes", "none"),
    ("small.json/tolerance", None),
    ("bench.json", 7),
    ("bench.json/kind", "benchmark"),
    ("bench.json/subjects", {}),
    ("bench.json/rows/0/ms_p50", 0),
    ("bench.json/rows/0/ms_p50", 1e9),
    ("bench.json/rows/1/speedup_low", None),
    ("bench.json/rows/1/speedup", -1),
    ("bench.json/file", {}),
    ("bench.json/file", {**timed_file("abc")["file"], "bytes": 0}),
    ("bench.json/target", 1),
    ("bench.json/rows/1/batch", 1.5),
    ("bench.json/skipped", ["openvino"]),
    ("bench.json/provenance/versions", {"a": 1}),
]


@pytest.mark.parametrize(("place", "value"), BAD, ids=[f"{place}={ascii(value)[:24]}" for place, value in BAD])
def test_damage_is_named(tmp_path: Path, place: str, value: Any) -> None:
    run, path = example(), [int(key) if key.isdecimal() else key for key in place.split("/")]
    inner = reduce(lambda table, key: table[key], path[:-1], cast(Any, run))
    inner[path[-1]] = value
    with pytest.raises(InvalidFile, match=rf"{path[0]}.*again"):
        report(write(tmp_path / "run", run))
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
@pytest.mark.parametrize("name", ["search.json", "small.json", "bench.json"])
def test_no_json_is_named(tmp_path: Path, name: str, text: str) -> None:
    folder = write(tmp_path / "run", example())
    (folder / name).write_text(text)
    with pytest.raises(InvalidFile, match=name):
        report(folder)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="ltcompile find"):
        report(tmp_path)
    with pytest.raises(InvalidFile, match="not a run folder"):
        report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", example())
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "bench.json").unlink()
    os.mkfifo(folder / "bench.json")
    assert report(folder).exists()


def test_output_goes_where_it_is_sent(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", example())
    page = report(folder, tmp_path / "out" / "mine.html")
    assert page == tmp_path / "out" / "mine.html" and (tmp_path / "out" / "mine.json").is_file()
    assert not (folder / "report.html").exists()
    assert report(folder) == report(str(folder)) == folder / "report.html"  # twice: its own JSON is not a result of a stage


@pytest.mark.parametrize("output", ["search.html", "small.html", "bench.html", "page.json", "page", "."])
def test_output_never_replaces_results(tmp_path: Path, output: str) -> None:
    folder = write(tmp_path / "run", example())
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(InvalidFile):
        report(folder, folder / output)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def test_import_is_light() -> None:
    code = "import sys, ltcompile.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
