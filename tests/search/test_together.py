"""A search by several processes, and one with states within epochs: the run folder of one process that was never stopped, to the bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fork, refused
from searches import QUICK, Stop
from together import CPU, few_digits, in_processes

import ltcompile as lt
from ltcompile import ranks
from ltcompile.core.arm import Arm
from ltcompile.core.lease import Files, Lease
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import EVERYTHING, Batch, Part, Shard
from ltcompile.errors import InvalidSetting, TrainingFailed
from ltcompile.search import NullListener
from ltcompile.tasks import Classification

pytestmark = pytest.mark.slow

CONFIG = lt.SearchConfig(rounds=1, rate=0.4, margin_points=50, rewind="weight", rewind_epoch=1, criterion="taylor")
RECIPE = replace(QUICK, batch=32, compile="never", ema=0.8, virtual_ranks=2)


def search(folder: Path, task: Classification | None = None, **options: Any) -> lt.SearchResult:
    task = Classification(few_digits()) if task is None else task
    return lt.find("lenet300", task, CONFIG, recipe=RECIPE, folder=folder, device="cpu", **options)


def together(folder: Path) -> None:
    found = search(folder / "run")
    assert found.ticket.checksum == lt.Ticket.load(folder / "run" / "ticket.pt").checksum and len(found.rows) == 4
    for wrong, options in {"leave jobs= out": {"jobs": 2}, "leave trainer= out": {"trainer": print}}.items():
        with pytest.raises(InvalidSetting, match=wrong):
            search(folder / "other", **options)
    with pytest.raises(InvalidSetting, match="virtual_ranks=3 cannot be shared by 2 processes"):
        lt.find(
            "lenet300", Classification(few_digits()), CONFIG, recipe=replace(RECIPE, batch=33, virtual_ranks=3), folder=folder / "other"
        )
    with pytest.raises(TrainingFailed, match="the loss is nan"):
        lt.find("lenet300", Classification(few_digits()), CONFIG, recipe=replace(RECIPE, lr=1e30), folder=folder / "nan", device="cpu")


def alone(folder: Path) -> None:
    torch.set_num_threads(1)
    search(folder / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("seed0/*.pt"))
    return {f"{file.stem} {name}": value for file in files for name, value in torch.load(file, weights_only=True)["weights"].items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    process = fork(alone, folder)
    process.join(120)
    assert process.exitcode == 0
    return folder / "run"


def same(a: Path, b: Path) -> bool:
    found, expected = weights(a), weights(b)
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) for folder in (a, b)]
    return (
        names[0] == names[1]
        and found.keys() == expected.keys()
        and all(torch.equal(value, expected[name]) for name, value in found.items())
    )


def test_two_processes_leave_the_folder_of_one(tmp_path: Path, whole: Path) -> None:
    in_processes(2, together, tmp_path)
    assert same(tmp_path / "run", whole)


class TakenOver(NullListener):
    """Another process takes the first arm over after its first epoch, and leaves it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = RunFolder(folder), list[tuple[str, int]]()

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None:
        self.begun.append((arm, done))

    def epoch(self, *_: object) -> None:
        if ranks.rank() == 0 and (other := Lease.take(Files(), self.folder.stem(Arm(0, "dense", 0)), 1, {})) is not None:
            other.end("left")


def together_until_taken_over(folder: Path) -> None:
    search(folder / "run", listener=(listener := TakenOver(folder / "run")))
    assert listener.begun[:3] == [("dense", 0), ("dense", 1), ("ticket", 0)], "all stopped, and took it up again from its checkpoint"


def test_a_lost_lease_stops_all_processes_together(tmp_path: Path, whole: Path) -> None:
    in_processes(2, together_until_taken_over, tmp_path)
    assert same(tmp_path / "run", whole)


class Interrupted(Classification):
    """Its data ends in an interruption after so many batches."""

    left = 0

    def batches(
        self, part: Part, size: int, device: torch.device, recipe: Any = None, seed: int = 0, shard: Shard = EVERYTHING
    ) -> Iterator[Batch]:
        for batch in super().batches(part, size, device, recipe, seed, shard):
            if recipe is not None and shard.count == 2 and shard.index == 0:
                self.left -= 1
                if self.left < 0:
                    raise Stop
            yield batch


def test_stopped_within_epochs_and_resumed(tmp_path: Path, whole: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task, stops = Interrupted(few_digits()), 0
        for left in (2, 3, 5, 4):
            task.left = left
            with pytest.raises(Stop):
                search(tmp_path, task, resume=stops > 0, checkpoint_minutes=0)
            (checkpoint,) = tmp_path.glob("seed0/*.partial.pt")
            stops += "begun" in torch.load(checkpoint, weights_only=True)
        assert stops == 4
        task.left = 1000
        search(tmp_path, task, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert same(tmp_path, whole)


def test_minutes_that_do_not_fit(tmp_path: Path) -> None:
    for minutes in (-1.0, float("nan")):
        with pytest.raises(InvalidSetting, match="checkpoint_minutes="):
            search(tmp_path, checkpoint_minutes=minutes)
    assert CPU.type == "cpu" and not list(tmp_path.iterdir())


def launched(arguments: list[str]) -> None:
    os._exit(10 + ranks.launch(2, arguments))


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["find", "--data", "imagefolder:/nowhere"], 2)])
def test_the_launcher_returns_the_exit_code_of_its_processes(arguments: list[str], code: int) -> None:
    """Also where the second one waits for the first, which has an error: it must not end before the first one has said so."""
    process = fork(launched, arguments)
    process.join(120)
    assert process.exitcode == 10 + code


def test_arms_are_trained_together_or_side_by_side(tmp_path: Path) -> None:
    refused("find", "--nproc-per-node", 2, "--jobs", 2, says="--nproc-per-node 2 trains arms one after another, and --jobs 2", cwd=tmp_path)
