"""Files are whole, and nothing is left next to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import traceback
from pathlib import Path

import pytest
import torch

from ltcompile.errors import InvalidFile
from ltcompile.paths import _scratch, check_writable, write_json, write_text, write_torch


def test_of_several_writers_the_first_wins(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [1], once=True)
    write_json(tmp_path / "x.json", [2], once=True)
    assert json.loads((tmp_path / "x.json").read_text()) == [1] and os.listdir(tmp_path) == ["x.json"]


def test_a_file_that_another_machine_removes_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another machine does not see does not keep it from taking a new file for an orphan."""
    real, times = os.chmod, 0

    def chmod(name: str, mode: int) -> None:
        nonlocal times
        if not times:
            os.unlink(name)
        times += 1
        real(name, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    write_text(tmp_path / "x", "whole")
    assert times == 2 and (tmp_path / "x").read_text() == "whole" and os.listdir(tmp_path) == ["x"]


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


def test_a_failed_write_releases_its_buffer(tmp_path: Path) -> None:
    """Python 3.12.1 crashes when it collects a cycle, as a traceback is, with a view of a BytesIO."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidFile) as failed:
        write_torch(tmp_path / "file/weights.pt", {"a": torch.zeros(3)})
    views = [v for frame, _ in traceback.walk_tb(failed.tb) for v in frame.f_locals.values() if isinstance(v, memoryview)]
    assert views
    for view in views:
        with pytest.raises(ValueError, match="released"):
            view.tobytes()
