"""A search in its run folder: the arms that a process trains, and what follows from all of them."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Lease, LeaseLost, Observer, claim
from ltcompile.core.reached import Reached
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.core.ticket import Ticket
from ltcompile.errors import TrainingFailed
from ltcompile.models import is_own_code
from ltcompile.paths import wait_for_space
from ltcompile.search.arm_runner import ArmRunner
from ltcompile.search.arms import ArmGraph
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.iterative_pruning import IterativePruning, ScoredMasks
from ltcompile.search.job import PreparedJob
from ltcompile.search.listener import Listener
from ltcompile.search.pool import Pool
from ltcompile.search.result import build_ticket, compare_answers, measure_target, write_summary
from ltcompile.search.verdict import choose_level, closest_level, judge

POLL_S = 0.25
SPACE_S = 600.0  # for how long one of several processes, or a loop of the caller's own, waits on a full disk


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the ticket of the level that the verdict names (or of the closest), all rows, the verdict, the run folder.

    `reached` is how the ticket stands to the target, where there was one: it may be of a level on the way there.
    """

    ticket: Ticket
    rows: tuple[Trained, ...]
    verdict: Verdict
    folder: Path
    reached: Reached | None = None


class SharedRun(ABC):
    """A run whose arms this process trains, as it gets leases on them: any number of processes may do so in one folder."""

    def __init__(self, folder: RunFolder, config: SearchConfig, metric: Metric, listener: Listener) -> None:
        self.folder, self.config, self.metric, self.listener = folder, config, metric, listener
        self.graph = ArmGraph.of(config)
        self.path, self.workers = folder.path, folder.workers
        self.trained, self.reported = 0, set[Arm]()

    @abstractmethod
    def row(self, arm: Arm) -> Trained:
        """The row of a finished arm. Raises InvalidFile."""

    @property
    @abstractmethod
    def summary(self) -> Path:
        """The file that says that the run is concluded."""

    @abstractmethod
    def conclude(self) -> Any:
        """Judge and write the result; all arms are finished."""

    @abstractmethod
    def worker_arguments(self) -> list[str]:
        """What `ltcompile worker` needs besides the folder."""

    @property
    def concluded(self) -> bool:
        return self.summary.exists()

    def conclude_once(self, info: dict[str, Any], observer: Observer) -> bool:
        """Conclude the run, unless another process has or does; whether it is concluded."""
        if not self.concluded and (lease := claim(self.folder.verdict, info, observer, time.monotonic())) is not None:
            with lease.held(observer.lease_s / 6):
                wait_for_space(self.conclude, self.folder.space_s)
        return self.concluded

    def wait_for_conclusion(self, info: dict[str, Any], lease_s: float = LEASE_S) -> None:
        """Conclude the run, or wait until another process has."""
        observer = Observer(lease_s)
        while not self.conclude_once(info, observer):
            time.sleep(POLL_S)
        self.folder.tidy()

    # As the one run of `search.sharing.Runs`

    complete = True

    def advance(self, finished: Collection[SharedRun]) -> list[SharedRun]:
        return [self]

    @abstractmethod
    def train(self, arm: Arm, lease: Lease) -> None:
        """Train an arm into its file. Raises LeaseLost, TrainingFailed."""

    def pool(self, info: dict[str, Any], **options: Any) -> Pool:
        """The arms of the run, for a process of which leases say `info`."""
        return Pool(self.folder, self.graph, self.level, info, **options)

    def level(self) -> int:
        """The level that the verdict names, or the closest, from all dense networks and tickets."""
        rows = [self.row(arm) for arm in self.graph.tickets]
        named, differences = choose_level(rows, self.config.margin_points, self.config.confidence, self.metric)
        return named if named is not None else closest_level(differences)

    def report_finished(self, pool: Pool, from_file: bool = True) -> None:
        """Report arms that were finished before, or elsewhere."""
        if new := pool.done - self.reported:
            for arm in self.graph.arms(pool.level):
                if arm in new:
                    self.listener.finished(self.row(arm), from_file)
            self.reported |= new


class SearchRun(SharedRun):
    """A search that this process takes part in."""

    def __init__(self, prepared: PreparedJob, folder: RunFolder, listener: Listener) -> None:
        super().__init__(folder, prepared.job.config, prepared.job.task.metric, listener)
        self.prepared, self.runner, self.began = prepared, ArmRunner(prepared, folder, listener), time.perf_counter()
        self.trainings = (IterativePruning if self.config.method == PRUNE else ScoredMasks)(self.runner)

    def row(self, arm: Arm) -> Trained:
        return self.runner.row(arm)

    def train(self, arm: Arm, lease: Lease) -> None:
        self.runner.lease = lease
        try:
            ranks.agreed(arm)
            with enough_memory():
                self.trainings.train(arm)
        finally:
            self.runner.lease = None

    @property
    def summary(self) -> Path:
        return self.folder.summary

    def worker_arguments(self) -> list[str]:
        job = self.prepared.job
        minutes = ["--checkpoint-minutes", str(job.checkpoint_minutes)] if job.checkpoint_minutes is not None else []
        return ["--device", job.device.type, *minutes, *(["--model", job.model] if is_own_code(job.model) else [])]

    def follow(self) -> None:
        """Train the arms that the first of several processes takes, together with it."""
        while (arm := ranks.agreed(None)) is not None:
            with contextlib.suppress(LeaseLost), enough_memory():  # the lease of the first one
                self.trainings.train(arm)

    def conclude(self) -> SearchResult:
        """Judge, look at the test set once, and write ticket and summary; all arms are finished."""
        with enough_memory():
            return self._conclude()

    def _conclude(self) -> SearchResult:
        config, runner = self.config, self.runner
        level = self.level()
        arms = self.graph.arms(level)
        rows = [runner.row(arm) for arm in arms]
        verdict = judge(rows, config.margin_points, config.confidence, config.rewind, self.metric)
        shown = [config.full_curve or row.level == level or row.arm == "dense" for row in rows]
        rows = [_with_test(runner, row) if test else row for row, test in zip(rows, shown, strict=True)]
        ticket = build_ticket(runner, rows, verdict, level)
        self.folder.check_exists()
        self.folder.write_history(arms)
        ticket.save(self.folder.ticket)
        reached = measure_target(runner, ticket.row)
        compare_answers(runner, ticket)
        write_summary(runner, ticket, reached, time.perf_counter() - self.began)
        self.folder.tidy()
        return SearchResult(ticket, tuple(rows), verdict, self.folder.path, reached)


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turns the end of a GPU's memory into a TrainingFailed."""
    try:
        yield
    except torch.OutOfMemoryError as error:  # batches are computed in parts: it is the network itself
        raise TrainingFailed(
            "the GPU's memory does not hold the network, its gradients and momentum; end what else fills it, or train with device=cpu"
        ) from error


def _with_test(runner: ArmRunner, row: Trained) -> Trained:
    return replace(row, test_score=runner.tested(Arm(row.seed, row.arm, row.level)).value)
