"""The U-Net and the detector of examples/ in full: three seeds, controls, and the speedup measured in ONNX Runtime at batch size 1.

    python bench/tasks.py [--work runs/tasks] [--seeds 3] [--only NAME]        writes bench/results/tasks.json and tasks.md

It takes about an hour on two idle cores. Finished networks stay in the work folder: if it is stopped, the same command continues.
With --only, one task is measured, and the rows of the others stay as they are in tasks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _common import RESULTS, ROOT, finish

from ltcompile.cli._options import MISSED
from ltcompile.paths import write_text

UNET, DETECTOR = (ROOT / "examples" / name / "train.py" for name in ("segment_unet", "detect_own"))
GOAL = {"speedup": 3.0, "drop_points": 1.0}
NAMES = {
    "dense": "dense",
    "ticket": "small",
    "random": "small, from random weights, with the whole budget",
    "dense_budget": "dense, with the whole budget",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, default=Path("runs/tasks"))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", choices=[*TASKS], help="one of the tasks")
    given = arguments.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    results: dict[str, Any] = {}
    if given.only:
        results = json.loads((RESULTS / "tasks.json").read_text())["tasks"]
    for name, run in TASKS.items():
        if given.only in (None, name):
            results[name] = read(run(work, given.seeds))
    tasks = {name: results[name] for name in TASKS if name in results}
    table = markdown(tasks)
    print(table)
    write_text(RESULTS / "tasks.md", table)
    finish("tasks", {"bench": "tasks", "goal": GOAL, "seeds": given.seeds, "tasks": tasks})


def unet(work: Path, seeds: int) -> Path:
    call(work, [UNET, "--seeds", seeds, "--folder", work / "unet"])
    return work / "unet"


def detector(work: Path, seeds: int) -> Path:
    run = work / "runs" / "detector"
    if not (run / "own-search.json").exists():
        train = f"{sys.executable} {DETECTOR} --seed {{seed}} --epochs {{epochs}} --folder {{folder}}"
        goal = ["--metric", "mAP", "--margin", 0.01, "--epochs", 20, "--rounds", 2, "--target-macs", 0.15, "--set", "prune.align=8"]
        again = ["--resume"] if (run / "command.json").exists() else []
        call(work, ["-m", "ltcompile", "find", "--train", train, *goal, "--seeds", seeds, "--name", run.name, *again])
    call(work, [DETECTOR, "--compare", run])
    return run


TASKS: dict[str, Callable[[Path, int], Path]] = {"U-Net": unet, "detector": detector}


def call(work: Path, words: Sequence[object]) -> None:
    """Run Python on `words` in the work folder, with this checkout's package."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, *map(str, words)], cwd=work, env=os.environ | {"PYTHONPATH": path}, check=False)
    if done.returncode not in (0, MISSED):
        raise SystemExit(f"{words} ended with {done.returncode}")


def read(run: Path) -> dict[str, Any]:
    """What a finished search and its measurement say. Metrics are in points."""
    summary, bench = (json.loads((run / name).read_text()) for name in ("own-search.json", "bench.json"))
    level = summary["ticket"]["level"]
    arms: dict[str, Any] = {}
    for kind in NAMES:
        rows = [row for row in summary["rows"] if row["arm"] == kind and row["level"] in (0, level)]
        tests = [json.loads((run / f"seed{row['seed']}" / f"{kind}-{row['level']}" / "test.json").read_text()) for row in rows]
        arms[kind] = {
            "macs": statistics.mean(row["macs"] for row in rows),
            "validation": [100 * row["val_score"] for row in rows],
            "test": [100 * value for value in tests],
        }
    small = next(row for row in bench["rows"] if row["subject"] == "small")
    drop = statistics.mean(arms["dense"]["test"]) - statistics.mean(arms["ticket"]["test"])
    return {
        "metric": summary["metric"],
        "level": level,
        "arms": arms,
        "verdict": summary["verdict"]["summary"],
        "drop_points": drop,
        "met": small["speedup_low"] >= GOAL["speedup"] and drop <= GOAL["drop_points"],
        "bench": bench["rows"],
    }


def markdown(tasks: dict[str, Any]) -> str:
    lines = [
        "# A detector and a U-Net of one's own",
        "",
        "Scenes of handwritten digits; each arm's metric is the mean over its seeds (lowest to highest). Written by `python bench/tasks.py`.",
    ]
    for name, task in tasks.items():
        times = {row["subject"]: row for row in task["bench"]}
        small = times["small"]
        lines += [
            "",
            f"## {name}",
            "",
            f"| network | MACs | validation {task['metric']} | test {task['metric']} |",
            "| --- | --- | --- | --- |",
        ]
        for kind, arm in task["arms"].items():
            lines.append(f"| {NAMES[kind]} | {arm['macs'] / 1e6:.1f} M | {spread(arm['validation'])} | {spread(arm['test'])} |")
        lines += [
            "",
            f"ONNX Runtime, batch size 1: {times['dense']['ms_p50']:.3f} ms dense, {small['ms_p50']:.3f} ms small; "
            f"{small['speedup']:.2f}x as fast ({small['speedup_low']:.2f} to {small['speedup_high']:.2f}). "
            f"Drop on test scenes: {task['drop_points']:.2f} points. At least {GOAL['speedup']:g}x as fast, at most "
            f"{GOAL['drop_points']:g} point lost: {'yes' if task['met'] else 'no'}.",
            "",
            *[f"- {line}" for line in task["verdict"]],
        ]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
