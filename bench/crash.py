"""Kill a search at any moment, resume it, and compare it with one that was never stopped.

    OMP_NUM_THREADS=1 python bench/crash.py [--kills 500]        writes bench/results/crash.json and crash.md

A process with everything imported forks a child that searches, shrinks the ticket and writes the report, for a small network with batch
norm and dropout. SIGKILL comes at a random time, or at a given moment of a given write: when half of a file is written, before it is
renamed and behind that. Then every file under a final name must be whole. The run is resumed, killed again or not, until it ends: with
the ticket, history, verdict and small network of the undisturbed run, to the bit, and no other file. No epoch that was kept may be
trained again, and no kill may cost more than one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from _common import RESULTS, finish
from _crash_child import POINTS, SEARCHING, Moment, Reporter, few_digits, instrument, work
from safetensors.torch import load_file

import ltcompile as lt
from ltcompile import paths
from ltcompile.data import Dataset

PHASES = ("training", "writing a file", "pruning", "rewinding", "judging", SEARCHING, "shrinking", "reporting")
MOST = 4  # kills of one run
LONGEST_S = 60  # an attempt that takes longer hangs


@dataclass
class Attempt:
    """What became of one child."""

    killed: bool
    phase: str
    begun: list[str]
    kept: list[str]
    writes: int
    seconds: float
    problem: str = ""

    @classmethod
    def make(cls, folder: Path, data: Dataset, moment: Moment | None = None, after_s: float = LONGEST_S) -> Attempt:
        """Fork a child and let it work, until it is done or killed: at `moment`, or else after some seconds."""
        reader, writer = os.pipe()
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            _be_child(folder, data, moment, writer)
        os.close(writer)
        status = _wait(child, began + after_s)
        with os.fdopen(reader) as pipe:
            events = [line.split(" ", 1) for line in pipe.read().splitlines()]
        noted = {kind: [words for what, words in events if what == kind] for kind in ("phase", "begun", "kept", "wrote")}
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        problem = "it hung" if killed and after_s == LONGEST_S and moment is None else ""
        if not killed and status:
            problem = f"it ended with status {status}"
        phase = moment.point if moment and killed else next(filter(None, reversed(noted["phase"])), SEARCHING)
        return cls(killed, phase, noted["begun"], noted["kept"], len(noted["wrote"]), time.perf_counter() - began, problem)


def _be_child(folder: Path, data: Dataset, moment: Moment | None, pipe: int) -> NoReturn:
    status = 1
    try:
        reporter = Reporter(pipe)
        instrument(reporter)
        if moment is not None:
            moment.arrange()
        work(folder, data, reporter)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wait(child: int, deadline: float) -> int:
    """The exit status of `child`, which is killed at the deadline."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.perf_counter() >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.0005)


@dataclass
class Trial:
    """One run, killed some times and resumed until it ended."""

    kills: list[str] = field(default_factory=list)  # the phase of each
    repeated: list[int] = field(default_factory=list)  # epochs that each cost
    leftovers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    undisturbed_s: float = math.inf  # where the kill came too late

    @classmethod
    def make(
        cls, folder: Path, data: Dataset, expected: Outcome, first: Moment | None, rng: random.Random, usual_s: float, most: int
    ) -> Trial:
        """Kill a run in `folder` at the `first` moment, or a random one, and up to `most` times in all; then compare it."""
        trial, attempts = cls(), list[Attempt]()
        while not attempts or (attempts[-1].killed and not attempts[-1].problem):
            killing = len(attempts) < most and (not attempts or rng.random() < 0.75)
            moment = first if killing and not attempts else None
            after_s = rng.uniform(0, usual_s) if killing and moment is None else LONGEST_S
            attempts.append(Attempt.make(folder, data, moment, after_s))
            trial.problems += broken(folder)
        if found := [attempt.problem for attempt in attempts if attempt.problem]:
            trial.problems += found
            return trial
        if len(attempts) == 1:
            trial.undisturbed_s = attempts[0].seconds
        trial.kills = [attempt.phase for attempt in attempts[:-1]]
        for i, attempt in enumerate(attempts[:-1]):
            later = {epoch for other in attempts[i + 1 :] for epoch in other.begun}
            trial.repeated.append(len(later & set(attempt.begun)))
            trial.problems += [f"{epoch} was kept and trained again" for epoch in sorted(later & set(attempt.kept))]
        outcome = Outcome.of(folder)
        trial.problems += outcome.differences(expected)
        trial.leftovers = sorted(outcome.files - expected.files)
        return trial


