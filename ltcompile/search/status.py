"""What became of the arms of a run, read from its folder: finished, in training by which process and how fast, waiting, failed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltcompile.core.arm import Arm
from ltcompile.core.lease import Held, this_process
from ltcompile.core.records import Record
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidFile
from ltcompile.search.arms import ArmGraph, ready
from ltcompile.search.config import SearchConfig
from ltcompile.search.pool import Pool

State = Literal["finished", "running", "failed", "ready", "waiting"]


@dataclass(frozen=True)
class ArmStatus(Record):
    """An arm: `epochs` are finished of `of` (None: not known yet); `seconds` its trainings took so far, at `per_second` images in the last epoch.

    `left_s` is about how long it takes still, at its own speed. `owner` trains it. `error` and `log` are of the last failure.
    """

    seed: int
    arm: str
    level: int
    state: State
    epochs: int = 0
    of: int | None = None
    seconds: float = 0.0
    per_second: float | None = None
    left_s: float | None = None
    owner: str = ""
    error: str = ""
    log: str = ""


@dataclass(frozen=True)
class RunStatus(Record):
    """A run: its arms in the order of one process; `level` where it is chosen; `left_s`, about how long all takes still with the processes that
    are at work, by the mean time of finished arms (None: nothing is finished or at work). `others` are workers with other versions.
    """

    run: str
    arms: list[ArmStatus]
    level: int | None
    verdict: bool
    left_s: float | None
    others: list[str]

    def count(self, state: State) -> int:
        return sum(arm.state == state for arm in self.arms)


class RunWatch:
    """Looks at a run folder again and again: from the second look on, it sees which processes show no sign of life."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InvalidFile where there is no run."""
        self.folder = RunFolder(folder)
        if not self.folder.begun:
            raise InvalidFile(f"there is no run at {self.folder.path}; name a run folder that `ltcompile find` made")
        self.graph = ArmGraph.of(self.folder.read_setting("config", SearchConfig))
        self.pool = Pool(self.folder, self.graph, None, this_process(), retries=None)

    @property
    def blocked(self) -> bool:
        """Whether nothing is left to train but what failed, and what waits for it."""
        return self.pool.blocked

    def look(self, now: float) -> RunStatus:
        """What is there at `now`, of the monotonic clock."""
        self.pool.look(now)
        startable = set(ready(self.graph, self.pool.done, self.pool.level))
        arms = [self._arm(arm, arm in startable) for arm in self.graph.arms(self.pool.level)]
        verdict = self.folder.summary.exists() or self.folder.own_summary.exists()
        notes = sorted(self.folder.workers.glob("*.json")) if self.folder.workers.is_dir() else []
        return RunStatus(str(self.folder.path), arms, self.pool.level, verdict, _left(arms), [note.stem for note in notes])

    def _arm(self, arm: Arm, startable: bool) -> ArmStatus:
        rows = self._rows(arm)
        seconds = sum(row[0] for row in rows)
        common: dict[str, Any] = {"seed": arm.seed, "arm": arm.kind, "level": arm.level, "epochs": len(rows), "seconds": seconds}
        if arm in self.pool.done:
            return ArmStatus(**common, state="finished", of=len(rows))
        if arm in self.pool.failed:
            failed = self.pool.failed[arm]
            return ArmStatus(**common, state="failed", error=failed.error, log=failed.log)
        if arm not in self.pool.taken:
            return ArmStatus(**common, state="ready" if startable else "waiting")
        held: Held = self.pool.taken[arm][0]
        of = held.info.get("epochs") if isinstance(held.info.get("epochs"), int) else None
        left = (of - len(rows)) * seconds / len(rows) if rows and of is not None else None
        speed = rows[-1][1] if rows else None
        return ArmStatus(
            **common, state="running", of=of, per_second=speed, left_s=left, owner=held.owner, log=str(held.info.get("log", ""))
        )

    def _rows(self, arm: Arm) -> list[tuple[float, float]]:
        """Seconds and images per second of the epochs in an arm's history; a line that is half written is left out."""
        try:
            lines = self.folder.epochs(arm).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                row: Any = json.loads(line)
                found.append((float(row["seconds"]), float(row["images_per_second"])))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return found


def _left(arms: list[ArmStatus]) -> float | None:
    finished = [arm.seconds for arm in arms if arm.state == "finished"]
    running = [arm for arm in arms if arm.state == "running"]
    if not finished or not running:
        return None
    mean = sum(finished) / len(finished)
    waiting = sum(arm.state in ("ready", "waiting") for arm in arms)
    return (waiting * mean + sum(mean if arm.left_s is None else arm.left_s for arm in running)) / len(running)
