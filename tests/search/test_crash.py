"""A search that is killed, stopped, or loses its disk or folder: what was kept stays, and resuming equals never stopping."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from commands import call_here

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.data import Dataset
from ltcompile.errors import InvalidFile
from ltcompile.paths import write_bytes
from ltcompile.search.listener import NullListener

ROOT = Path(__file__).parents[2]
CONFIG = lt.SearchConfig(rounds=1, rate=0.3, controls=False, margin_points=50)
RECIPE = Recipe(epochs=3, batch=32, lr=0.02, flip=False, crop_pixels=1, precision="fp32")


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed() -> None:
    """bench/crash.py in small: it forks, which a process with threads, as pytest's, cannot."""
    code = "import json, crash; print(json.dumps(crash.measure(10)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bench"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    reported = json.loads(done.stdout.splitlines()[-1])
    assert reported["kills"] == 10 and not reported["problems"], reported
    for row in reported["phases"].values():
        assert row["resumed_equal"] == row["kills"] and row["epochs_repeated_at_most"] <= 1 and row["leftovers"] == 0
    given = {"half written", "before its rename", "behind its rename"}
    assert given < set(reported["phases"]), "others come at random times, so that a busy machine decides where"


def test_a_second_signal_ends_at_once() -> None:
    code = "import time\nfrom ltcompile.cli._stop_signal import StopSignal\nStopSignal()\n"
    code += "try:\n    print('ready', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('leaving', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("ready", "leaving"):
        assert process.stdout.readline().strip() == line
        process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_a_stopped_run_says_how_to_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ltcompile.cli._stop_signal import StopSignal

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["ltcompile", "find", "--name", "a b"])
    stopped = StopSignal()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert stopped.exit(begun=False).exit_code == 130
    assert capsys.readouterr().err.rstrip().endswith("To begin:  ltcompile find --name 'a b'")
    stopped.exit(begun=True)
    assert capsys.readouterr().err.rstrip().endswith("To resume:  ltcompile find --name 'a b' --resume")


# Disks


class Disk:
    """A disk of SIZE bytes: of its own, where this process may mount one; else a folder, for which the system's calls report the same."""

    SIZE = 2 << 20

    def __init__(self, folder: Path) -> None:
        self.folder, self.patch = folder, pytest.MonkeyPatch()
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.SIZE}", "tmpfs", str(folder)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.clear()

    def fill(self) -> None:
        if not self.mounted:
            self._report_free(0)
            self.patch.setattr(os, "fsync", failing(errno.ENOSPC))
            return
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass

    def clear(self) -> None:
        self.patch.undo()
        (self.folder / "filler").unlink(missing_ok=True)
        if not self.mounted:
            self._report_free(self.SIZE)

    def protect(self) -> None:
        """Make it read-only, to the superuser too."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        else:
            self.patch.setattr(Path, "mkdir", failing(errno.EROFS))

    def remove(self) -> None:
        self.patch.undo()
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)

    def _report_free(self, free: int) -> None:
        reported = SimpleNamespace(total=self.SIZE, used=self.SIZE - free, free=free)
        self.patch.setattr(shutil, "disk_usage", lambda path: reported)


def failing(number: int) -> Callable[..., NoReturn]:
    """A call that the system answers with this error."""

    def call(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=8)


class After(NullListener):
    """Does something behind so many epochs."""

    def __init__(self, epochs: int, action: Callable[[], object]) -> None:
        self.left, self.action = epochs, action

    def epoch(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            self.action()


def test_a_full_disk_keeps_the_last_checkpoint(disk: Disk, tmp_path: Path, digits: Dataset) -> None:
    whole = lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=tmp_path / "whole")
    run = disk.folder / "run"
    with pytest.raises(InvalidFile, match=r"No space left.*bytes were to be written, and [\d,]+ are free.*resume=True"):
        lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=run, listener=After(2, disk.fill))
    assert len(torch.load(run / "seed0/dense-0.partial.pt", weights_only=True)["epochs"]) == 2
    assert [f.name for f in run.rglob(".*")] == [], "nothing half-written"
    disk.clear()
    resumed = lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=run, resume=True)
    assert all(torch.equal(value, resumed.ticket.weights[name]) for name, value in whole.ticket.weights.items())


def test_too_small_a_disk_is_reported_before_any_training(disk: Disk, digits: Dataset) -> None:
    disk.fill()
    with pytest.raises(InvalidFile, match=r"this search will take about [\d,]+ bytes, and 0 are free|No space left.*0 are free"):
        lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=disk.folder / "run")
    disk.clear()
    lt.find("lenet300", digits, CONFIG, recipe=dataclasses.replace(RECIPE, epochs=1), folder=disk.folder / "run")
    with pytest.raises(InvalidFile, match=r"this search will take about [\d,]+ bytes"):
        lt.find("lenet300", digits, lt.SearchConfig(rounds=8, seeds=10), recipe=RECIPE, folder=disk.folder / "other")


class LargestCheckpoint:
    """A listener that looks how large the checkpoints become."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0

    def started(self, *_: object) -> None: ...
    def finished(self, *_: object) -> None: ...
    def epoch(self, *_: object) -> None:
        self.bytes = max([self.bytes, *(file.stat().st_size for file in self.folder.glob("seed*/*.partial.pt"))])


