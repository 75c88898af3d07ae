"""Own loops and commands in several processes on one folder: the same rows as in one, whatever happens to a process."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fork, refused
from torch import nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile import paths
from ltcompile.core.lease import Lease
from ltcompile.core.notice import Notice
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidSetting, TicketMismatch, TrainingFailed
from ltcompile.search import command
from ltcompile.search.command import search_by_command
from ltcompile.search.status import RunWatch
from ltcompile.search.worker import join

pytestmark = pytest.mark.slow

EXAMPLE = torch.zeros(2, 2, 16)
ERROR = Metric("error", "units", 1.0, higher_is_better=False)
CONFIG = lt.SearchConfig(rounds=1, rate=0.4, seeds=2, margin_points=5)


def build() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 1, 1))


def train(model: nn.Module, epochs: int) -> float:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(3 * epochs):
        x = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(step))
        loss = F.mse_loss(model(x), x[:, :1] * x[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def own(folder: Path) -> lt.Search:
    return lt.Search(build, EXAMPLE, folder, ERROR, epochs=2, rounds=1, rate=0.4, seeds=2, margin=5)


def loop(folder: Path, killed_in: int = -1) -> None:
    """The user's script; `killed_in` that arm of its own, it is killed."""
    names = []
    for count, arm in enumerate(search := own(folder)):
        value = train(arm.model, arm.epochs)
        if count == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)
        names.append(arm.name)
        arm.report(value)
    search.result()
    (folder.parent / f"trained-{os.getpid()}.json").write_text(json.dumps(names))


def rows(folder: Path) -> list[dict[str, Any]]:
    summary = json.loads((folder / "own-search.json").read_text())
    assert not list(folder.rglob("*.lease-*")), "nothing is left over"
    return [{k: v for k, v in row.items() if k != "seconds"} for row in summary["rows"]] + [summary["verdict"]]


@pytest.mark.parametrize("killed_in", [-1, 1])
def test_processes_share_a_loop(killed_in: int, tmp_path: Path) -> None:
    loop(tmp_path / "serial/run")
    processes = [fork(loop, tmp_path / "run", killed_in)]
    if killed_in >= 0:
        processes[0].join(60)  # else the other one may train all arms before it is killed
    processes.append(fork(loop, tmp_path / "run", -1))
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL if killed_in >= 0 else 0, 0]
    assert rows(tmp_path / "run") == rows(tmp_path / "serial/run")
    if killed_in < 0:
        trained = [name for file in tmp_path.glob("trained-*.json") for name in json.loads(file.read_text())]
        assert len(trained) == len(set(trained)) == 8, "each arm once"


def test_an_arm_that_another_process_took_over_is_left_to_it(tmp_path: Path) -> None:
    arms = iter(own(tmp_path))
    first = next(arms)
    taken = Lease.take(first._lease.files, first._lease.stem, 1, {})  # type: ignore[union-attr]
    assert taken is not None
    with pytest.warns(Notice, match="seed0/dense-0: another process took it over"):
        first.report(0.5)
    assert not RunFolder(tmp_path).training(first.arm).exists() and next(arms).name == "seed1/dense-0"


def test_a_loop_with_measured_plans_has_the_machine_alone(tmp_path: Path) -> None:
    search = own(tmp_path)
    search._prepared = dataclasses.replace(search._prepared, job=dataclasses.replace(search._prepared.job, measured=lambda small: 0.5))
    arms = iter(search)
    next(arms)
    assert (tmp_path / "measuring.lease-0").exists()
    arms.close()  # type: ignore[attr-defined]
    assert (tmp_path / "measuring.lease-0").read_text().startswith("left")


def script(words: list[str], environment: dict[str, str], _: object = None) -> int:
    """The command, in this process."""
    os.environ.update({name: environment[name] for name in ("LTCOMPILE_SEARCH", "LTCOMPILE_ARM")})
    torch.manual_seed(int(words[1]))
    try:
        model = lt.attach(build())
    except SystemExit as ended:
        return int(ended.code or 0)
    lt.report_metric(train(model, int(words[2])))
    return 0


def by_command(folder: Path, **more: Any) -> dict[str, Any]:
    return search_by_command("train {seed} {epochs}", folder, ERROR, CONFIG, epochs=2, example="2x2x16", **more)


def work(folder: Path, killed: bool) -> None:
    def call(words: list[str], environment: dict[str, str], lease: object) -> int:
        code = script(words, environment)
        if killed and environment["LTCOMPILE_ARM"].endswith("ticket-1"):
            os.kill(os.getpid(), signal.SIGKILL)
        return code

    command.call = call  # type: ignore[assignment]
    join(folder, train="train {seed} {epochs}", retries=0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("LTCOMPILE_SEARCH", "LTCOMPILE_ARM"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(command, "call", script)
    return monkeypatch


def test_a_script_waits_on_a_full_disk(tmp_path: Path, in_process: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it writes fails at first: first weights, plans, results, the verdict."""
    by_command(tmp_path / "serial")
    sync, calls = os.fsync, itertools.count()

    def full_at_first(descriptor: int) -> None:
        if next(calls) % 2 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def call(words: list[str], environment: dict[str, str], _: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full_at_first)
            return script(words, environment)

    in_process.setattr(command, "call", call)
    in_process.setattr(paths, "SPACE_POLL_S", 0.0)
    by_command(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "serial")
    reported = capsys.readouterr().err
    assert next(calls) > 2 * 8 * 2 and all(name in reported for name in ("first.pt", "plan-1.json", "ticket-1.pt", "own-search.json"))


def begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A search by a command whose first arm has failed."""
    monkeypatch.setattr(command, "call", lambda *_: 1)
    with pytest.raises(TrainingFailed, match="seed0/dense-0 ended with exit code 1"):
        by_command(folder)
    (run := RunFolder(folder)).tidy()
    return run


def test_workers_share_a_command(tmp_path: Path, in_process: pytest.MonkeyPatch) -> None:
    by_command(tmp_path / "serial")
    begun(tmp_path / "run", in_process)
    processes = [fork(work, tmp_path / "run", killed) for killed in (True, False)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]
    assert rows(tmp_path / "run") == rows(tmp_path / "serial")
    found = RunWatch(tmp_path / "run").look(0.0)
    assert found.count("finished") == 8 and found.verdict


def test_a_search_whose_last_process_was_killed_is_concluded(tmp_path: Path, in_process: pytest.MonkeyPatch) -> None:
    by_command(tmp_path / "run")
    expected = rows(tmp_path / "run")
    (tmp_path / "run/own-search.json").unlink()
    by_command(tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == expected


def test_a_worker_starts_no_command_but_the_one_that_is_given_again(tmp_path: Path, in_process: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path / "run", in_process)
    in_process.setattr(command, "call", lambda *_: pytest.fail("started"))
    with pytest.raises(InvalidSetting, match="started on your word: add train="):
        join(run.path)
    with pytest.raises(TicketMismatch, match="train='other' is not the command"):
        join(run.path, train="other")
    value = json.loads(run.command.read_text())
    run.command.write_text(json.dumps(value | {"environment": {"torch": "1.0"}}))
    with pytest.raises(TicketMismatch, match=r"other versions \(.*torch 1.0 there"):
        join(run.path, train="train {seed} {epochs}")
    refused("worker", run.path, says="add --train", cwd=tmp_path)


def test_a_command_ends_where_its_arm_is_taken_over(tmp_path: Path) -> None:
    class Lost:
        superseded, stem = True, "dense-0"

    with pytest.raises(command.LeaseLost):
        command.call(["sleep", "60"], os.environ, Lost())  # type: ignore[arg-type]
