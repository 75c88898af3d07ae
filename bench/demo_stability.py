"""Whether `make demo` gives the same outcome whatever the seeds: its search twenty times, each time with other seeds.

    python bench/demo_stability.py [--only 11,12]        writes bench/results/demo-stability.json

Settings are those of recipes/demo.toml; they were chosen on validation images of the first eleven searches (seeds 0 to 43), which are left out
here. So are the controls: they are trained after the level is picked. Search 21 trains the dense network of the first two demos' seeds for twice
the epochs, which shows whether the demo's dense network is at its plateau. Runs stand in runs/demo-stability-*, and are resumed; what is gone there
is taken from the result, if that is of the same settings. What is still missing is named in the result, and nothing is stable before all are
there. Verdicts are judged from the rows of runs that are there, so that another margin needs no training.

A figure's range holds a further demo's value in 99 % of cases (Student's t, prediction interval). A demo saves one ticket; so the ranges of its
size are those of single tickets, of all seeds that are at hand (of the first ten demos only the saved one is), and of ratios, hence on a
logarithmic scale.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _common import finish
from scipy import stats

from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.search.settings import SearchSettings
from ltcompile.search.verdict import judge

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "demo.toml"
RESULT = ROOT / "bench" / "results" / "demo-stability.json"
DEMOS = (*range(11, 21), *range(22, 32))
FEWEST_DEMOS = 3  # fewer give no range
LONGER, LONGER_DEMOS = 21, 2  # the search with twice the epochs, and of how many demos' seeds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--only", help="run these alone, such as 11,12: several processes share the work; 21 is the search for the plateau"
    )
    options = arguments.parse_args()
    settings = SearchSettings.load(RECIPE)
    for number in (*DEMOS, LONGER) if options.only is None else map(int, options.only.split(",")):
        search(number, settings)
    found = {number: read(number, settings) for number in (*DEMOS, LONGER)}
    demos = [each for number in DEMOS if (each := found[number]) is not None]
    earlier, earlier_plateau = published(settings)
    rows_by_seed = earlier | {
        row["seeds"][0]: row for row in (figures(demo, settings.section("search")["margin_points"]) for demo in demos)
    }
    rows = [rows_by_seed[seed] for seed in sorted(rows_by_seed)]
    missing = [number for number in DEMOS if number * settings.section("search")["seeds"] not in rows_by_seed]
    if len(rows) < FEWEST_DEMOS:
        print(f"still missing: {missing}")
        return
    show(rows)
    levels = [row["level"] for row in rows]
    result: dict[str, Any] = {
        "bench": "demo-stability",
        "settings": settings.values,
        "demos": rows,
        "levels": levels,
        "missing": missing,
        "stable": not missing and len(set(levels)) == 1 and all(row["decided"] for row in rows),
        "ranges": {
            name: prediction(rows, name) for name, value in rows[0].items() if isinstance(value, float) or name.startswith("times fewer")
        },
        "plateau": plateau(demos, found[LONGER]) or earlier_plateau,
    }
    for name, interval in result["ranges"].items():
        print(f"{name:<32} {interval['mean']:8.2f}, a further demo {interval['low']:8.2f} to {interval['high']:8.2f}")
    if change := result["plateau"]:
        print(f"twice the epochs change the dense network by {change['mean']:+.2f} points ({change['low']:+.2f} to {change['high']:+.2f})")
    finish("demo-stability", result)


def published(settings: SearchSettings) -> tuple[dict[int, dict[str, Any]], dict[str, float] | None]:
    """First seed -> the row of its demo in the result that is there, and its plateau; nothing where that is of other settings."""
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if result.get("settings") != settings.values:
        return {}, None
    return {row["seeds"][0]: row for row in result["demos"]}, result["plateau"]


def search(number: int, settings: SearchSettings) -> None:
    """One demo's search; search 21 is the dense networks of the first two, trained for twice the epochs."""
    run = RunFolder(folder_of(number))
    if run.summary.exists():
        return
    seeds = settings.section("search")["seeds"]
    words = ["--recipe", str(RECIPE), "--no-controls", "--name", run.path.name, "--seed", str(number * seeds)]
    if number == LONGER:
        twice = {
            "--epochs": 2 * settings.section("train")["epochs"],
            "--rounds": 1,
            "--seeds": LONGER_DEMOS * seeds,
            "--seed": DEMOS[0] * seeds,
        }
        words += [str(part) for pair in twice.items() for part in pair]
    words += ["--resume"] if run.begun else []
    subprocess.run([sys.executable, "-m", "ltcompile", "find", *words], check=True, cwd=ROOT)


