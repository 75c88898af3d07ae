"""What a process takes part in: one run, or several that open one after another, as the searches of a study do; and what it trains next there."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.lease import Lease, LeaseLost, this_process
from ltcompile.errors import TrainingFailed
from ltcompile.paths import wait_for_space
from ltcompile.search.pool import Failed, Pool
from ltcompile.search.run import POLL_S, SharedRun


class Runs(Protocol):
    """Runs that processes share by one folder: `path`, which a worker is given, and `workers`, where its logs go."""

    path: Path
    workers: Path

    @property
    def complete(self) -> bool:
        """Whether no run opens any more."""

    def advance(self, finished: Collection[SharedRun]) -> list[SharedRun]:
        """Do what follows from runs whose arms are all finished; the runs that are open then, in order."""

    def worker_arguments(self) -> list[str]:
        """What `ltcompile worker` needs besides the folder."""


class Sharing:
    """The part of this process in `runs`; `options` are those of `Pool`."""

    def __init__(self, runs: Runs, info: dict[str, Any] | None = None, **options: Any) -> None:
        self.runs, self.info, self.options = runs, this_process() if info is None else info, options
        self.pools: dict[SharedRun, Pool] = {}
        self.advance()

    def advance(self) -> None:
        """Open what can be."""
        opened = self.runs.advance([run for run, pool in self.pools.items() if pool.finished])
        self.pools = {run: self.pools.get(run) or run.pool(self.info, **self.options) for run in opened}

    @property
    def finished(self) -> bool:
        """Whether all arms of all runs are."""
        return self.runs.complete and all(pool.finished for pool in self.pools.values())

    @property
    def failed(self) -> list[tuple[SharedRun, Failed]]:
        return [(run, failed) for run, pool in self.pools.items() for failed in pool.failed.values()]

    @property
    def blocked(self) -> bool:
        """Whether nothing is left to train but what failed, and what waits for it."""
        return bool(self.failed) and all(pool.blocked or (pool.finished and run.concluded) for run, pool in self.pools.items())

    def failure(self) -> TrainingFailed:
        """The error for arms that are given up."""
        named = "; ".join(
            f"{each.arm.name} of seed {each.arm.seed}{f' of {run.folder.path.name}' if len(self.pools) > 1 else ''}: {each.error}"
            + (f" (log: {each.log})" if each.log else "")
            for run, each in self.failed
        )
        return TrainingFailed(f"{len(self.failed)} arms failed, and others wait for them. {named}. Fix it, and continue with resume=True")

    def watch(self) -> None:
        for pool in self.pools.values():
            pool.watch(time.monotonic())

    def take(self) -> tuple[SharedRun, Arm, Lease] | None:
        """An arm to train and its lease: of the first run that has one, or of the run where most trainings follow; None where there is none now."""
        runs = list(self.pools) if self.options.get("in_order") else sorted(self.pools, key=lambda run: self.pools[run].first_place)
        for run in runs:
            if (taken := self.pools[run].take(time.monotonic())) is not None:
                return run, *taken
        return None

    def leases(self, patience_s: float = float("inf")) -> Iterator[tuple[SharedRun, Arm, Lease]]:
        """Arms to train, each with this process's lease, until none is left, or for `patience_s` none was free; waits while others train what
        the next ones need.

        Raises TrainingFailed where all that is left has failed in other processes.
        """
        wait, idle_s = POLL_S, 0.0
        while not self.finished and idle_s < patience_s:
            taken = wait_for_space(self.take, next(iter(self.pools)).folder.space_s)
            for run, pool in self.pools.items():
                run.report_finished(pool)
            if taken is not None:
                yield taken
                wait, idle_s = POLL_S, 0.0
            elif self.blocked:
                raise self.failure()
            elif not self.finished:
                time.sleep(wait)
                idle_s += wait
                wait = next(iter(self.pools.values())).pause_s(wait)
            self.advance()

    def work(self, on_failure: Callable[[Arm, Exception], None] | None = None, patience_s: float = float("inf")) -> None:
        """Train the arms of `leases`. With `on_failure`, an arm's error goes there, and others are trained; without, it is raised."""
        for run, arm, lease in self.leases(patience_s):
            self._train(run, arm, lease, on_failure)
        ranks.agreed(None)  # those that follow are done

    def _train(self, run: SharedRun, arm: Arm, lease: Lease, on_failure: Callable[[Arm, Exception], None] | None) -> None:
        pool = self.pools[run]
        run.reported.add(arm)
        try:
            with lease.held(pool.lease_s / 6, self.watch):
                run.train(arm, lease)
        except LeaseLost:
            run.reported.discard(arm)
            pool.gave_up(arm, time.monotonic())
        except Exception as error:
            if on_failure is None:
                raise
            pool.gave_up(arm, time.monotonic())
            on_failure(arm, error)
        else:
            run.trained += 1
            pool.finish(arm)
