"""One process that keeps workers of a search running, through an executor, and reports what they do."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from ltcompile import executors
from ltcompile.core.arm import Arm
from ltcompile.core.lease import Held
from ltcompile.errors import InvalidFile, Unavailable
from ltcompile.executors import Executor, Job
from ltcompile.paths import wait_for_space
from ltcompile.search.run import SPACE_S, SharedRun, failure
from ltcompile.training import Epoch

POLL_S, MOST_POLL_S = 0.5, 10.0
PATIENCE_S = 60.0  # a worker without an arm leaves then; another is started when there are arms again
STOP_S = 30.0
LOG_CHARACTERS = 600


def coordinate(run: SharedRun, jobs: int, executor: str, options: Mapping[str, str], retries: int) -> None:
    """Let up to `jobs` workers train all arms of the run.

    Raises TrainingFailed where arms are given up and nothing else is left; Unavailable where workers end before they begin. Where it is
    interrupted, workers give their arms up after the last checkpoint.
    """
    folder = run.folder.workers.absolute()
    opened = executors.open_executor(executor, folder, jobs, options)
    try:
        _Coordinator(run, opened, jobs, retries).work()
    finally:
        opened.close()


class _Coordinator:
    def __init__(self, run: SharedRun, executor: Executor, jobs: int, retries: int) -> None:
        self.run, self.executor, self.jobs, self.retries = run, executor, jobs, retries
        self.pool, self.batch = run.pool(retries=retries), uuid.uuid4().hex[:6]
        self.workers: dict[str, Job] = {}
        self.started, self.barren = 0, 0  # workers; and those in succession that ended with an error and never had an arm
        self.seen: dict[Arm, int] = {}  # epochs reported of unfinished arms
        self.owners, self.ended = set[str](), set[Arm]()

    def work(self) -> None:
        try:
            while True:
                self._collect()
                began = time.monotonic()
                wait_for_space(lambda: self.pool.look(time.monotonic()), SPACE_S)
                pause = min(max(POLL_S, 20 * (time.monotonic() - began)), MOST_POLL_S)  # where a look takes long, look seldom
                self._report()
                if self.pool.finished:
                    return
                if self.pool.blocked:
                    raise failure(list(self.pool.failed.values()))
                self._start()
                time.sleep(pause)
        finally:
            self._stop()

    def _start(self) -> None:
        """Start workers while more arms are free than workers wait for one."""
        busy = sum(self._owner(held) in self.workers for held, _ in self.pool.taken.values())
        wanted = min(self.jobs - len(self.workers), len(self.pool.free) - (len(self.workers) - busy))
        for _ in range(max(0, wanted)):
            self.started += 1
            name = f"{self.batch}-{self.started}"
            self.workers[name] = self.executor.start(self._command(name), name)

    def _command(self, name: str) -> list[str]:
        """What a worker is started with: it reads the rest from the folder."""
        command = [sys.executable, "-m", "ltcompile", "worker", str(self.run.folder.path.absolute()), "--name", name]
        command += ["--retries", str(self.retries), "--patience", f"{PATIENCE_S:g}"]
        return [*command, *self.run.worker_arguments()]

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
        now = time.monotonic()
        for arm, (held, _) in list(self.pool.taken.items()):
            own = self._owner(held).startswith(f"{self.batch}-")
            if (own or held.ended_here) and self._owner(held) in self.owners - self.workers.keys():
                self.pool.owner_ended(arm, now)

    def _report(self) -> None:
        """Report epochs and finished arms that are new."""
        first = not self.started
        for arm, (held, _) in list(self.pool.taken.items()):
            self.owners.add(self._owner(held))
            if arm not in self.seen and "epochs" in held.info:
                self.seen[arm] = 0
                self.run.listener.started(arm.seed, arm.kind, arm.level, int(held.info["epochs"]), 0)
            self._report_epochs(arm)
        for arm in self.pool.done - self.ended:
            if not first:
                self.seen.setdefault(arm, 0)
                self._report_epochs(arm)
            self.seen.pop(arm, None)
            self.ended.add(arm)
        self.run.report_finished(self.pool, from_file=first)

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

    def _stop(self) -> None:
        """Let workers end. Those on this machine are waited for."""
        for job in self.workers.values():
            job.stop()
        end = time.monotonic() + STOP_S
        while any(job.poll() is None for job in self.workers.values()) and time.monotonic() < end:
            time.sleep(0.05)

    @staticmethod
    def _owner(held: Held) -> str:
        return str(held.info.get("worker", ""))


def _tail(log: str) -> str:
    """The end of a log."""
    try:
        return " ".join(Path(log).read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:].split())
    except OSError:
        return "it left no log"
