"""A worker: a process that trains arms of a run which another one began, from what the run folder says and its command line."""

from __future__ import annotations

import json
import platform
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ltcompile import executors
from ltcompile.core.arm import Arm
from ltcompile.core.fields import SchemaError, from_json
from ltcompile.core.lease import LEASE_S, this_process
from ltcompile.core.profile import Profile
from ltcompile.core.recipe import Recipe
from ltcompile.core.records import versions
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch
from ltcompile.models import is_own_code
from ltcompile.paths import read_json, write_json
from ltcompile.search.attach import read_settings
from ltcompile.search.command import CommandRun, command_environment
from ltcompile.search.config import SearchConfig
from ltcompile.search.job import SearchJob, prepare
from ltcompile.search.listener import Listener, NullListener
from ltcompile.search.run import SPACE_S, SearchRun, SharedRun
from ltcompile.search.sharing import Runs, Sharing
from ltcompile.search.source import Source
from ltcompile.training import pick_device


def describe(run: RunFolder, job: SearchJob, source: Source | None) -> None:
    """Write what a worker needs besides the settings: names of model and data, versions, or why no worker can take part."""
    reason = _why_not(job, source)
    where = source.anywhere().to_json() if source is not None and reason is None else None
    write_json(run.job, {"kind": "job", "format": 1, "source": where, "reason": reason, "environment": environment(job.device)}, once=True)


def check_workers(job: SearchJob, source: Source | None, jobs: int, executor: str) -> None:
    """Raises InvalidSetting where other processes cannot train the job's arms; UnknownName and Unavailable for the executor."""
    if jobs < 1:
        raise InvalidSetting(f"jobs={jobs} must be at least 1")
    if reason := _why_not(job, source):
        raise InvalidSetting(f"jobs={jobs}: {reason}; leave jobs= out, and start the same script in as many processes with resume=True")
    executors.load(executor)


def _why_not(job: SearchJob, source: Source | None) -> str | None:
    """Why a process that has the run folder alone cannot do what this one does; None where it can."""
    if source is None:
        return "the data was passed as an object, which another process cannot load by name"
    if job.trainer is not None or job.mask is not None or job.build is not None:
        return "a trainer, mask or network was passed as an object, which another process does not have"
    if job.config.target is not None and job.config.target.measure == "energy":
        return "a target of energy is measured while nothing else runs, in one process"
    return None


def environment(device: torch.device) -> dict[str, str]:
    """What has to be the same for the same bits."""
    found = {name: versions().get(name, "") for name in ("ltcompile", "torch")}
    kind = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return {**found, "python": platform.python_version(), "device": kind}


def join(
    folder: str | Path,
    *,
    model: str | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    name: str | None = None,
    allow_other_versions: bool = False,
    retries: int = 2,
    lease_s: float = LEASE_S,
    patience_s: float = float("inf"),
    checkpoint_minutes: float | None = None,
    listener: Listener | None = None,
    train: str | None = None,
) -> dict[str, int]:
    """Train arms of the run in `folder` until nothing is left, and conclude it unless another process does; how many were trained and failed.

    Args:
        model: the run's `package.module:factory`, which is imported on the caller's word alone.
        data_root: where the data lies on this machine, if elsewhere than where the run began.
        device: cpu or cuda; a GPU by default where there is one.
        name: what leases and logs call this worker.
        allow_other_versions: take part with other versions or another device than the run began with; the folder keeps a note.
        retries: how often a failed arm is tried again.
        lease_s: after how many seconds without a sign of life another process's arm is taken over.
        patience_s: leave after so long without an arm to train.
        checkpoint_minutes: save also within an epoch, so often; by default after every epoch.
        listener: receives progress.
        train: the command that trains an arm, where the run was begun by `find --train`: it is started on the caller's word alone.

    Raises:
        InvalidFile: there is no run. InvalidSetting: workers cannot take part in it. TicketMismatch: versions or data are others.
        TrainingFailed: what is left has failed.
    """
    run = RunFolder(folder, SPACE_S)
    if run.command.exists():
        search: SharedRun = _of_command(run, train, allow_other_versions, listener or NullListener())
    elif train is not None and run.begun:
        raise InvalidSetting(f"train={train!r} is given, and the arms of {run.path} are not trained by a command; leave train= out")
    else:
        search = _of_settings(run, model, data_root, device, allow_other_versions, checkpoint_minutes, listener or NullListener())
    sharing, found = take_part(search, name, retries, lease_s, patience_s)
    if sharing.finished:
        search.wait_for_conclusion(sharing.info, lease_s)
    return found


