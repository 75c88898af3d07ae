"""A search whose arms a command trains: any script that calls `lt.attach` and `lt.report_metric`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltcompile.core.arm import Arm
from ltcompile.core.lease import Lease, LeaseLost, this_process
from ltcompile.core.profile import Profile
from ltcompile.core.records import Trained, versions
from ltcompile.core.run_folder import RunFolder, differences
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch, TrainingFailed
from ltcompile.graph.examples import read_example
from ltcompile.paths import read_json, write_json
from ltcompile.search.attach import ARM, SEARCH, read_settings, takes_fresh_weights
from ltcompile.search.config import SearchConfig
from ltcompile.search.coordinator import coordinate, open_workers
from ltcompile.search.iterative_pruning import budget_epochs
from ltcompile.search.job import recorded_profile
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.own_loop import check_supported
from ltcompile.search.run import SharedRun
from ltcompile.search.sharing import Sharing

LOOK_S, STOP_S = 1.0, 10.0


def search_by_command(
    command: str,
    folder: str | Path,
    metric: Metric,
    config: SearchConfig,
    *,
    epochs: int,
    example: str | None = None,
    profile: Profile | None = None,
    resume: bool = False,
    listener: Listener | None = None,
    jobs: int | None = None,
    executor: str = "local",
    executor_options: Mapping[str, str] | None = None,
    retries: int = 2,
) -> dict[str, Any]:
    """Run `command` once for each arm that is not finished; the summary of the search, as its own-search.json holds it.

    Args:
        command: a command line, which no shell interprets. In it, {seed}, {epochs}, {arm} and {folder} stand for those of the arm; arms that
            need fresh weights get a seed of their own, and `folder` is for checkpoints.
        folder: the run folder.
        metric: what the script reports.
        config: the search.
        epochs: how long the dense network trains.
        example: the inputs to trace the network with, as `graph.examples.read_example` reads them; None where the script passes them.
        profile: the layers' times, from which alone plans for a target of time follow.
        resume: continue the search in `folder`.
        listener: receives progress.
        jobs: run so many commands at a time, under processes of their own; None runs one after another.
        executor: what starts these processes: local, slurm or ray (`ltcompile.executors`).
        executor_options: its settings.
        retries: how often an arm that failed in such a process is tried again.

    Raises:
        InvalidFile: the folder holds a search, and `resume` is false. TicketMismatch: it has other settings. TrainingFailed: the command ended
            with an error. InvalidSetting: it finished no arm. All finished arms stay.
    """
    if config.rewind_epoch:
        raise InvalidSetting(f"rewind_epoch={config.rewind_epoch}: a script cannot say when that epoch ends; choose 0, or use lt.Search")
    check_supported(config)
    if config.target_energy is not None:
        raise InvalidSetting("a target of energy is measured while nothing else runs; use lt.Search(measured=), or target_macs here")
    if config.target_time is not None and profile is None:
        raise InvalidSetting("a target of time needs the layers' times: profile=, as `ltcompile profile` writes it")
    if example is not None:
        read_example(example)
    _filled(command, {})
    run = RunFolder(folder)
    if run.command.exists() and not resume:
        raise InvalidFile(f"{run.path} holds a search already; continue it with resume=True, or choose another folder=")
    settings = {"metric": dataclasses.asdict(metric), "config": config.to_json(), "epochs": epochs, "example": example}
    if run.command.exists():
        there = read_settings(run.command)
        if message := differences({name: there[name] for name in settings}, json.loads(json.dumps(settings))):
            raise TicketMismatch(f"{run.path} was started with other settings ({message}); resume with the same, or choose another folder=")
    with open_workers(run.workers, jobs, executor, executor_options) as workers:
        if profile is not None:
            recorded_profile(run, profile)
        write_json(run.command, settings | {"train": command, "environment": command_environment()})
        run.tidy()
        search = CommandRun(run, command, read_settings(run.command), listener or NullListener())
        if not run.own_summary.exists():
            if workers is None:
                Sharing(search, in_order=True).work()
            else:
                coordinate(search, workers, jobs or 1, retries)
            search.wait_for_conclusion(this_process())
    summary: dict[str, Any] = read_json(run.own_summary, "summary of a search")
    return summary


def command_environment() -> dict[str, str]:
    """The versions that a worker should have too."""
    return {name: versions().get(name, "") for name in ("ltcompile", "python", "torch") if name in versions()}


class CommandRun(SharedRun):
    """A search whose arms `command` trains; `settings` are those of its command.json, none of which is executed."""

    def __init__(self, folder: RunFolder, command: str, settings: dict[str, Any], listener: Listener) -> None:
        with folder.fitting(folder.command):
            config, metric = SearchConfig.from_json(settings["config"]), Metric(**settings["metric"])
        super().__init__(folder, config, metric, listener)
        self.command, self.epochs = command, settings["epochs"]
        self._rows: dict[Arm, Trained] = {}

    def row(self, arm: Arm) -> Trained:
        if arm not in self._rows:
            path = self.folder.training(arm)
            saved = self.folder.load(path)
            with self.folder.fitting(path):
                self._rows[arm] = Trained.from_json(saved["row"])
        return self._rows[arm]

    @property
    def summary(self) -> Path:
        return self.folder.own_summary

    def worker_arguments(self) -> list[str]:
        return ["--train", self.command]

    def train(self, arm: Arm, lease: Lease) -> None:
        epochs = budget_epochs(arm, self.row) if arm.kind in ("random", "dense_budget") else self.epochs
        lease.describe(epochs=epochs)
        self.listener.started(arm.seed, arm.kind, arm.level, epochs, 0)
        name = f"seed{arm.seed}/{arm.name}"
        self._start(arm, epochs, name, lease)
        if not self.folder.training(arm).exists():
            raise InvalidSetting(f"the command ended, but {name} is not finished: {BOTH_LINES}")

    def conclude(self) -> None:
        """Start the command once more: `lt.attach` concludes the search, and ends the script. Needed where an arm's last process was killed."""
        self._start(Arm(self.config.seed, "dense", 0), self.epochs, "", None)
        if not self.summary.exists():
            raise InvalidSetting(f"the command ended, but {self.folder.path} is not concluded: {BOTH_LINES}")

    def _start(self, arm: Arm, epochs: int, name: str, lease: Lease | None) -> None:
        """Run the command for an arm. Raises TrainingFailed where it ends with an error."""
        checkpoints = self.folder.own_checkpoints(arm)
        seed = arm.stream("fresh weights") >> 32 if takes_fresh_weights(arm, self.config.rewind) else arm.seed
        words = _filled(self.command, {"seed": seed, "epochs": epochs, "arm": name, "folder": checkpoints})
        try:
            code = call(words, os.environ | {SEARCH: str(self.folder.command.resolve()), ARM: name}, lease)
        except OSError as error:
            raise InvalidSetting(f"train={self.command!r} cannot be started: {error}") from error
        if code:
            raise TrainingFailed(
                f"the training of {name} ended with exit code {code}; fix it and continue with resume=True: {shlex.join(words)}"
            )


BOTH_LINES = "the script must call `model = lt.attach(model)` right after it builds the network, and `lt.report_metric(value)` at its end"


def call(words: list[str], environment: Mapping[str, str], lease: Lease | None) -> int:
    """The exit code of a command, which ends with this process. Raises LeaseLost where another process took over `lease` meanwhile."""
    process = subprocess.Popen(words, env=environment, stdout=sys.stderr)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK_S)
            if lease is not None and lease.superseded:
                raise LeaseLost(lease.stem)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _filled(command: str, values: Mapping[str, object]) -> list[str]:
    """The words of `command` with {name} replaced. Raises InvalidSetting where its quotes are open."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidSetting(f"train={command!r} is not a command line: {error}") from error
    if not words:
        raise InvalidSetting("train= is empty; give a command line such as 'python train.py --seed {seed}'")
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    return words
