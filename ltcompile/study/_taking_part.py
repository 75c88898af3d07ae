"""A study that several processes do together: what its folder says of it, a worker's part in it, and what it is at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcompile.core.records import Record
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import FILE, JOB
from ltcompile.errors import InvalidFile
from ltcompile.paths import read_json, write_json
from ltcompile.search import RunStatus, RunWatch
from ltcompile.study._nouns import StudyArm
from ltcompile.study._searches import Listen, StudySearches, dense_sources
from ltcompile.study._studies import load, scaled


@dataclass(frozen=True)
class StudyJob(Record):
    """What a study is done with, from which another process takes part: names and numbers, none of which is executed."""

    study: str
    scale: str
    data: str | None
    data_root: str
    seeds: int | None
    environment: Mapping[str, str]

    def save(self, folder: Path) -> None:
        """Write `folder`/study-job.json. Raises InvalidFile."""
        write_json(folder / JOB, {"kind": "study job", "format": 1, **self.to_json()})

    @classmethod
    def load(cls, folder: Path) -> StudyJob:
        """What `save` wrote. Raises InvalidFile."""
        value = read_json(folder / JOB, "description of a study")
        if not isinstance(value, dict) or (value.pop("kind", None), value.pop("format", None)) != ("study job", 1):
            raise InvalidFile(f"{folder / JOB} does not describe a study; remove it, and continue with `ltcompile study --resume`")
        return cls.from_json(value)

    def arms(self) -> list[StudyArm]:
        """Raises UnknownName, InvalidSetting."""
        study = load(self.study)
        found: list[StudyArm] = study.arms(scaled(study, self.scale, self.data, self.seeds))
        return found


def join(
    folder: str | Path,
    *,
    listen: Listen,
    data_root: str | Path | None = None,
    device: str | None = None,
    checkpoint_minutes: float | None = None,
    **more: Any,
) -> dict[str, int]:
    """Train arms of the study in `folder` until nothing is left, and conclude searches unless other processes do; how many were trained and failed.

    What the study says of its searches is left to the process that began it. `listen` makes the listener of a search, `more` is as `Searches.join`
    has it, and the rest, and the errors, as `search.worker.join` does.
    """
    job, root = StudyJob.load(path := Path(folder)), data_root
    study = load(job.study)
    where = path, job.data_root if root is None else root, device
    scale = scaled(study, job.scale, job.data, job.seeds)
    return StudySearches(study, scale, *where, listen, patient=True, checkpoint_minutes=checkpoint_minutes).join(job.environment, **more)


@dataclass(frozen=True)
class StudyStatus(Record):
    """A study: its searches that have begun, and for each other one those that it waits for; whether study.json is written. `others` are workers
    with other versions.
    """

    study: str
    searches: list[RunStatus]
    waiting: dict[str, list[str]]
    verdict: bool
    others: list[str]


class StudyWatch:
    """Looks at the folder of a study again and again."""

    def __init__(self, folder: str | Path) -> None:
        """Raises InvalidFile where there is no study."""
        self.path = Path(folder)
        arms = StudyJob.load(self.path).arms()
        dense = dense_sources(arms)
        self.needs = {arm.name: list(arm.after) + ([source] if (source := dense[arm.name]) else []) for arm in arms}
        self._watches: dict[str, RunWatch] = {}

    def look(self, now: float) -> StudyStatus:
        """What is there at `now`, of the monotonic clock."""
        for name in self.needs:
            if name not in self._watches and RunFolder(self.path / name).begun:
                self._watches[name] = RunWatch(self.path / name)
        found = [watch.look(now) for watch in self._watches.values()]
        waiting = {name: needs for name, needs in self.needs.items() if name not in self._watches}
        notes = sorted(RunFolder(self.path).workers.glob("*.json"))
        return StudyStatus(str(self.path), found, waiting, (self.path / FILE).exists(), [note.stem for note in notes])

    @property
    def blocked(self) -> bool:
        """Whether nothing is left to train but what failed, and what waits for it."""
        pools = [watch.pool for watch in self._watches.values()]
        return any(pool.failed for pool in pools) and all(pool.finished or pool.blocked for pool in pools)
