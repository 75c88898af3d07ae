"""A search in its run folder: the arms that a process trains, and what follows from all of them."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Lease, LeaseLost, Observer, claim, this_process
from ltcompile.core.reached import Reached
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.core.ticket import Ticket
from ltcompile.errors import TrainingFailed
from ltcompile.models import is_own_code
from ltcompile.paths import wait_for_space
from ltcompile.search.answers import compare_answers
from ltcompile.search.arm_runner import ArmRunner
from ltcompile.search.arms import ArmGraph
from ltcompile.search.config import PRUNE, SearchConfig
from ltcompile.search.iterative_pruning import IterativePruning
from ltcompile.search.job import PreparedJob
from ltcompile.search.listener import Listener
from ltcompile.search.pool import Failed, Pool
from ltcompile.search.result import build_ticket, measure_target, write_summary
from ltcompile.search.scored_masks import ScoredMasks
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
        self.trained, self._reported = 0, set[Arm]()

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

    def conclude_once(self, info: dict[str, Any], lease_s: float = LEASE_S) -> None:
        """Conclude the run, unless another process has or does."""
        observer = Observer(lease_s)
        while not self.summary.exists():
            if (lease := claim(self.folder.verdict, info, observer, time.monotonic())) is not None:
                with lease.held(lease_s / 6):
                    self.conclude()
            else:
                time.sleep(POLL_S)
        self.folder.tidy()

    @abstractmethod
    def train(self, arm: Arm, lease: Lease) -> None:
        """Train an arm into its file. Raises LeaseLost, TrainingFailed."""

    def pool(self, info: dict[str, Any] | None = None, **options: Any) -> Pool:
        """The arms of the run, for a process of which leases say `info`."""
        return Pool(self.folder, self.graph, self.level, this_process() if info is None else info, **options)

    def level(self) -> int:
        """The level that the verdict names, or the closest, from all dense networks and tickets."""
        rows = [self.row(arm) for arm in self.graph.tickets]
        named, differences = choose_level(rows, self.config.margin_points, self.config.confidence, self.metric)
        return named if named is not None else closest_level(differences)

    def work(self, pool: Pool, on_failure: Callable[[Arm, Exception], None] | None = None, patience_s: float = float("inf")) -> None:
        """Train the arms of `leases`. With `on_failure`, an arm's error goes there, and others are trained; without, it is raised."""
        for arm, lease in self.leases(pool, patience_s):
            self._train(pool, arm, lease, on_failure)
        ranks.agreed(None)  # those that follow are done

    def leases(self, pool: Pool, patience_s: float = float("inf")) -> Iterator[tuple[Arm, Lease]]:
        """Arms to train, each with this process's lease, until none is left, or for `patience_s` none was free; waits while others train what
        the next ones need.

        Raises TrainingFailed where all that is left has failed in other processes.
        """
        wait, idle_s = POLL_S, 0.0
        while not pool.finished and idle_s < patience_s:
            taken = wait_for_space(lambda: pool.take(time.monotonic()), self.folder.space_s)
            self.report_finished(pool)
            if taken is not None:
                yield taken
                wait, idle_s = POLL_S, 0.0
            elif pool.blocked:
                raise failure(list(pool.failed.values()))
            elif not pool.finished:
                time.sleep(wait)
                idle_s += wait
                wait = pool.pause_s(wait)

    def _train(self, pool: Pool, arm: Arm, lease: Lease, on_failure: Callable[[Arm, Exception], None] | None) -> None:
        self._reported.add(arm)
        try:
            with lease.held(pool.lease_s / 6, lambda: pool.watch(time.monotonic())):
                self.train(arm, lease)
        except LeaseLost:
            self._reported.discard(arm)
            pool.gave_up(arm, time.monotonic())
        except Exception as error:
            if on_failure is None:
                raise
            pool.gave_up(arm, time.monotonic())
            on_failure(arm, error)
        else:
            self.trained += 1
            pool.finish(arm)

    def report_finished(self, pool: Pool, from_file: bool = True) -> None:
        """Report arms that were finished before, or elsewhere."""
        if new := pool.done - self._reported:
            for arm in self.graph.arms(pool.level):
                if arm in new:
                    self.listener.finished(self.row(arm), from_file)
            self._reported |= new


class SearchRun(SharedRun):
    """A search that this process takes part in."""

    def __init__(self, prepared: PreparedJob, folder: RunFolder, listener: Listener) -> None:
        super().__init__(folder, prepared.job.config, prepared.job.task.metric, listener)
        self.prepared, self.runner = prepared, ArmRunner(prepared, folder, listener)
        self.trainings = (IterativePruning if self.config.method == PRUNE else ScoredMasks)(self.runner)

    def row(self, arm: Arm) -> Trained:
        return self.runner.row(arm)

    def train(self, arm: Arm, lease: Lease) -> None:
        self.runner.lease = lease
        try:
            ranks.agreed(arm)
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
            with contextlib.suppress(LeaseLost):  # of the first one
                self.trainings.train(arm)

    def conclude(self, began: float | None = None) -> SearchResult:
        """Judge, look at the test set once, and write ticket and summary; all arms are finished. `began` is by time.perf_counter."""
        began, config, runner = time.perf_counter() if began is None else began, self.config, self.runner
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
        write_summary(runner, ticket, reached, time.perf_counter() - began)
        self.folder.tidy()
        return SearchResult(ticket, tuple(rows), verdict, self.folder.path, reached)


def _with_test(runner: ArmRunner, row: Trained) -> Trained:
    return replace(row, test_score=runner.tested(Arm(row.seed, row.arm, row.level)).value)


def failure(failed: list[Failed]) -> TrainingFailed:
    """The error for arms that are given up."""
    named = "; ".join(
        f"{each.arm.name} of seed {each.arm.seed}: {each.error}" + (f" (log: {each.log})" if each.log else "") for each in failed
    )
    return TrainingFailed(f"{len(failed)} arms failed, and others wait for them. {named}. Fix it, and continue with resume=True")
