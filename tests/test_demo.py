"""The demo is what its committed results say: settings that any machine trains alike, and one level over all searches with them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ltcompile.finding.inference import FEWEST_SEEDS

ROOT = Path(__file__).resolve().parents[1]
Options = set[tuple[str, str]]


def options(words: list[str]) -> Options:
    return set(zip(words[::2], words[1::2], strict=True)) - {("--name", "demo")}


def demo() -> Options:
    """The options of `ltcompile find` in `make demo`."""
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "ltcompile find" in line)
    return options(shlex.split(line.partition("ltcompile find")[2]))


def test_the_demo_trains_as_any_machine_does_and_decides() -> None:
    told = dict(demo())
    assert told["--precision"] == "fp32" and int(told["--seeds"]) >= FEWEST_SEEDS


def test_searches_with_these_settings_and_other_seeds_pick_one_level() -> None:
    told = json.loads((ROOT / "bench" / "results" / "demo-stability.json").read_text())
    assert options(shlex.split(told["settings"])) == demo()
    assert len({*told["levels"]}) == 1 and None not in told["levels"] and all(found["decided"] for found in told["demos"])
    seeds = [seed for found in told["demos"] for seed in found["seeds"]]
    assert len({*seeds}) == len(seeds) == int(dict(demo())["--seeds"]) * len(told["demos"])
    assert told["stable"] == (not told["missing"])
