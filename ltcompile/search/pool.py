"""The arms of a run that a process may train now, by leases that it shares with any number of others."""

from __future__ import annotations

import bisect
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Files, Held, Lease, Observer, lease_file, lease_numbers, mark
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidFile
from ltcompile.paths import read_json, write_json
from ltcompile.search.arms import ArmGraph

WATCHED = 3  # arms of others that a process looks at with each of its heartbeats; each process has its own, so that most are watched
LOOKED_AT = 8  # arms of others that a process looks at before it takes one
MOST_LOST = 10  # owners of one arm in succession that ended without a new checkpoint: it probably kills them


@dataclass(frozen=True)
class Failed:
    """An arm that is not tried again, its last error and the log of the process that had it."""

    arm: Arm
    error: str
    log: str


class Pool:
    """What is finished, taken and free in a run folder, as this process saw it last.

    Args:
        choose: the level of the controls, from the finished tickets; it is called where the folder does not say it yet. None for one that only
            looks.
        info: what leases of this process say of it, as `core.lease.this_process` gives it.
        retries: how often a failed arm is tried again; None for what its last owner was given.
        in_order: take arms in the order of one process; else those first that most trainings wait for, and among equals any, so that many
            processes seldom want the same one.
    """

    def __init__(
        self,
        folder: RunFolder,
        graph: ArmGraph,
        choose: Callable[[], int] | None,
        info: dict[str, Any],
        *,
        retries: int | None = 2,
        in_order: bool = False,
        lease_s: float = LEASE_S,
        files: Files | None = None,
    ) -> None:
        self.folder, self.graph, self.choose, self.info, self.retries = folder, graph, choose, info | {"retries": retries}, retries
        self.files, self.lease_s = files or Files(), lease_s
        self.level: int | None = None
        self._looked: float | None = None  # when at all arms
        self.done: set[Arm] = set()
        self.taken: dict[Arm, tuple[Held, float]] = {}  # by whom, as of when
        self.failed: dict[Arm, Failed] = {}
        self._open: dict[int, set[Arm]] = {seed: set() for seed in graph.seeds}
        self._queue: list[tuple[tuple[float, ...], Arm]] = []  # of the open arms, and of finished ones
        self._tickets_left, self._left = len(graph.tickets), len(graph.tickets) + len(graph.points) + len(graph.controls_at(0))
        self._observer, self._numbers = Observer(lease_s, self.files), dict[Arm, list[int]]()
        self._places = {arm: place for place, arm in enumerate(graph.arms(None))} if in_order else None
        rng = random.Random(repr(sorted(info.items())))
        self._chance = {seed: rng.random() for seed in graph.seeds}
        self._add([Arm(seed, "dense", 0) for seed in graph.seeds])

    def _add(self, arms: list[Arm]) -> None:
        """Arms that can start now, in their places of the queue."""
        for arm in arms:
            self._open[arm.seed].add(arm)
            bisect.insort(self._queue, (self._place(arm), arm), key=lambda entry: entry[0])

    def _place(self, arm: Arm) -> tuple[float, ...]:
        """By what arms are sorted: the smallest is taken first."""
        if self._places is not None:
            return self._places.get(arm, len(self.graph.tickets) - 0.5), arm.seed, arm.kind != "random"
        return -self.graph.height(arm), arm.kind != "dense_budget", self._chance[arm.seed]

    def _is_open(self, arm: Arm) -> bool:
        return arm in self._open[arm.seed]

    def _is_free(self, arm: Arm) -> bool:
        return self._is_open(arm) and arm not in self.taken and arm not in self.failed

    @property
    def finished(self) -> bool:
        """Whether all arms are."""
        return self._left == 0

    @property
    def blocked(self) -> bool:
        """Whether nothing is left to train but what failed, and what waits for it."""
        return bool(self.failed) and not self.finished and all(arms <= self.failed.keys() for arms in self._open.values())

    @property
    def free(self) -> list[Arm]:
        """The arms that no process has, as seen last."""
        return [arm for arms in self._open.values() for arm in arms if arm not in self.taken and arm not in self.failed]

    @property
    def first_place(self) -> tuple[float, ...]:
        """The place of the first arm that no process has, as seen last; among pools, the smallest is looked at first."""
        return min((place for place, arm in self._queue if self._is_free(arm)), default=(float("inf"),))

    def take(self, now: float) -> tuple[Arm, Lease] | None:
        """An arm to train and its lease; None where there is none now. `now` is of this process's monotonic clock."""
        self._choose_level()
        self._look_for_longer_chains(now)
        return self._take(now) or self._take_after_look(now)

    def _take_after_look(self, now: float) -> tuple[Arm, Lease] | None:
        """After a look at all, or where that was a short time ago, at some arms of others."""
        if self._looked is None or now - self._looked >= self.lease_s / 2:
            self._looked = now
            return self._take(now, thorough=True)
        self._look_at(list(self.taken), now)
        self._choose_level()
        return self._take(now)

    def _look_at(self, arms: list[Arm], now: float) -> None:
        """Look at some of the arms of others: those seen longest ago."""
        for arm in sorted(arms, key=lambda arm: self.taken[arm][1])[:LOOKED_AT]:
            self._see(arm, now)

    def _look_for_longer_chains(self, now: float) -> None:
        """Look at some arms of others which more trainings wait for than for all that are free, as seen last."""
        if (free := self.first_place[0]) != float("inf"):
            self._look_at([arm for arm in self.taken if self._place(arm)[0] < free], now)

    def watch(self, now: float) -> None:
        """Look at some arms of other processes, and note in their leases where they expired, which spares all others the wait."""
        others = (arm for arm in self.taken if self.taken[arm][0].info != self.info)
        for arm in sorted(others, key=lambda arm: self._chance[arm.seed])[:WATCHED]:
            with contextlib.suppress(OSError, InvalidFile):  # the next look, or the process that looks for an arm, meets it again
                self._see(arm, now)

    def pause_s(self, pause_s: float) -> float:
        """How long a process waits for its next look that found nothing to train, and waited `pause_s` before its last one."""
        return min(2 * pause_s, self.lease_s / 12)

    def _take(self, now: float, thorough: bool = False) -> tuple[Arm, Lease] | None:
        """By what was seen last, with another look at each arm before it is taken; `thorough`: after a look at all."""
        if thorough:
            self.look(now)
        self._queue = [entry for entry in self._queue if self._is_open(entry[1])]
        for _, arm in list(self._queue):
            if not self._is_free(arm):
                continue
            if not thorough:
                self._list(arm.seed, now)
            if self._is_free(arm) and (lease := self._acquire(arm, now)):
                return arm, lease
        return None

    def _lease(self, arm: Arm) -> str:
        """The newest lease file of an arm that is taken."""
        return lease_file(self.folder.stem(arm), self._numbers[arm][-1])

    def _see(self, arm: Arm, now: float) -> None:
        """Look again at an arm that another process had."""
        if arm in self.taken and self.taken[arm][1] < now:
            self._judge(arm, now)
            if arm not in self.taken:
                self._list(arm.seed, now)

    def gave_up(self, arm: Arm, now: float) -> None:
        """Note that a lease of this process ended without a result."""
        self._judge(arm, now)

    def owner_ended(self, arm: Arm, now: float) -> None:
        """Note that the process that has an arm ended without giving it up: a failure of the arm on this machine; elsewhere a job may also have
        been preempted.
        """
        held = self.taken[arm][0]
        if held.ended_here:
            mark(self.files, self._lease(arm), held, "failed", error="its process ended; see the log")
        else:
            mark(self.files, self._lease(arm), held, "expired")
        self._judge(arm, now)

    def look(self, now: float) -> None:
        """See what has become of all arms."""
        for seed, arms in self._open.items():
            if arms and arms <= self.taken.keys():  # nothing there changes before one of these leases does
                for arm in list(arms):
                    self._see(arm, now)
            elif arms:
                self._list(seed, now)
        if self._choose_level():  # controls of seeds that were looked at before may be there
            self.look(now)

    def _list(self, seed: int, now: float) -> None:
        """One listing of a seed's folder: which arms are finished, and which have leases that are not known yet."""
        names = self.files.names(f"{self.folder.path}/seed{seed}")
        there, numbers = set(names), lease_numbers(names)
        for arm in list(self._open[seed]):
            self._follow(arm, there)
        for arm in self._open[seed]:
            found = numbers.get(arm.name, [])
            if self._numbers.get(arm, []) != found or (arm in self.taken and self.taken[arm][1] < now):
                self._numbers[arm] = found
                self._judge(arm, now)

    def _follow(self, arm: Arm, there: set[str]) -> None:
        """Note that an arm is finished where its file is there, and so for what follows it."""
        if f"{arm.name}.pt" not in there or not self._is_open(arm):
            return
        self.finish(arm)
        for following in self.graph.follow(arm):
            self._follow(following, there)

    def finish(self, arm: Arm) -> None:
        """Note that an arm is finished: what waited for it alone is open."""
        self._open[arm.seed].discard(arm)
        self.taken.pop(arm, None)
        self.failed.pop(arm, None)
        self.done.add(arm)
        self._left -= 1
        self._add(self.graph.follow(arm))
        if arm.kind in ("dense", "ticket"):
            self._tickets_left -= 1

    def _choose_level(self) -> bool:
        """Open the controls of the level once all tickets are finished; whether that is new."""
        if self._tickets_left or self.level is not None or (level := self._chosen_level()) is None:
            return False
        self.level = level
        self._add(self.graph.controls_at(level))
        return True

    def _chosen_level(self) -> int | None:
        path = self.folder.level
        if not self.files.exists(str(path)):
            if self.choose is None:
                return None
            write_json(path, {"level": self.choose()}, once=True)
        found = read_json(path, "level of a search")
        if not isinstance(found, dict) or type(level := found.get("level")) is not int or not 0 < level <= self.graph.levels:
            raise InvalidFile(f"{path} holds no level of the search; remove it, and continue with resume=True")
        return level

    def _judge(self, arm: Arm, now: float) -> None:
        """See by its newest lease whether an arm is taken, free or given up."""
        numbers = self._numbers.get(arm, [])
        self.taken.pop(arm, None)
        if not numbers:
            return
        seen = self._observer.look(lease_file(self.folder.stem(arm), numbers[-1]), now)
        if seen is None:
            self._numbers.pop(arm)  # finished or left meanwhile: the next listing says
            return
        held, expired = seen
        if held.state == "running" and not expired:
            self.taken[arm] = held, now
            return
        if expired and self.choose is not None:
            mark(self.files, lease_file(self.folder.stem(arm), numbers[-1]), held, "expired")
        if failure := self._failure(arm, numbers):
            self.failed[arm] = failure

    def _failure(self, arm: Arm, numbers: list[int]) -> Failed | None:
        """Why an arm is given up by the record of its attempts; None where it is tried again."""
        stem = self.folder.stem(arm)
        attempts = [Held.parse(content) for n in numbers if (content := self.files.read(lease_file(stem, n))) is not None]
        failures = [each for each in attempts if each.state == "failed"]
        retries = self.retries if self.retries is not None else attempts[-1].info.get("retries", 0) if attempts else 0
        if len(failures) > (retries if isinstance(retries, int) else 0):
            return Failed(arm, str(failures[-1].info.get("error", "")), str(failures[-1].info.get("log", "")))
        lost = [each.info.get("checkpoint") for each in attempts[-MOST_LOST:] if each.state in ("running", "expired")]
        if len(lost) == MOST_LOST and len(set(map(str, lost))) == 1:
            return Failed(arm, f"{MOST_LOST} processes ended in it without a new checkpoint", str(attempts[-1].info.get("log", "")))
        return None

    def _acquire(self, arm: Arm, now: float) -> Lease | None:
        """A new lease of a free arm; None where another process was faster, or it is finished."""
        stem, numbers = self.folder.stem(arm), self._numbers.get(arm, [])
        info = self.info | {"checkpoint": self.files.mark(str(self.folder.checkpoint(arm)))} if numbers else self.info
        lease = Lease.take(self.files, stem, numbers[-1] + 1 if numbers else 0, dict(info))
        if lease is not None and self.files.exists(str(self.folder.training(arm))):  # the listing was older than the end of its training
            lease.done()
            self.finish(arm)
            return None
        if lease is None:
            self._list(arm.seed, now)
            return None
        self._numbers[arm] = [*numbers, lease.number]
        self.taken[arm] = Held("running", b"", self.info), now
        return lease
