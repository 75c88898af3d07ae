"""One process at a time has a lease, whatever became of the last one, and whatever the clocks say."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltcompile.core.lease import Files, Held, Lease, LeaseLost, Observer, claim, lease_file, lease_numbers, this_process
from ltcompile.errors import InvalidFile

FILES, ELSEWHERE = Files(), {"host": "elsewhere", "pid": 1, "machine": "another"}


def take(folder: Path, observer: Observer, now: float = 0.0) -> Lease | None:
    return claim(f"{folder}/arm", dict(ELSEWHERE), observer, now)


def test_of_many_processes_one_gets_it(tmp_path: Path) -> None:
    observers = [Observer() for _ in range(9)]
    taken = [lease for observer in observers if (lease := take(tmp_path, observer)) is not None]
    assert len(taken) == 1 and os.listdir(tmp_path) == ["arm.lease-0"]
    taken[0].done()
    assert os.listdir(tmp_path) == [] and take(tmp_path, observers[0]) is not None


def test_a_lease_expires_where_its_counter_stands_still_on_the_observers_own_clock(tmp_path: Path) -> None:
    owner = take(tmp_path, Observer())
    assert owner is not None
    early, late = Observer(lease_s=60), Observer(lease_s=60)  # whose clocks are a year apart
    for step in range(20):
        owner.beat()
        assert take(tmp_path, early, 30.0 * step) is None and take(tmp_path, late, 3e7 + 30.0 * step) is None
    assert take(tmp_path, early, 570 + 60) is None, "not longer than 60 s"
    second = take(tmp_path, early, 570 + 61)
    assert second is not None and second.number == 1 and owner.lost and not second.lost
    assert take(tmp_path, late, 3e7 + 571) is None, "the new one is seen for the first time"


def test_an_owner_that_wakes_up_too_late_changes_nothing(tmp_path: Path) -> None:
    owner, observer = take(tmp_path, Observer()), Observer(lease_s=1)
    assert owner is not None and take(tmp_path, observer, 0) is None
    second = take(tmp_path, observer, 2)
    assert second is not None
    newest = Path(second.path).read_bytes()
    owner.beat()
    owner.end("failed", "late")
    assert Path(second.path).read_bytes() == newest and not second.lost
    second.done()
    assert os.listdir(tmp_path) == [] and owner.lost, "it has no lease either once the work is done"


def test_random_takeovers_never_have_two_owners_that_do_not_know(tmp_path: Path) -> None:
    """Five processes that freeze for a while, in random order: a process that is not the newest sees that its lease is lost."""
    rng, now = random.Random(0), 0.0
    observers: list[Observer] = [Observer(lease_s=5) for _ in range(5)]
    held: dict[int, Lease] = {}
    for _ in range(400):
        now += rng.uniform(0, 4)
        i = rng.randrange(5)
        if i not in held:
            if (lease := take(tmp_path, observers[i], now)) is not None:
                held[i] = lease
        elif held[i].lost:
            held.pop(i).end("left")
        elif rng.random() < 0.1:
            held.pop(i).done()
        elif rng.random() < 0.5:
            held[i].beat()
        assert sum(not lease.lost for lease in held.values()) <= 1


@pytest.fixture
def ended() -> Iterator[dict[str, object]]:
    """What a process of this machine said of itself that has ended since."""
    code = "import json; from ltcompile.core.lease import this_process; print(json.dumps(this_process()))"
    yield json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_a_process_of_this_machine_that_ended_is_not_waited_for(tmp_path: Path, ended: dict[str, object]) -> None:
    assert Lease.take(FILES, f"{tmp_path}/arm", 0, dict(ended)) is not None
    assert claim(f"{tmp_path}/arm", this_process(), Observer(), 0.0) is not None
    assert claim(f"{tmp_path}/arm", this_process(), Observer(), 0.0) is None, "this process runs"
    reused = {**this_process(), "started": "another time"}
    assert Held("running", b"", reused).ended_here, "another process has its number now"


def test_how_the_work_ended_is_written(tmp_path: Path) -> None:
    for number, (error, state) in enumerate(
        ((None, None), (ValueError("loss"), "failed"), (KeyboardInterrupt(), "left"), (LeaseLost(), "left"))
    ):
        lease = Lease.take(FILES, f"{tmp_path}/arm{number}", 0, dict(ELSEWHERE))
        assert lease is not None
        try:
            with lease.held(every_s=60):
                if error is not None:
                    raise error
        except BaseException as raised:
            assert raised is error
        content = FILES.read(lease.path)
        assert (None if content is None else Held.parse(content).state) == state
    assert "ValueError: loss" in Held.parse(FILES.read(lease_file(f"{tmp_path}/arm1", 0)) or b"").info["error"]


def test_the_counter_is_raised_in_a_thread(tmp_path: Path) -> None:
    lease = Lease.take(FILES, f"{tmp_path}/arm", 0, {})
    assert lease is not None
    with lease.held(every_s=0.01):
        first = FILES.read(lease.path)
        while FILES.read(lease.path) == first:
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 50, b"1\n[]", b"1\n" + b"[" * 9000, b"9" * 70_000])
def test_a_damaged_lease_expires_soon(tmp_path: Path, content: bytes) -> None:
    """Its owner was killed between making the file and writing its name, and nothing says that it runs."""
    (tmp_path / "arm.lease-0").write_bytes(content)
    observer = Observer(lease_s=60)
    assert [take(tmp_path, observer, now) is not None for now in (0, 6, 6.1)] == [False, False, True]


def test_a_full_disk_leaves_no_lease(tmp_path: Path) -> None:
    class Full(Files):
        def write(self, descriptor: int, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InvalidFile, match="No space left"):
        Lease.take(Full(), f"{tmp_path}/arm", 0, {})
    assert os.listdir(tmp_path) == []


def test_names(tmp_path: Path) -> None:
    names = ["a-1.pt", "a-1.lease-0", "a-1.lease-10", "a-1.lease-2", "a-10.lease-0", "b.lease-x", ".lease-1"]
    assert lease_numbers(names) == {"a-1": [0, 2, 10], "a-10": [0]}
    assert all(lease_numbers([Path(lease_file(str(tmp_path / "x"), n)).name]) == {"x": [n]} for n in itertools.chain(range(3), [123]))
