"""How a search behaves on many workers: a simulation on the real scheduling code, and two real processes against one.

    python bench/scale.py                 the simulation; writes bench/results/scale.json and scale.md
    python bench/scale.py --faults many   its rows with that kind of faults alone; the others stay as they are in scale.json
    python bench/scale.py --processes     a real search by two processes and by one, on an idle machine of two cores; adds to scale.json

In the simulation (tests/support/cluster.py) trainings only let a simulated time pass, ten epochs of about 30 s each, on a file system in memory.
Workers are killed and replaced half a minute later at most, when the process that started them notices, and frees their arms; "unnoticed" kills
leave the leases of their arms to expire. With "no head", no process but the workers looks at leases, as where all joined by themselves.
Heartbeats or whole workers freeze for three minutes, and the disk is full for two minutes. No clock agrees with another. Makespans are compared
with list scheduling, which has neither faults nor costs. Faults are drawn five times a row, from seeds that are fixed here, as draws differ by up
to 0.1; without faults there is nothing to draw but clocks. What is wanted holds for the worst draw.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from _common import RESULTS, ROOT, finish

from ltcompile import paths
from ltcompile.core.arm import Arm
from ltcompile.core.run_folder import RunFolder
from ltcompile.search.arms import ArmGraph

sys.path.append(str(ROOT / "tests/support"))
from cluster import Cluster, Faults, list_scheduling

LEVELS, WORKERS, LEVEL = 7, 64, 1
DRAWS = range(10, 15)  # seeds of the faults of a row, on which no variant of the scheduler was compared before
SEEDS = (25, 50, 100, 200)  # of ten arms each
FAULTS = {
    "none": Faults(),
    "many": Faults(kills=WORKERS, freezes=WORKERS // 4, mutes=WORKERS // 4, full_s=120),  # a kill for each worker
    "very many": Faults(kills=300, freezes=75, mutes=75, full_s=120),
}
FAULTS |= {f"{name}, unnoticed": replace(FAULTS[name], unnoticed=True) for name in ("many", "very many")}
FAULTS |= {f"{name}, no head": replace(FAULTS[name], unnoticed=True) for name in ("many", "very many")}
CASES = [(seeds, "none") for seeds in SEEDS]
CASES += [(seeds, faults) for faults in list(FAULTS)[1:] for seeds in ((100,) if "very" in faults else (50, 100))]
WANTED = 1.1  # times as long as list scheduling, at most
SEARCH = "--model vgg16-quarter --data digits --image-size 16 --epochs {epochs} --rounds 2 --rate 0.5 --seeds 2 --no-controls --margin 50"


def seconds(arm: Arm) -> float:
    """How long an arm trains: about five minutes, less where a ticket is smaller, and never the same."""
    return 300 * (0.85**arm.level if arm.kind == "ticket" else 1.0) * random.Random(repr(arm)).lognormvariate(0, 0.3)


def simulate(seeds: int, faults: str) -> dict[str, Any]:
    """One search on all workers, with every draw of the faults: what is worst of all draws, but for the mean makespan."""
    graph = ArmGraph(range(seeds), LEVELS)
    shortest, found = list_scheduling(graph, LEVEL, WORKERS, seconds), []
    for draw in DRAWS if FAULTS[faults] != Faults() else DRAWS[:1]:
        with tempfile.TemporaryDirectory() as folder:
            more: dict[str, Any] = {"coordinated": "no head" not in faults, "seed": draw}
            found.append(Cluster(RunFolder(folder), graph, WORKERS, seconds, FAULTS[faults], **more).run())
    arms, calls = len(graph.arms(LEVEL)), Counter[str]()
    for run in found:
        calls |= run.files.calls
    return {
        "arms": arms,
        "workers": WORKERS,
        "faults": faults,
        "draws": len(found),
        "finished": min(len(run.results) for run in found),
        "given_up": max(len(run.given_up) for run in found),
        "results_written_twice": max(sum(count > 1 for count in run.results.values()) for run in found),
        "takeovers": max(run.takeovers for run in found),
        "epochs_repeated": max(run.repeated for run in found),
        "epochs_repeated_beyond_one_a_takeover": max(max(0, run.repeated - run.takeovers) for run in found),
        "of_list_scheduling": [round(run.ends / shortest, 3) for run in found],
        "mean": round(fmean(run.ends / shortest for run in found), 3),
        "worst": round(max(run.ends / shortest for run in found), 3),
        "scheduler_ms_per_arm_and_process": round(max(1000 * run.scheduling_s / arms / (WORKERS + 1) for run in found), 4),
        "scheduler_share_of_a_core": round(max(run.scheduling_s / (WORKERS + 1) / run.ends for run in found), 6),
        "calls_per_arm": {name: round(count / arms, 1) for name, count in sorted(calls.items())},
    }


def table(rows: list[dict[str, Any]]) -> str:
    names = (
        *("arms", "faults", "draws", "finished", "results_written_twice", "takeovers", "epochs_repeated", "mean", "worst"),
        "scheduler_ms_per_arm_and_process",
    )
    calls = ("create", "list", "read", "stat", "beat")
    lines = ["| " + " | ".join([*(name.replace("_", " ") for name in names), *(f"{name}s per arm" for name in calls)]) + " |"]
    lines.append("| --- " * (len(names) + len(calls)) + "|")
    for row in rows:
        lines.append(
            "| " + " | ".join(str(cell) for cell in [*(row[name] for name in names), *(row["calls_per_arm"][c] for c in calls)]) + " |"
        )
    return "\n".join(lines)


def processes(epochs: int) -> dict[str, Any]:
    """The seconds of one search by two processes and by one, each with one thread."""
    found: dict[str, Any] = {"search": SEARCH.format(epochs=epochs)}
    with tempfile.TemporaryDirectory() as folder:
        for jobs in (1, 2):
            words = [sys.executable, "-m", "ltcompile", "find", *found["search"].split(), "--name", f"jobs{jobs}", "--jobs", str(jobs)]
            began = time.perf_counter()
            subprocess.run(
                [*words, "--executor-option", "threads=1", "--json"],
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            found[f"seconds_of_{jobs}"] = round(time.perf_counter() - began, 2)
        rows = [json.loads((Path(folder) / f"runs/jobs{jobs}/search.json").read_text())["rows"] for jobs in (1, 2)]
    found["training_seconds"] = [round(sum(row["seconds"] for row in each), 2) for each in rows]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in each] for each in rows]
    return {**found, "same_rows": timeless[0] == timeless[1], "speedup": round(found["seconds_of_1"] / found["seconds_of_2"], 3)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--processes", action="store_true", help="time a real search instead")
    arguments.add_argument("--faults", choices=FAULTS, help="simulate the rows with these faults alone")
    arguments.add_argument("--epochs", type=int, default=24, help="of each training of the real search")
    given = arguments.parse_args()
    file = RESULTS / "scale.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    if given.processes:
        result = {"bench": "scale", "simulation": before.get("simulation", []), "processes": processes(given.epochs)}
    else:
        kept = {(row["arms"], row["faults"]): row for row in before.get("simulation", [])} if given.faults else {}
        rows = [simulate(*case) if given.faults in (None, case[1]) else kept[10 * case[0], case[1]] for case in CASES]
        result = {"bench": "scale", "simulation": rows, "processes": before.get("processes")}
    made = f"Made by `python bench/scale.py`, a simulation of {WORKERS} workers (see there)."
    text = f"# Many workers on one search\n\n{made} Mean and worst are makespans over list scheduling's; all else is the worst of the draws.\n\n"
    text += f"{table(result['simulation'])}\n\nWanted: at most {WANTED} times as long as list scheduling. "
    for which in ("mean", "worst"):
        late = [f"{row['arms']} arms, {row['faults']} faults" for row in result["simulation"] if row[which] > WANTED]
        text += f"Not reached by the {which} of: {'; '.join(late) or 'none'}. "
    text = text.rstrip() + "\n"
    if real := result["processes"]:
        text += (
            f"\nA real search (`{real['search']}`): {real['seconds_of_1']} s by one process, {real['seconds_of_2']} s by two on two cores, "
        )
        text += f"{real['speedup']}x as fast, the same rows: {real['same_rows']}. Starting both is included.\n"
    paths.write_text(RESULTS / "scale.md", text)
    print(text)
    finish("scale", result)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of arms in one order, so that every run draws the same faults for the same workers
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    main()
