"""One process at a time in a run folder, whatever became of the last one; files whole, and nothing left next to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ltcompile.errors import InvalidFile
from ltcompile.paths import _scratch, check_writable, locked, write_json, write_text


def hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(folder):
        ready.set()
        signal.pause()


def hold_with_a_child(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    """As a search does whose data set is read by worker processes."""
    with locked(folder):
        if os.fork() == 0:
            ready.set()  # here: the parent may be killed before its child has closed its copies
            time.sleep(20)
            os._exit(0)
        signal.pause()


def holder(folder: Path, target: Callable[..., None] = hold) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=target, args=(folder, ready))
    process.start()
    assert ready.wait(60)
    return process


def test_the_second_is_refused_and_reported_of_the_first(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(InvalidFile, match=f"in use by process {process.pid} on {socket.gethostname()}"), locked(tmp_path):
            pass
    finally:
        process.kill()
        process.join()
    with locked(tmp_path):  # it was killed, and its lock is stale
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_killed_process_holds_nothing_through_its_children(tmp_path: Path) -> None:
    process = holder(tmp_path, hold_with_a_child)
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_a_lock_is_removed_by_its_owner_alone(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").write_text("another's")
    assert (tmp_path / "lock").read_text() == "another's"


def test_a_lock_from_another_machine_is_believed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(InvalidFile, match="process 1 on elsewhere; if that has ended, remove"), locked(tmp_path):
        pass
    assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("reported", ["", "{", "[]", '{"pid": 3}'])
def test_damaged_locks(tmp_path: Path, reported: str) -> None:
    (tmp_path / "lock").write_text(reported)
    if reported:
        with pytest.raises(InvalidFile, match="in use by another process; if that has ended, remove"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            pass


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(InvalidFile, match="cannot write"), locked("/proc/none"):
        pass


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    mine = [".x.json.abcdefgh.part", ".x.json.01234567.part"]
    others = [".x.json.bak", ".y.json.abcdefgh.part", ".x.json.abcdefgh.part.txt", "x.json.abcdefgh.part", ".x.json.abc.part"]
    for name in (*mine, *others):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "x.json", [1])
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "x.json"])


def test_what_a_living_writer_writes_is_left_alone(tmp_path: Path) -> None:
    with _scratch(tmp_path / "x") as file:
        write_text(tmp_path / "x", "quicker")
        check_writable(tmp_path / "x")
        os.replace(file.name, tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


def test_writers_of_one_file_do_not_take_each_others_for_orphans(tmp_path: Path) -> None:
    def write(letter: str) -> None:
        for _ in range(150):
            write_text(tmp_path / "a.json", 1000 * letter)

    running = [multiprocessing.get_context("fork").Process(target=write, args=(letter,)) for letter in "abcd"]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and len(set((tmp_path / "a.json").read_text())) == 1


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
