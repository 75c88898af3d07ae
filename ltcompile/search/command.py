"""A search whose arms a command trains: any script that calls `lt.attach` and `lt.report_metric`."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ltcompile.core.arm import Arm
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidSetting, TrainingFailed
from ltcompile.graph.examples import read_example
from ltcompile.paths import read_json, write_json
from ltcompile.search.attach import SEARCH, takes_fresh_weights
from ltcompile.search.config import SearchConfig
from ltcompile.search.own_loop import check_supported


def search_by_command(
    command: str,
    folder: str | Path,
    metric: Metric,
    config: SearchConfig,
    *,
    epochs: int,
    example: str | None = None,
    resume: bool = False,
    on_arm: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Run `command` once for each arm that is not finished; the summary of the search, as its own-search.json holds it.

    Args:
        command: a command line, which no shell interprets. In it, {seed}, {epochs}, {arm} and {folder} stand for those of the arm; arms that
            need fresh weights get a seed of their own, and `folder` is for checkpoints.
        metric: what the script reports.
        epochs: how long the dense network trains.
        example: the inputs to trace the network with, as `graph.examples.read_example` reads them; None where the script passes them.
        on_arm: gets the name of each arm before it is trained.

    Raises:
        InvalidFile: the folder holds a search, and `resume` is false. TrainingFailed: the command ended with an error. InvalidSetting: it
            finished no arm. All finished arms stay.
    """
    if config.rewind_epoch:
        raise InvalidSetting(f"rewind_epoch={config.rewind_epoch}: a script cannot say when that epoch ends; choose 0, or use lt.Search")
    check_supported(config)
    if config.target is not None and config.target.profiled:
        raise InvalidSetting(
            f"a target of {config.target.measure} needs a profile of the network; use lt.Search(profile=), or target_macs here"
        )
    if example is not None:
        read_example(example)
    run = RunFolder(folder)
    if run.command.exists() and not resume:
        raise InvalidFile(f"{run.path} holds a search already; continue it with resume=True, or choose another folder=")
    settings = {"metric": dataclasses.asdict(metric), "config": config.to_json(), "epochs": epochs, "example": example}
    write_json(run.command, settings)
    while not run.own_summary.exists():
        arm, arm_epochs = _next(run, config, epochs)
        name = f"seed{arm.seed}/{arm.name}"
        checkpoints = run.path / name
        checkpoints.mkdir(parents=True, exist_ok=True)
        on_arm(name)
        seed = arm.stream("fresh weights") >> 32 if takes_fresh_weights(arm, config.rewind) else arm.seed
        words = _filled(command, {"seed": seed, "epochs": arm_epochs, "arm": name, "folder": checkpoints})
        try:
            code = subprocess.run(words, env=os.environ | {SEARCH: str(run.command.resolve())}, stdout=sys.stderr, check=False).returncode
        except OSError as error:
            raise InvalidSetting(f"train={command!r} cannot be started: {error}") from error
        if code:
            raise TrainingFailed(
                f"the training of {name} ended with exit code {code}; fix it and continue with resume=True: {shlex.join(words)}"
            )
        if not run.training(arm).exists():
            raise InvalidSetting(
                f"the command ended, but {name} is not finished: the script must call `model = lt.attach(model)` right after it builds the "
                "network, and `lt.report_metric(value)` at its end"
            )
    summary: dict[str, Any] = read_json(run.own_summary, "summary of a search")
    return summary


def _next(run: RunFolder, config: SearchConfig, epochs: int) -> tuple[Arm, int]:
    """The arm to train next, and for how many epochs. Raises InvalidFile where the folder's note of it is damaged."""
    if not run.next_arm.exists():
        return Arm(config.seed, "dense", 0), epochs
    value = read_json(run.next_arm, "note of the next arm")
    try:
        return Arm(int(value["seed"]), value["kind"], int(value["level"])), int(value["epochs"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFile(f"{run.next_arm} does not name an arm ({error!r}); remove {run.path}, and begin again") from error


def _filled(command: str, values: dict[str, object]) -> list[str]:
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