def broken(folder: Path) -> list[str]:
    """The files under final names that are not whole."""
    readers: dict[str, Callable[[Path], object]] = {
        ".pt": lambda file: torch.load(file, weights_only=True),
        ".json": lambda file: json.loads(file.read_text()),
        ".jsonl": lambda file: [json.loads(line) for line in file.read_text().splitlines()],
        ".safetensors": load_file,
        ".html": lambda file: file.read_text().rstrip().index("</html>"),
    }
    found = []
    for file in (f for f in folder.rglob("*") if f.suffix in readers and not f.name.startswith(".")):
        try:
            readers[file.suffix](file)
        except Exception as error:
            found.append(f"{file.name} is not whole: {error!r}")
    return found


@dataclass(frozen=True)
class Outcome:
    """The results of a finished run, without times."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    files: set[str]

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        ticket = lt.Ticket.load(folder / "ticket.pt")
        epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        values = {
            "plan": ticket.plan.to_json(),
            "verdict": ticket.verdict.to_json(),
            "history": [_timeless(row.to_json()) for row in ticket.history],
            "epochs": sorted((_timeless(epoch) for epoch in epochs), key=lambda e: (e["unit"], e["epoch"])),
            "level": ticket.level,
        }
        small = load_file(folder / "small.safetensors")
        tensors = {**ticket.weights, **{f"small {name}": value for name, value in small.items()}}
        return cls(tensors, values, {str(file.relative_to(folder)) for file in folder.rglob("*")})

    def differences(self, other: Outcome) -> list[str]:
        """What is not the same to the bit."""
        found = [f"{what} differs" for what, value in self.values.items() if value != other.values[what]]
        if self.tensors.keys() != other.tensors.keys():
            return [*found, "other tensors"]
        found += [f"{name} differs" for name, value in self.tensors.items() if not torch.equal(value, other.tensors[name])]
        return found + [f"{name} is missing" for name in sorted(other.files - self.files)]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}


def measure(kills: int) -> dict[str, Any]:
    """So many kills, two of five at given moments of given writes; how their runs came out."""
    torch.set_num_threads(1)  # what threads hold when a process forks stays held in the child
    data, rng, trials = few_digits(), random.Random(0), list[Trial]()
    with tempfile.TemporaryDirectory() as scratch:
        with open(os.devnull, "wb") as sink:
            work(Path(scratch) / "warm", data, Reporter(sink.fileno()))  # imports, and all that is done once in a process
        whole = [Attempt.make(Path(scratch) / f"whole-{i}", data) for i in range(3)]
        expected, usual_s = Outcome.of(Path(scratch) / "whole-0"), statistics.median(attempt.seconds for attempt in whole)
        moments = [Moment(point, nth) for nth in range(1, whole[0].writes + 1) for point in POINTS]
        chosen = rng.sample(moments, min(len(moments), kills * 2 // 5))
        began = time.perf_counter()
        while (done := sum(len(trial.kills) for trial in trials)) < kills:
            folder = Path(scratch) / f"run-{len(trials)}"
            most = min(MOST, kills - done)
            trials.append(Trial.make(folder, data, expected, chosen.pop() if chosen else None, rng, usual_s, most))
            if trials[-1].problems and not trials[-1].kills:
                break  # it does not end: no later one will
            usual_s = min(usual_s, trials[-1].undisturbed_s)  # the machine may have been busier before
            shutil.rmtree(folder)
    return {
        "bench": "crash",
        "kills": sum(len(trial.kills) for trial in trials),
        "runs": len(trials),
        "writes_of_a_run": whole[0].writes,
        "epochs_of_a_run": len(whole[0].kept),
        "seconds_of_a_run": usual_s,
        "seconds": time.perf_counter() - began,
        "phases": {phase: _summary(trials, phase) for phase in (*PHASES, *POINTS) if any(phase in trial.kills for trial in trials)},
        "problems": [problem for trial in trials for problem in trial.problems],
    }


def _summary(trials: list[Trial], phase: str) -> dict[str, int]:
    hit = [trial for trial in trials if phase in trial.kills]
    costs = [cost for trial in hit for where, cost in zip(trial.kills, trial.repeated, strict=True) if where == phase]
    return {
        "kills": len(costs),
        "resumed_equal": sum(trial.kills.count(phase) for trial in hit if not trial.problems),
        "epochs_repeated_at_most": max(costs),
        "leftovers": sum(len(trial.leftovers) for trial in hit),
    }


def table(result: dict[str, Any]) -> str:
    lines = ["| killed while | kills | resumed equal | epochs repeated at most | leftovers |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {phase} | {' | '.join(map(str, row.values()))} |" for phase, row in result["phases"].items()]
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=500)
    result = measure(arguments.parse_args().kills)
    summary = f"{result['kills']} kills of {result['runs']} runs, {len(result['problems'])} problems; a run takes {result['seconds_of_a_run']:.2f} s"
    paths.write_text(RESULTS / "crash.md", f"# Killed and resumed\n\nMade by `python bench/crash.py`: {summary}.\n\n{table(result)}\n")
    print(table(result))
    finish("crash", result)


if __name__ == "__main__":
    main()
