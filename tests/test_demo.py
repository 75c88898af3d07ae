"""The demo is what its committed results say: the settings that were shown to be stable, and one level over all of them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from ltcompile.search.inference import FEWEST_SEEDS
from ltcompile.search.settings import SearchSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def settings() -> SearchSettings:
    """The recipe of `make demo`."""
    assert "ltcompile find --recipe recipes/demo.toml" in (ROOT / "Makefile").read_text()
    return SearchSettings.load(ROOT / "recipes" / "demo.toml")


@pytest.fixture(scope="module")
def stability() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "demo-stability.json").read_text()))


def test_the_demo_trains_as_any_machine_does_and_decides() -> None:
    reported = settings()
    assert reported.section("train")["precision"] == "fp32" and reported.section("search")["seeds"] >= FEWEST_SEEDS


def test_twenty_demos_with_these_settings_picked_one_level(stability: dict[str, Any]) -> None:
    assert stability["settings"] == settings().values
    assert stability["stable"] and len(stability["demos"]) == 20 and len({*stability["levels"]}) == 1
    seeds = [seed for demo in stability["demos"] for seed in demo["seeds"]]
    assert len(set(seeds)) == len(seeds) == 20 * settings().section("search")["seeds"]


def test_the_committed_demo_lies_in_the_ranges(stability: dict[str, Any]) -> None:
    demo = json.loads((RESULTS / "demo" / "search.json").read_text())
    assert demo["verdict"]["decided"] and demo["verdict"]["level"] == stability["levels"][0]
    for arm, level, figure in (("dense", 0, "dense, test accuracy (%)"), ("ticket", demo["ticket"]["level"], "tickets, test accuracy (%)")):
        found = [100 * row["test_score"] for row in demo["rows"] if (row["arm"], row["level"]) == (arm, level)]
        reported = stability["ranges"][figure]
        assert reported["low"] <= sum(found) / len(found) <= reported["high"], figure
    rows = {(row["arm"], row["level"], row["seed"]): row for row in demo["rows"]}
    saved = demo["ticket"]["seed"]
    for figure, size in (("times fewer parameters", "params"), ("times fewer MACs", "macs")):
        ratio = rows["dense", 0, saved][size] / rows["ticket", demo["ticket"]["level"], saved][size]
        assert stability["ranges"][figure]["low"] <= ratio <= stability["ranges"][figure]["high"], figure


def test_the_readme_shows_what_the_results_hold() -> None:
    writer = runpy.run_path(str(ROOT / "bench" / "demo_table.py"))
    reported = (ROOT / "README.md").read_text().partition(writer["BEGIN"])[2].partition(writer["END"])[0]
    assert reported == writer["table"](RESULTS)