def folder_of(number: int) -> Path:
    return ROOT / "runs" / f"demo-stability-{number}"


def read(number: int, settings: SearchSettings) -> dict[str, Any] | None:
    """A finished search; one that was made with other settings, but for the margin, is refused."""
    path = RunFolder(folder_of(number)).summary
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    made = {**found["config"], **found["recipe"], "model": found["model"]["name"], "data": found["data"]["name"]}
    made |= {"image_size": found["data"]["shape"][1]}
    free = {"margin_points", "epochs", "rounds", "seeds"} if number == LONGER else {"margin_points"}
    wanted = {key: value for table in settings.values.values() for key, value in table.items() if key not in free}
    if differing := sorted(key for key, value in wanted.items() if made[key] != value):
        raise SystemExit(f"{path.parent} was made with other settings ({', '.join(differing)}); remove it and run this again")
    return found


def figures(demo: dict[str, Any], margin: float) -> dict[str, Any]:
    """What a demo's table quotes."""
    verdict: Verdict = judge([Trained.from_json(row) for row in demo["rows"]], margin, demo["verdict"]["confidence"], "lr")
    ticket = demo["ticket"]
    dense, small = of(demo, "dense", 0), of(demo, "ticket", ticket["level"])
    saved = next(row for row in small if row["seed"] == ticket["seed"])
    by_seed = {row["seed"]: row for row in dense}
    return {
        "seeds": demo["seeds"],
        "level": verdict.level,
        "decided": verdict.decided,
        "lows": {level: each["low"] for level, each in verdict.differences.items()},
        "means": {level: each["mean"] for level, each in verdict.differences.items()},
        "seconds": round(demo["seconds"]),
        "times fewer parameters": [by_seed[row["seed"]]["params"] / row["params"] for row in small],
        "times fewer MACs": [by_seed[row["seed"]]["macs"] / row["macs"] for row in small],
        "dense, test accuracy (%)": accuracy(dense, "test_score"),
        "tickets, test accuracy (%)": accuracy(small, "test_score"),
        "saved ticket, test accuracy (%)": 100 * saved["test_score"],
        "dense, validation (%)": accuracy(dense, "val_score"),
        "tickets, validation (%)": accuracy(small, "val_score"),
    }


def of(demo: dict[str, Any], arm: str, level: int) -> list[dict[str, Any]]:
    return [row for row in demo["rows"] if (row["arm"], row["level"]) == (arm, level)]


def accuracy(rows: list[dict[str, Any]], which: str) -> float:
    return 100 * fmean(row[which] for row in rows)


def prediction(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """The mean, and the range in which a further value lies in 99 % of cases: of ratios by their logarithms; no share is above 100 %."""
    if not name.startswith("times fewer"):
        mean, half = centre([row[name] for row in rows])
        return {"mean": mean, "low": mean - half, "high": min(100.0, mean + half)}
    mean, half = centre([math.log(value) for row in rows for value in row[name]])
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def centre(values: list[float]) -> tuple[float, float]:
    """The mean, and half of the prediction interval."""
    return fmean(values), float(stats.t.ppf(0.995, len(values) - 1)) * stdev(values) * math.sqrt(1 + 1 / len(values))


def plateau(demos: list[dict[str, Any]], longer: dict[str, Any] | None) -> dict[str, float] | None:
    """What twice the epochs change the dense networks by, in points of validation accuracy: mean and 95 % interval over seeds."""
    if longer is None:
        return None
    usual = {row["seed"]: row["val_score"] for demo in demos for row in of(demo, "dense", 0)}
    gains = [100 * (row["val_score"] - usual[row["seed"]]) for row in of(longer, "dense", 0) if row["seed"] in usual]
    if len(gains) < FEWEST_DEMOS:
        return None
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * stdev(gains) / math.sqrt(len(gains))
    return {"mean": fmean(gains), "low": fmean(gains) - half, "high": fmean(gains) + half, "seeds": len(gains)}


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'first seed':>10} {'level':>5} {'decided':>8} {'MACs':>13} {'dense test':>11} {'tickets test':>13}  lower bounds by level (points)"
    )
    for row in rows:
        lows = ", ".join(f"{low:+.2f}" for low in row["lows"].values())
        macs, dense, small = row["times fewer MACs"], row["dense, test accuracy (%)"], row["tickets, test accuracy (%)"]
        print(
            f"{row['seeds'][0]:>10} {row['level']!s:>5} {row['decided']!s:>8} {min(macs):>5.1f} to {max(macs):>4.1f} {dense:>11.2f} {small:>13.2f}  {lows}"
        )


if __name__ == "__main__":
    main()
