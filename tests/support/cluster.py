"""A cluster in one process: workers with clocks of their own on a file system in memory, whose trainings only let a simulated time pass.

The pools and leases are those of real workers. Workers are killed and replaced, their heartbeats or all of them freeze, and the disk is full
for a while. What is counted is counted by the file system or by the trainings themselves.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Files, Lease
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidFile
from ltcompile.paths import SPACE_POLL_S, writing
from ltcompile.search.arms import ArmGraph
from ltcompile.search.pool import Pool
from ltcompile.search.run import POLL_S

FAULT_S, HEAD_S, EPOCHS = 180.0, 10.0, 10


T = TypeVar("T")


class MemoryFiles(Files):
    """A file system: paths name contents that open files may outlive. `full` refuses what is written; `calls` counts."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[str, list[bytes]]] = {}
        self.open: dict[int, list[bytes]] = {}
        self.handles = itertools.count(1 << 20)  # no descriptors of this process: closing one fails, and is suppressed
        self.full, self.calls = False, Counter[str]()

    def place(self, path: str) -> tuple[dict[str, list[bytes]], str]:
        folder, _, name = path.rpartition("/")
        return self.folders.setdefault(folder, {}), name

    def at(self, path: str) -> list[bytes] | None:
        folder, _, name = path.rpartition("/")
        return self.folders.get(folder, {}).get(name)

    def names(self, folder: str) -> list[str]:
        self.calls["list"] += 1
        return list(self.folders.get(folder, ()))

    def create(self, path: str, content: bytes) -> int | None:
        self.calls["create"] += 1
        folder, name = self.place(path)
        if name in folder:
            return None
        with writing(Path(path)):
            self.refuse()
        folder[name] = self.open[handle := next(self.handles)] = [content]
        return handle

    def write(self, descriptor: int, content: bytes) -> None:
        self.calls["beat"] += 1
        self.refuse()
        held = self.open[descriptor]
        held[0] = content + held[0][len(content) :]

    def put(self, path: str, content: bytes) -> None:
        """Replace a file, as trainings do."""
        self.refuse()
        folder, name = self.place(path)
        folder[name] = [content]

    def overwrite(self, path: str, content: bytes) -> None:
        if (held := self.at(path)) is not None:
            held[0] = content + held[0][len(content) :]

    def refuse(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")

    def read(self, path: str) -> bytes | None:
        self.calls["read"] += 1
        found = self.at(path)
        return None if found is None else found[0]

    def exists(self, path: str) -> bool:
        self.calls["stat"] += 1
        return self.at(path) is not None or (path.endswith("level.json") and Path(path).exists())

    def is_at(self, descriptor: int, path: str) -> bool:
        self.calls["stat"] += 1
        return self.open[descriptor] is self.at(path)

    def mark(self, path: str) -> str | None:
        self.calls["stat"] += 1
        found = self.at(path)
        return None if found is None else repr(found[0])

    def remove(self, path: str) -> None:
        self.calls["remove"] += 1
        folder, name = self.place(path)
        folder.pop(name, None)


@dataclass
class Worker:
    """A process: its pool, its clock's offset, and the arm that it has, with the epochs that are in its checkpoint."""

    pool: Pool
    offset: float
    arm: Arm | None = None
    lease: Lease | None = None
    epoch: int = 0
    wait: float = POLL_S
    alive: bool = True
    frozen_until: float = 0.0  # nothing of it runs
    mute_until: float = 0.0  # its heartbeat alone does not


@dataclass
class Faults:
    """How many workers are killed, frozen and muted, and how long the disk is full; `unnoticed` kills leave their leases to expire, as where
    workers joined by themselves.
    """

    kills: int = 0
    freezes: int = 0
    mutes: int = 0
    full_s: float = 0.0
    unnoticed: bool = False


@dataclass
class Cluster:
    """So many workers on a search; `seconds` is how long an arm trains. `run` lets them work until nothing is left."""

    folder: RunFolder
    graph: ArmGraph
    workers: int
    seconds: Callable[[Arm], float]
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    level: int = 1
    coordinated: bool = True

    def __post_init__(self) -> None:
        self.files, self.rng = MemoryFiles(), random.Random(self.seed)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.tie, self.names = itertools.count(), itertools.count()
        self.started, self.results, self.takeovers = Counter[Arm](), Counter[Arm](), 0
        self.ends, self.scheduling_s, self.takes, self.given_up = 0.0, 0.0, 0, dict[Arm, str]()
        self.living: list[Worker] = []
        self.replaced = set[str]()  # hosts

    def run(self) -> Cluster:
        for _ in range(self.workers):
            self.begin(0.0)
        if self.coordinated:
            pool = Pool(self.folder, self.graph, lambda: self.level, {"host": "head"}, files=self.files)
            self.at(0.0, lambda now: self.watch(pool, now))
        horizon = sum(map(self.seconds, self.graph.arms(self.level))) / self.workers
        for count, fault in ((self.faults.kills, self.kill), (self.faults.freezes, self.freeze), (self.faults.mutes, self.mute)):
            for _ in range(count):
                self.at(self.rng.uniform(0, horizon), fault)
        if self.faults.full_s:
            self.at(horizon / 2, lambda now: self.fill(True))
            self.at(horizon / 2 + self.faults.full_s, lambda now: self.fill(False))
        while self.events and any(worker.alive for worker in self.living):
            now, _, event = heapq.heappop(self.events)
            event(now)
        return self

    def at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (when, next(self.tie), event))

    def watch(self, pool: Pool, now: float) -> None:
        """The process that started the workers looks, and marks leases that expired, and those of workers that it has replaced."""
        began = time.process_time()
        pool.look(now)
        for arm, (held, _) in list(pool.taken.items()):
            if held.info["host"] in self.replaced:
                pool.owner_ended(arm, now)
        self.scheduling_s += time.process_time() - began
        if not pool.finished and any(worker.alive for worker in self.living):
            self.at(now + HEAD_S, lambda at: self.watch(pool, at))

    def begin(self, now: float) -> None:
        """A new process, whose clock is up to a minute before or behind."""
        info: dict[str, Any] = {"host": f"node{next(self.names)}", "pid": 1, "machine": "another"}
        pool = Pool(self.folder, self.graph, lambda: self.level, info, files=self.files)
        worker = Worker(pool, self.rng.uniform(-60, 60))
        self.living.append(worker)
        self.at(now, lambda at: self.step(worker, at))
        self.at(now + LEASE_S / 6, lambda at: self.beat(worker, at))

    def beat(self, worker: Worker, now: float) -> None:
        if worker.alive:
            if worker.lease is not None and now >= max(worker.frozen_until, worker.mute_until):
                worker.lease.beat()
                self.timed(lambda: worker.pool.watch(now + worker.offset))
            self.at(now + LEASE_S / 6, lambda at: self.beat(worker, at))

    def step(self, worker: Worker, now: float) -> None:
        """What a worker does next: end an epoch, or look for an arm."""
        if not worker.alive:
            return
        if now < worker.frozen_until:
            self.at(worker.frozen_until, lambda at: self.step(worker, at))
            return
        try:
            again = self.epoch_ends(worker, now) if worker.arm is not None else self.look(worker, now)
        except (InvalidFile, OSError):  # the disk is full
            again = SPACE_POLL_S
        if again is not None:
            self.at(now + again, lambda at: self.step(worker, at))

    def look(self, worker: Worker, now: float) -> float | None:
        taken = self.timed(lambda: worker.pool.take(now + worker.offset))
        self.takes += 1
        if taken is not None:
            worker.arm, worker.lease = taken
            worker.epoch, worker.wait = self.checkpoint(worker.arm), POLL_S
            self.started[worker.arm] += 1
            self.takeovers += worker.lease.number > 0
            return self.seconds(worker.arm) / EPOCHS
        if worker.pool.finished or worker.pool.blocked:
            self.given_up |= {arm: failed.error for arm, failed in worker.pool.failed.items()}
            worker.alive = False
            return None
        pause = worker.wait
        worker.wait = worker.pool.pause_s(pause)
        return pause

    def timed(self, call: Callable[[], T]) -> T:
        """What scheduling code returns; its processor time is counted."""
        began = time.process_time()
        try:
            return call()
        finally:
            self.scheduling_s += time.process_time() - began

    def checkpoint(self, arm: Arm) -> int:
        """How many epochs are in an arm's checkpoint."""
        content = self.files.at(str(self.folder.checkpoint(arm)))
        return 0 if content is None else int(content[0])

    def epoch_ends(self, worker: Worker, now: float) -> float | None:
        arm, lease = worker.arm, worker.lease
        assert arm is not None and lease is not None
        lease.beat()
        if lease.lost:
            lease.end("left")
            worker.pool.gave_up(arm, now + worker.offset)
            worker.arm = worker.lease = None
            return 0.0
        if worker.epoch + 1 < EPOCHS:
            self.files.put(str(self.folder.checkpoint(arm)), str(worker.epoch + 1).encode())
            worker.epoch += 1
            self.started[arm] += 1
            return self.seconds(arm) / EPOCHS
        self.files.put(str(self.folder.training(arm)), b"result")
        self.results[arm] += 1
        self.ends = max(self.ends, now)
        lease.done()
        worker.pool.finish(arm)
        worker.arm = worker.lease = None
        return 0.0

    def kill(self, now: float) -> None:
        if victims := [worker for worker in self.living if worker.alive]:
            self.replace(self.rng.choice(victims), now)

    def replace(self, worker: Worker, now: float) -> None:
        worker.alive = False
        pause = self.rng.uniform(1, 30)
        if not self.faults.unnoticed:
            self.at(now + pause, lambda at: self.replaced.add(worker.pool.info["host"]))
        self.begin(now + pause)

    def freeze(self, now: float) -> None:
        self.disturb().frozen_until = now + FAULT_S

    def mute(self, now: float) -> None:
        self.disturb().mute_until = now + FAULT_S

    def disturb(self) -> Worker:
        return self.rng.choice([worker for worker in self.living if worker.alive])

    def fill(self, full: bool) -> None:
        self.files.full = full

    @property
    def repeated(self) -> int:
        """Epochs that were begun more than once."""
        return sum(count - EPOCHS for count in self.started.values())


def list_scheduling(graph: ArmGraph, level: int, workers: int, seconds: Callable[[Arm], float]) -> float:
    """The makespan of list scheduling by the height of arms: no worker waits while an arm is ready, and nothing costs time but training."""
    free, running = workers, list[tuple[float, int, Arm]]()
    waiting = [(-graph.height(arm), i, arm) for i, arm in enumerate(Arm(seed, "dense", 0) for seed in graph.seeds)]
    tie, left, now = itertools.count(len(waiting)), len(graph.tickets), 0.0
    heapq.heapify(waiting)
    while waiting or running:
        while free and waiting:
            arm = heapq.heappop(waiting)[2]
            heapq.heappush(running, (now + seconds(arm), next(tie), arm))
            free -= 1
        now, _, arm = heapq.heappop(running)
        free, left = free + 1, left - (arm.kind in ("dense", "ticket"))
        opened = graph.follow(arm) + (graph.controls_at(level) if arm.kind in ("dense", "ticket") and not left else [])
        for each in opened:
            heapq.heappush(waiting, (-graph.height(each), next(tie), each))
    return now
