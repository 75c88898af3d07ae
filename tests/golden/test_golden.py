"""The golden outputs hold: plans, a search to the bit, the JSON of commands, the command line. `make golden` compares all of them."""

from __future__ import annotations

import contextlib
import io
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest
from commands import SERVER, fork

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import freeze  # noqa: E402
from freeze import comparable  # noqa: E402
from golden_compare import Unlike, differences, masked, renamed  # noqa: E402


@pytest.mark.slow
def test_outputs_are_the_golden_ones() -> None:
    """In a process of its own, since commands change signal handlers and the current folder."""
    here, there = SERVER.Pipe(duplex=False)
    process = fork(check, there)
    there.close()
    code, printed = here.recv()
    assert code == 0, printed
    process.join()


def check(connection: Connection) -> None:
    """Send the exit code of `freeze.py --check --quick`, and what it prints."""
    with mock.patch.object(sys, "argv", ["freeze.py", "--check", "--quick"]), contextlib.redirect_stdout(io.StringIO()) as printed:
        connection.send((freeze.main(), printed.getvalue()))


def test_differences_name_the_place_and_both_values() -> None:
    old, new = {"rows": [{"loss": 0.5, "seconds": "<float>"}], "gone": 1}, {"rows": [{"loss": 0.25, "seconds": 3.0}], "fresh": 2}
    assert list(differences(old, new)) == ["rows/0/loss: 0.5 → 0.25", "gone: 1 → absent", "fresh: absent → 2"]
    assert list(differences({"seconds": "<float>"}, {"seconds": "soon"})) == ["seconds: '<float>' → 'soon'"]


def test_on_another_machine_numbers_are_close_and_hashes_differ() -> None:
    old = {name: {"loss": 2.0, "kept": [1, 2], "tensors": "bits:0a"} for name in ("search x", "plans, x")}
    near, far = {"loss": 2.1, "kept": [1, 3], "tensors": "bits:0b"}, {"loss": 3.0, "kept": [1, 2], "tensors": "bits:0a"}
    assert len(list(comparable(old, {"search x": near, "plans, x": old["plans, x"]}, same_machine=True))) == 3
    assert not list(comparable(old, {"search x": near, "plans, x": {**old["plans, x"], "tensors": "bits:0b"}}, same_machine=False))
    assert list(comparable(old, {"search x": far, "plans, x": near}, same_machine=False)) == [
        "search x/loss: 2.0 → 3.0",
        "plans, x/loss: 2.0 → 2.1",
        "plans, x/kept/1: 2 → 3",
    ]


def test_renamed_keys_hold_the_same_values() -> None:
    old = {"why": "2 of 3 remain", "took": "<float>", "sizes": {"before": 8, "after": 4}}
    notes: list[str] = []
    assert renamed(old, {"sizes": {"old": 8, "new": 4}, "duration": 1.5, "why": "2 of 3 remain"}, notes.append) == {
        "sizes": {"old": 8, "new": 4},
        "duration": "<float>",
        "why": "2 of 3 remain",
    }
    assert notes == ["sizes/before is now old", "sizes/after is now new", "took is now duration"]
    with pytest.raises(Unlike, match="after: 4"):
        renamed(old, {**old, "sizes": {"before": 8, "after": 5}}, notes.append)
    reworded = {**old, "why": "3 were there, 2 are left"}
    with pytest.raises(Unlike, match="why"):
        renamed(old, reworded, notes.append)
    assert renamed(old, reworded, notes.append, reworded=True) == reworded
    with pytest.raises(Unlike, match="why"):
        renamed(old, {**old, "why": "1 is left of 3"}, notes.append, reworded=True)


def test_masks_keep_keys_and_types() -> None:
    assert masked({"seconds": 1.5, "speedup": None, "pick": {"name": "a"}, "kept": [1]}, ("pick/name",)) == {
        "seconds": "<float>",
        "speedup": None,
        "pick": {"name": "<any>"},
        "kept": [1],
    }