SEARCHES: dict[str, dict[str, Any]] = {
    "filters": {"rewind": "weight", "rewind_epoch": 1, "seeds": 2},
    "target": {"rate": None, "target_macs": 0.4, "full_curve": True},
    "masked": {"masked": True},
    "weights": {"prune": "weights", "full_curve": True},
    "hybrid": {"prune": "hybrid", "controls": False},
    "scores": {"method": "edge-popup"},
    "basis": {"method": "basis", "full_curve": True},
    "slow weights": {"rounds": 1},
    "averaged weights": {"rounds": 1},
}
RECIPES: dict[str, dict[str, Any]] = {"slow weights": {"lookahead": 2}, "averaged weights": {"ema": 0.9, "optimizer": "adamw"}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEARCHES)
def test_the_estimate_is_what_is_written(tmp_path: Path, kind: str) -> None:
    """At the most: with two checkpoints, of which one replaces the other. At most a quarter more, and no less."""
    from ltcompile.search.disk_space import run_bytes
    from ltcompile.search.job import SearchJob, prepare
    from ltcompile.tasks import Classification

    digits, config = lt.load_data("digits", image_size=16), lt.SearchConfig(**({"rounds": 2, "rate": 0.3} | SEARCHES[kind]))
    recipe = dataclasses.replace(RECIPE, epochs=2, batch=256, **RECIPES.get(kind, {}))
    listener = LargestCheckpoint(tmp_path)
    lt.find("lenet5", digits, config, recipe=recipe, folder=tmp_path, listener=listener)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) + 2 * listener.bytes
    assert written <= run_bytes(prepare(SearchJob("lenet5", Classification(digits), config, recipe, torch.device("cpu")))) <= 1.25 * written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(InvalidFile, match=rf"cannot write .*{os.strerror(number)}.*The old file, if any, is untouched"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_text() == "old" and os.listdir(tmp_path) == ["x"]


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> lt.Ticket:
    recipe = dataclasses.replace(RECIPE, epochs=1)
    return lt.find("lenet300", digits, CONFIG, recipe=recipe, folder=tmp_path_factory.mktemp("found") / "run").ticket


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_no_writer_dies_of_a_full_disk(disk: Disk, ticket: lt.Ticket, suffix: str) -> None:
    """torch's own end the process."""
    (disk.folder / f"small{suffix}").write_text("old")
    disk.fill()
    with pytest.raises(InvalidFile, match="No space left"):
        lt.shrink(ticket, disk.folder / f"small{suffix}")
    assert (disk.folder / f"small{suffix}").read_text() == "old"


# Folders


def test_a_folder_removed_while_the_search_runs(tmp_path: Path, digits: Dataset) -> None:
    run = tmp_path / "run"
    with pytest.raises(InvalidFile, match="was removed or moved while the search ran"):
        lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=run, listener=After(2, lambda: shutil.rmtree(run)))
    assert not run.exists()


@pytest.mark.slow
def test_a_file_removed_while_the_search_runs(tmp_path: Path, digits: Dataset) -> None:
    run = tmp_path / "run"
    with pytest.raises(InvalidFile, match=r"dense-0.pt is gone; resume=True repeats that training"):
        lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=run, listener=After(4, (run / "seed0/dense-0.pt").unlink))
    found = lt.find("lenet300", digits, CONFIG, recipe=RECIPE, folder=run, resume=True)
    assert found.ticket.level == 1


def test_a_damaged_file_is_named_and_can_be_done_again(tmp_path: Path, digits: Dataset) -> None:
    run, recipe = tmp_path / "run", dataclasses.replace(RECIPE, epochs=1)
    whole = lt.find("lenet300", digits, CONFIG, recipe=recipe, folder=run)
    damaged = run / "seed0/ticket-1.pt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(InvalidFile, match=r"ticket-1.pt .*; remove it, and resume=True repeats that training"):
        lt.find("lenet300", digits, CONFIG, recipe=recipe, folder=run, resume=True)
    damaged.unlink()
    again = lt.find("lenet300", digits, CONFIG, recipe=recipe, folder=run, resume=True)
    assert all(torch.equal(value, again.ticket.weights[name]) for name, value in whole.ticket.weights.items())


def refused(*arguments: object, says: str, cwd: Path) -> None:
    """The command must end with exit code 2 and say something."""
    done = call_here(*arguments, cwd=cwd)
    assert done.returncode == 2 and says in " ".join(done.stderr.split()), done.stderr


FIND = ("find", "--model", "lenet5", "--epochs", 2, "--rounds", 1, "--rate", 0.3, "--no-controls")


@pytest.mark.slow
def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    refused(*FIND, "--name", "x", says="runs is not a folder; move it away", cwd=tmp_path)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/seed0").write_text("")
    refused(*FIND, "--name", "x", says="runs/x/seed0 is not a folder; move it away", cwd=tmp_path)
    refused(*FIND, "--name", "y", "--resume", says="there is no run to resume at runs/y; leave --resume out", cwd=tmp_path)


def test_read_only_places(disk: Disk, tmp_path: Path) -> None:
    disk.protect()
    (tmp_path / "runs").symlink_to(disk.folder)
    refused(*FIND, "--name", "x", says="Read-only file system; choose another place", cwd=tmp_path)
