"""The demo is what its committed results say: the settings that were shown to be stable, and one level over all of them."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from ltcompile.search.inference import FEWEST_SEEDS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def settings() -> dict[str, str]:
    """The options of `ltcompile find` in `make demo`."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "ltcompile find" in line)
    words = shlex.split(line.partition("ltcompile find")[2])
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture(scope="module")
def stability() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "demo-stability.json").read_text()))


def test_the_demo_trains_as_any_machine_does_and_decides() -> None:
    told = settings()
    assert told["--precision"] == "fp32" and int(told["--seeds"]) >= FEWEST_SEEDS


def test_ten_demos_with_these_settings_picked_one_level(stability: dict[str, Any]) -> None:
    words = shlex.split(stability["settings"])
    assert dict(zip(words[::2], words[1::2], strict=True)) == {k: v for k, v in settings().items() if k != "--name"}
    assert stability["stable"] and len(stability["demos"]) == 10 and len({*stability["levels"]}) == 1
    seeds = [seed for demo in stability["demos"] for seed in demo["seeds"]]
    assert len(set(seeds)) == len(seeds) == 10 * int(settings()["--seeds"])


def test_the_committed_demo_lies_in_the_ranges(stability: dict[str, Any]) -> None:
    demo = json.loads((RESULTS / "demo" / "search.json").read_text())
    assert demo["verdict"]["decided"] and demo["verdict"]["level"] == stability["levels"][0]
    for arm, level, figure in (("dense", 0, "dense, test accuracy (%)"), ("ticket", demo["ticket"]["level"], "tickets, test accuracy (%)")):
        found = [100 * row["test_accuracy"] for row in demo["rows"] if (row["arm"], row["level"]) == (arm, level)]
        told = stability["ranges"][figure]
        assert told["low"] <= sum(found) / len(found) <= told["high"], figure


def test_the_readme_tells_what_the_results_hold() -> None:
    writer = runpy.run_path(str(ROOT / "bench" / "demo_table.py"))
    told = (ROOT / "README.md").read_text().partition(writer["BEGIN"])[2].partition(writer["END"])[0]
    assert told == writer["table"](RESULTS)