def take_part(runs: Runs, name: str | None, retries: int, lease_s: float, patience_s: float) -> tuple[Sharing, dict[str, int]]:
    """Train arms of runs that other processes take part in too, until nothing is left; the part of this one, and how many were trained and failed.

    An arm's error is printed, and others are trained. `name` and the rest are as `join` has them.
    """
    info = this_process(**({"worker": name, "log": str(runs.workers / f"{name}.log")} if name else {}))
    failed: list[Arm] = []

    def on_failure(arm: Arm, error: Exception) -> None:
        failed.append(arm)
        print(f"{arm.name} of seed {arm.seed} failed:", file=sys.stderr)
        traceback.print_exception(error)

    sharing = Sharing(runs, info, retries=retries, lease_s=lease_s)
    sharing.work(on_failure, patience_s)
    return sharing, {"trained": sum(run.trained for run in sharing.pools), "failed": len(failed)}


def _of_command(run: RunFolder, train: str | None, allow_other: bool, listener: Listener) -> CommandRun:
    """The part of a worker in a run whose arms a command trains."""
    settings = read_settings(run.command)
    if train is None:
        raise InvalidSetting(
            f"the arms of {run.path} are trained by a command, which is started on your word: add train= as `find` was given it"
        )
    differs = compared(settings["environment"], command_environment(), allow_other)
    if settings["train"] != train:
        if not allow_other:
            raise TicketMismatch(
                f"train={train!r} is not the command that {run.path} began with; give the same, or allow_other_versions=True"
            )
        differs.append("another command")
    if differs:
        note_differences(run.workers, differs, command_environment())
    return CommandRun(run, train, settings, listener)


def _of_settings(
    run: RunFolder,
    model: str | None,
    data_root: str | Path | None,
    device: str | None,
    allow_other_versions: bool,
    checkpoint_minutes: float | None,
    listener: Listener,
) -> SearchRun:
    """The part of a worker in a run that the project's own loop trains."""
    settings, source, began_with = _read(run, model)
    on = pick_device(device)
    note = compared(began_with, environment(on), allow_other_versions)
    task = (source if data_root is None else replace(source, data_root=str(data_root))).load()
    config, recipe = run.read_setting("config", SearchConfig), run.read_setting("recipe", Recipe)
    timed = config.target is not None and config.target.profiled
    if timed and not run.profile.exists():
        raise InvalidSetting(
            f"plans of {run.path} are corrected by measurements while nothing else runs; end its process, and continue with jobs= and resume=True"
        )
    profile = Profile.load(run.profile) if timed else None
    more: dict[str, Any] = {"profile": profile, "by_tables": timed, "checkpoint_minutes": checkpoint_minutes}
    job = SearchJob(source.model, task, config, recipe, on, source.weights, **more)
    if different := [key for key, value in json.loads(json.dumps(job.to_json())).items() if settings.get(key) != value]:
        raise TicketMismatch(
            f"{', '.join(different)}: what {socket.gethostname()} finds is not what {run.settings} holds; let data_root= name the same data, and "
            "install the same versions"
        )
    if note:
        note_differences(run.workers, note, environment(on))
    return SearchRun(prepare(job), run, listener)


def note_differences(workers: Path, differs: list[str], here: dict[str, str]) -> None:
    """Note in a run's folder of workers in what this one differs."""
    write_json(workers / f"{socket.gethostname()}-{this_process()['pid']}.json", {"differs": differs, "environment": here})


def _read(run: RunFolder, model: str | None) -> tuple[dict[str, Any], Source, dict[str, str]]:
    """The settings of a run, its source, and what it began with."""
    if not run.begun:
        raise InvalidFile(
            f"there is no run at {run.path} as {socket.gethostname()} sees it; name a run folder, and mount the file system that it lies in on this "
            "machine too"
        )
    if (settings := run.read_settings()).get("model") == "own":
        raise InvalidSetting(f"the arms of {run.path} are trained by a script of its own; start that script here: it shares them")
    if not run.job.exists():
        raise InvalidFile(
            f"{run.path} was begun by an older version; continue it once with `ltcompile find --resume`, which writes {run.job.name}"
        )
    value = read_json(run.job, "description of a job")
    try:
        source = from_json(value["source"], Source | None, "source")
        reason, began_with = (
            from_json(value["reason"], str | None, "reason"),
            from_json(value["environment"], dict[str, str], "environment"),
        )
    except (KeyError, TypeError, SchemaError) as error:
        raise InvalidFile(f"{run.job} does not describe a job ({error}); remove it, and continue with `ltcompile find --resume`") from error
    if source is None:
        raise InvalidSetting(f"no worker can take part in {run.path}: {reason}; start the same script or command here, with resume=True")
    if is_own_code(source.model) and model != source.model:
        raise InvalidSetting(f"{run.path} trains a network of your own code, which is imported on your word: add model={source.model}")
    return settings, source, began_with


def compared(there: Mapping[str, str], here: Mapping[str, str], allowed: bool) -> list[str]:
    """In what this process differs from the one that began the run. Raises TicketMismatch unless that is allowed."""
    found = [f"{name} {there.get(name)} there, {value} here" for name, value in here.items() if there.get(name) != value]
    if found and not allowed:
        raise TicketMismatch(
            f"the run began with other versions ({'; '.join(found)}), and may not give the same bits; install the same, or allow_other_versions=True"
        )
    return found
