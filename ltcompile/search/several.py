"""Several searches as one graph that processes share: each opens as soon as there is what it takes from others, and waits for nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Observer, this_process
from ltcompile.core.mask import WeightMask
from ltcompile.core.recipe import Recipe
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Task
from ltcompile.paths import check_room, writing
from ltcompile.search.config import SearchConfig
from ltcompile.search.coordinator import coordinate, open_workers
from ltcompile.search.disk_space import run_bytes
from ltcompile.search.execution import run_execution
from ltcompile.search.job import SearchJob, prepare
from ltcompile.search.listener import Listener
from ltcompile.search.run import SPACE_S, SearchRun, SharedRun
from ltcompile.search.sharing import Sharing
from ltcompile.search.source import Source
from ltcompile.search.worker import compared, describe, environment, note_differences, take_part


@dataclass(frozen=True)
class SearchPart:
    """One of several searches, and what it takes from others: the dense networks of the search `dense`, and its only `mask`, which is made once the
    searches `after` which it comes are finished. From `source`, a worker of this search alone loads its data.
    """

    name: str
    model: str
    task: Task
    config: SearchConfig
    recipe: Recipe
    source: Source | None = None
    dense: str | None = None
    after: tuple[str, ...] = ()
    mask: Callable[[], WeightMask] | None = None

    def job(self, device: torch.device, checkpoint_minutes: float | None) -> SearchJob:
        """The search without its mask."""
        return SearchJob(self.model, self.task, self.config, self.recipe, device, checkpoint_minutes=checkpoint_minutes)


class Searches:
    """Searches in folders of their own inside `folder`, for one of the processes that share them.

    Args:
        listen: makes the listener of a search.
        patient: trainings wait on a full disk for some minutes, as where several processes train.
        checkpoint_minutes: save also within an epoch, so often; by default after every epoch.
    """

    def __init__(
        self,
        folder: Path,
        parts: list[SearchPart],
        device: torch.device,
        listen: Callable[[SearchPart], Listener],
        *,
        patient: bool,
        checkpoint_minutes: float | None = None,
    ) -> None:
        self.path, self.workers, self.device, self.listen = folder, RunFolder(folder).workers, device, listen
        self.parts = {part.name: part for part in parts}
        self.folders = {name: RunFolder(folder / name, SPACE_S if patient else 0.0) for name in self.parts}
        self.jobs = {name: part.job(device, checkpoint_minutes) for name, part in self.parts.items()}
        self._runs: dict[str, SearchRun] = {}
        self._info, self._observer = this_process(), Observer()

    @property
    def environment(self) -> dict[str, str]:
        """What has to be the same for the same bits."""
        return environment(self.device)

    @contextlib.contextmanager
    def begun(self, workers: Mapping[str, Any] | None) -> Iterator[Callable[[], None]]:
        """Begins or resumes all searches, and gives the call that trains all that is left: by `workers` (`find`'s jobs, executor, executor_options and
        retries), or one after another in this process. Both raise as `find`.
        """
        how = {"jobs": None, "executor": "local", "executor_options": {}, "retries": 0} if workers is None else workers
        with open_workers(self.workers, how["jobs"], how["executor"], how["executor_options"]) as opened:
            self._begin(how["jobs"] or 1)
            if opened is None:
                yield Sharing(self, in_order=True).work
            else:
                yield lambda: coordinate(self, opened, how["jobs"], how["retries"])

    def _begin(self, jobs: int) -> None:
        """Check all searches, choose how each computes while nothing else runs, and open those that wait for no other.

        Raises InvalidFile where the disk is too small for all; TicketMismatch where a search was begun with other settings.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        needed = sum(run_bytes(prepare(job), jobs) - self.folders[name].bytes_written for name, job in self.jobs.items())
        check_room(self.path, needed, f"what is searched in {self.path}")
        for name, folder in self.folders.items():
            folder.tidy()
            if (source := self.parts[name].dense) is not None:
                folder.copy_dense(self.folders[source], range(0))
            run_execution(self.jobs[name], folder)
        self.advance([])

    def join(
        self,
        began_with: Mapping[str, str],
        *,
        name: str | None = None,
        allow_other_versions: bool = False,
        retries: int = 2,
        lease_s: float = LEASE_S,
        patience_s: float = float("inf"),
    ) -> dict[str, int]:
        """Train arms until nothing is left, in searches that another process began in the environment `began_with`; how many were trained and failed.

        Arguments and errors are those of `search.worker.join`.
        """
        if differs := compared(began_with, self.environment, allow_other_versions):
            note_differences(self.workers, differs, self.environment)
        self._observer = Observer(lease_s)
        return take_part(self, name, retries, lease_s, patience_s)[1]

    # As `search.sharing.Runs`

    @property
    def complete(self) -> bool:
        return len(self._runs) == len(self.parts) and all(run.concluded for run in self._runs.values())

    def advance(self, finished: Collection[SharedRun]) -> list[SharedRun]:
        """Conclude searches of which all arms are finished, and open those that waited for them."""
        for run in finished:
            run.conclude_once(self._info, self._observer)
        for name in self.parts:
            if name not in self._runs and self._may_open(name):
                self._runs[name] = self._open(name)
        return [self._runs[name] for name in self.parts if name in self._runs]

    def worker_arguments(self) -> list[str]:
        return ["--device", self.device.type]

    def _may_open(self, name: str) -> bool:
        """Whether the dense networks that a search shares, and the searches that its mask is made of, are finished."""
        part, shared = self.parts[name], list[Arm]()
        if part.dense is not None:
            seeds = {*part.config.all_seeds} & {*self.parts[part.dense].config.all_seeds}
            shared = [Arm(seed, "dense", 0) for seed in seeds]
        trained = all(self.folders[str(part.dense)].training(arm).exists() for arm in shared)
        return trained and all(self.folders[other].summary.exists() for other in part.after)

    def _open(self, name: str) -> SearchRun:
        """The run of a search, with the dense networks that another one trained for it."""
        part, folder, job = self.parts[name], self.folders[name], self.jobs[name]
        if part.dense is not None:
            folder.copy_dense(self.folders[part.dense], part.config.all_seeds)
        if part.mask is not None:
            job = dataclasses.replace(job, mask=part.mask())
        folder.begin(job.to_json(), resume=True, tidy=False)
        describe(folder, job, part.source)
        return SearchRun(prepare(job), folder, self.listen(part))
