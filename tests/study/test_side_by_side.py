"""A study as one graph: its searches side by side, by several processes, with what one process finds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from commands import call_here, fork

import ltcompile as lt
from ltcompile import executors, study
from ltcompile.core.study import Study
from ltcompile.errors import InvalidFile, TicketMismatch
from ltcompile.search import NullListener
from ltcompile.study import StudyArm, StudyWatch, transfer
from ltcompile.study._taking_part import StudyJob

pytestmark = pytest.mark.slow

SMALL = {"recipe": {"epochs": 1, "crop_pixels": 0}, "seeds": 1, "rounds": 1, "own_rounds": 1, "train_images": 200}
WORKERS: dict[str, Any] = {"jobs": 2, "executor": "local", "executor_options": {}, "retries": 0}
GIVEN = ["one-seed0", "majority-seed0", "intersection-seed0"]
OWN = ["task-1", "task-2", "task-3", "task-4"]


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Smoke in seconds."""
    patch.setitem(transfer.SCALES, "smoke", dataclasses.replace(transfer.SCALES["smoke"], **SMALL))


def listen(arm: StudyArm, recipe: lt.Recipe) -> NullListener:
    return NullListener()


def work(folder: Path, options: Mapping[str, Any]) -> None:
    """A worker, with the scale of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        study.join(folder, listen=listen, **options)


class Forked:
    """A worker of the executor."""

    def __init__(self, folder: Path, name: str) -> None:
        self.process: BaseProcess = fork(work, folder, {"name": name, "retries": 0})
        self.log = name

    def poll(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        if self.poll() is None:
            self.process.terminate()


class ForkExecutor:
    """The local executor with workers that have imported everything."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def start(self, command: list[str], name: str) -> Forked:
        self.commands.append(command)
        return Forked(Path(command[command.index("worker") + 1]), name)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def shrunk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="module")
def serial(shrunk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in one process."""
    folder = tmp_path_factory.mktemp("serial") / "s"
    study.run("transfer", folder=folder, device="cpu")
    return folder


def timeless(folder: Path) -> dict[str, Any]:
    """What a study says, apart from times and from where it was made."""
    found = Study.load(folder / "study.json").to_json()
    for arm in found["arms"]:
        arm.pop("training_seconds")
    return {**found, "provenance": None}


def rows(folder: Path) -> dict[str, Any]:
    """The rows and the verdict of each search."""
    found = {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/search.json")}
    return {name: ([{**row, "seconds": 0} for row in each["rows"]], each["verdict"]) for name, each in found.items()}


def test_a_study_side_by_side_says_what_it_says_in_one_process(serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches whose masks are made of others wait for these. Both workers train; the process that began writes the claims."""
    made = ForkExecutor()
    monkeypatch.setattr(executors, "open_executor", lambda *_: made)
    folder = tmp_path / "s"
    found = study.run("transfer", folder=folder, device="cpu", workers=WORKERS)
    assert len(made.commands) == 2 and Study.load(folder / "study.json") == found
    assert timeless(folder) == timeless(serial) and rows(folder) == rows(serial) and len(rows(folder)) == 7
    last = max((folder / name / "search.json").stat().st_mtime_ns for name in OWN[:3])
    assert all((folder / name / "config.json").stat().st_mtime_ns >= last for name in GIVEN)
    assert not list(folder.rglob("*.lease-*"))


def begun(folder: Path) -> None:
    """The study, stopped when its first search has one network."""

    class Stopping(NullListener):
        def finished(self, *_: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run("transfer", folder=folder, device="cpu", listen=lambda arm, recipe: Stopping())


def test_workers_join_a_study_that_one_process_began(serial: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    begun(folder)
    before = StudyWatch(folder).look(0.0)
    assert [Path(each.run).name for each in before.searches] == OWN and not before.verdict, "all that waits for none"
    assert before.waiting == {name: ["task-1", "task-2", "task-3", "task-4"] for name in GIVEN}
    assert sum(each.count("finished") for each in before.searches) == 1
    processes = [fork(work, folder, {"device": "cpu", "retries": 0}) for _ in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0] and rows(folder) == rows(serial)
    after = StudyWatch(folder).look(0.0)
    assert not after.waiting and all(each.verdict for each in after.searches) and not after.verdict
    study.run("transfer", folder=folder, device="cpu", resume=True)
    assert timeless(folder) == timeless(serial) and StudyWatch(folder).look(0.0).verdict


def test_the_status_of_a_study(serial: Path, tmp_path: Path) -> None:
    shown = call_here("status", serial, "--watch", cwd=tmp_path)
    assert shown.returncode == 0 and "search task-1\n2 finished. Verdict: written." in shown.stdout
    assert "7 of 7 searches finished. Claims: written." in shown.stdout
    value = json.loads(call_here("status", serial, "--json", cwd=tmp_path).stdout)
    assert value["verdict"] and {arm["state"] for search in value["searches"] for arm in search["arms"]} == {"finished"}
    begun(tmp_path / "s")
    shown = call_here("status", tmp_path / "s", cwd=tmp_path)
    assert "search one-seed0 waits for task-1, task-2, task-3, task-4" in shown.stdout and "0 of 7 searches finished" in shown.stdout


def test_what_does_not_fit_a_study_is_refused(serial: Path, tmp_path: Path) -> None:
    job = StudyJob.load(serial)
    with pytest.raises(TicketMismatch, match="other settings"):
        study.run("transfer", folder=serial, device="cpu", resume=True, seeds=3)
    assert StudyJob.load(serial) == job, "nothing has changed"
    (tmp_path / "s").mkdir()
    dataclasses.replace(job, environment={**job.environment, "torch": "1.0"}).save(tmp_path / "s")
    with pytest.raises(TicketMismatch, match=r"other versions \(torch 1.0 there"):
        study.join(tmp_path / "s", listen=listen, device="cpu")
    (tmp_path / "s/study-job.json").write_text("[]")
    with pytest.raises(InvalidFile, match="does not describe a study"):
        StudyWatch(tmp_path / "s")
    refused = call_here("worker", serial, "--train", "x", cwd=tmp_path)
    assert refused.returncode == 2 and "leave --model and --train out" in refused.stderr
