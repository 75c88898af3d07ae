"""One process at a time in a run folder, whatever became of the last one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from ltcompile.errors import BadFile
from ltcompile.paths import locked


def hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        ready.set()
        signal.pause()


def holder(folder: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready))
    process.start()
    assert ready.wait(60)
    return process


def test_the_second_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(BadFile, match=f"in use by process {process.pid} on {socket.gethostname()}"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.join()
    with locked(tmp_path):  # it was killed, and its lock is stale
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_lock_from_another_machine_is_believed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(BadFile, match="process 1 on elsewhere; if that has ended, remove"), locked(tmp_path):
        pass
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("told", ["", "{", "[]", '{"pid": 3}'])
def test_damaged_locks(tmp_path: Path, told: str) -> None:
    (tmp_path / "lock").write_text(told)
    if told:
        with pytest.raises(BadFile, match="in use by another process; if that has ended, remove"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            pass


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(BadFile, match="cannot write"), locked("/proc/none"):
        pass
