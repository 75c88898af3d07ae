"""One process that keeps workers of runs going, through an executor, and reports what they do."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from ltcompile import executors
from ltcompile.core.arm import Arm
from ltcompile.core.lease import Held
from ltcompile.errors import InvalidFile, Unavailable
from ltcompile.executors import Executor, Job
from ltcompile.paths import wait_for_space
from ltcompile.search.pool import Pool
from ltcompile.search.run import SPACE_S, SharedRun
from ltcompile.search.sharing import Runs, Sharing
from ltcompile.training import Epoch

POLL_S, MOST_POLL_S = 0.5, 10.0
PATIENCE_S = 60.0  # a worker without an arm leaves then; another is started when there are arms again
STOP_S = 30.0
LOG_CHARACTERS = 600


def open_workers(
    folder: Path, jobs: int | None, executor: str, options: Mapping[str, str] | None
) -> AbstractContextManager[Executor | None]:
    """What starts up to `jobs` workers, whose logs go to `folder`; None without jobs. It is opened before a run begins, as it may be out of reach.

    Raises as `executors.open_executor` does.
    """
    if jobs is None:
        return contextlib.nullcontext()
    return contextlib.closing(executors.open_executor(executor, folder.absolute(), jobs, options or {}))


def coordinate(runs: Runs, executor: Executor, jobs: int, retries: int) -> None:
    """Let up to `jobs` workers train all arms of the runs.

    Raises TrainingFailed where arms are given up and nothing else is left; Unavailable where workers end before they begin. Where it is
    interrupted, workers give their arms up after the last checkpoint.
    """
    _Coordinator(runs, executor, jobs, retries).work()


class _Coordinator:
    def __init__(self, runs: Runs, executor: Executor, jobs: int, retries: int) -> None:
        self.runs, self.executor, self.jobs, self.retries = runs, executor, jobs, retries
        self.sharing, self.batch = Sharing(runs, retries=retries), uuid.uuid4().hex[:6]
        self.workers: dict[str, Job] = {}
        self.started, self.barren = 0, 0  # workers; and those in succession that ended with an error and never had an arm
        self.reports: dict[SharedRun, _Report] = {}
        self.owners = set[str]()  # workers that had an arm

    def work(self) -> None:
        try:
            while True:
                self._collect()
                wait_for_space(self.sharing.advance, SPACE_S)
                began = time.monotonic()
                wait_for_space(self._look, SPACE_S)
                pause = min(max(POLL_S, 20 * (time.monotonic() - began)), MOST_POLL_S)  # where a look takes long, look seldom
                if self.sharing.finished:
                    return
                if self.sharing.blocked:
                    raise self.sharing.failure()
                self._start()
                time.sleep(pause)
        finally:
            self._stop()

    def _look(self) -> None:
        """See what has become of all arms, and report it."""
        for run, pool in self.sharing.pools.items():
            pool.look(time.monotonic())
            self.owners |= {_owner(held) for held, _ in pool.taken.values()}
            self.reports.setdefault(run, _Report(run, pool)).report()

    def _start(self) -> None:
        """Start workers while more arms are free than workers wait for one."""
        pools = self.sharing.pools.values()
        busy = sum(_owner(held) in self.workers for pool in pools for held, _ in pool.taken.values())
        wanted = min(self.jobs - len(self.workers), sum(len(pool.free) for pool in pools) - (len(self.workers) - busy))
        for _ in range(max(0, wanted)):
            self.started += 1
            name = f"{self.batch}-{self.started}"
            self.workers[name] = self.executor.start(self._command(name), name)

    def _command(self, name: str) -> list[str]:
        """What a worker is started with: it reads the rest from the folder."""
        command = [sys.executable, "-m", "ltcompile", "worker", str(self.runs.path.absolute()), "--name", name]
        command += ["--retries", str(self.retries), "--patience", f"{PATIENCE_S:g}"]
        return [*command, *self.runs.worker_arguments()]

    def _collect(self) -> None:
        """See which workers have ended, which is an error where none ever had an arm. An arm that one still had has failed."""
        for name, job in list(self.workers.items()):
            if (code := job.poll()) is None:
                continue
            del self.workers[name]
            had = name in self.owners
            self.barren = 0 if had or not code else self.barren + 1
            if self.barren > self.retries:
                raise Unavailable(
                    f"workers end before they train anything; the last with exit code {code}: {_tail(job.log)} (log: {job.log})"
                )
        now, ended = time.monotonic(), self.owners - self.workers.keys()
        for pool in self.sharing.pools.values():
            for arm, (held, _) in list(pool.taken.items()):
                own = _owner(held).startswith(f"{self.batch}-")
                if (own or held.ended_here) and _owner(held) in ended:
                    pool.owner_ended(arm, now)

    def _stop(self) -> None:
        """Let workers end. Those on this machine are waited for."""
        for job in self.workers.values():
            job.stop()
        end = time.monotonic() + STOP_S
        while any(job.poll() is None for job in self.workers.values()) and time.monotonic() < end:
            time.sleep(0.05)


class _Report:
    """Reports to a run's listener what its folder says that is new."""

    def __init__(self, run: SharedRun, pool: Pool) -> None:
        self.run, self.pool, self.first = run, pool, True
        self.seen: dict[Arm, int] = {}  # epochs reported of unfinished arms
        self.ended = set[Arm]()

    def report(self) -> None:
        """Report epochs and finished arms; at first, these are from before."""
        for arm, (held, _) in list(self.pool.taken.items()):
            if arm not in self.seen and "epochs" in held.info:
                self.seen[arm] = 0
                self.run.listener.started(arm.seed, arm.kind, arm.level, int(held.info["epochs"]), 0)
            self._report_epochs(arm)
        for arm in self.pool.done - self.ended:
            if not self.first:
                self.seen.setdefault(arm, 0)
                self._report_epochs(arm)
            self.seen.pop(arm, None)
            self.ended.add(arm)
        self.run.report_finished(self.pool, from_file=self.first)
        self.first = False

    def _report_epochs(self, arm: Arm) -> None:
        if arm not in self.seen:
            return
        try:
            lines = self.run.folder.epochs(arm).read_text(encoding="utf-8").splitlines()
            for line in lines[self.seen[arm] :]:
                row = json.loads(line)
                epoch = Epoch.from_json({key: value for key, value in row.items() if key not in ("seed", "unit")})
                self.run.listener.epoch(arm.seed, arm.kind, arm.level, epoch)
                self.seen[arm] += 1
        except (OSError, ValueError, InvalidFile):  # half a line: the rest is there at the next look
            return


def _owner(held: Held) -> str:
    return str(held.info.get("worker", ""))


def _tail(log: str) -> str:
    """The end of a log."""
    try:
        return " ".join(Path(log).read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:].split())
    except OSError:
        return "it left no log"
