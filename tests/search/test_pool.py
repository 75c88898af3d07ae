"""The graph of arms, and many processes that share them: each arm is trained, none is lost, and little is done twice."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster import EPOCHS, Cluster, Faults, list_scheduling

from ltcompile.core.arm import Arm
from ltcompile.core.lease import LEASE_S, Files, Held, lease_file, mark, this_process
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import DiskFull, InvalidFile
from ltcompile.search.arms import ArmGraph, ready
from ltcompile.search.coordinator import _Coordinator
from ltcompile.search.pool import MOST_LOST, Pool

ELSEWHERE = {"host": "far", "pid": 1, "started": "1", "machine": "another"}
GRAPHS = [
    ArmGraph(range(1), 1, controls=False),
    ArmGraph(range(2, 5), 3),
    ArmGraph(range(2), 3, curve=True),
    ArmGraph(range(3), 2, False, True, True),
]


def seconds(arm: Arm) -> float:
    return (300 if arm.kind != "ticket" else 300 * 0.85**arm.level) * random.Random(repr(arm)).lognormvariate(0, 0.3)


@pytest.mark.parametrize("graph", GRAPHS)
def test_arms_become_ready_when_what_they_need_is_finished(graph: ArmGraph) -> None:
    """In any order: every arm once, none before its predecessor, controls after all tickets."""
    rng, done, level = random.Random(0), list[Arm](), None
    while found := ready(graph, done, level):
        arm = rng.choice(found)
        assert arm not in done and ((needed := graph.needs(arm)) is None or needed in done)
        assert arm.kind not in ("random", "dense_budget") or set(graph.tickets) <= set(done)
        done.append(arm)
        assert all(arm in (graph.needs(each),) for each in graph.follow(arm))
        if level is None and set(graph.tickets) <= set(done):
            level = 1
    assert sorted(map(repr, done)) == sorted(map(repr, graph.arms(1)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_process_takes_them_in_order(tmp_path: Path, graph: ArmGraph) -> None:
    pool, taken = Pool(RunFolder(tmp_path), graph, lambda: 1, this_process(), in_order=True), []
    while (found := pool.take(0.0)) is not None:
        arm, lease = found
        pool.folder.training(arm).touch()
        lease.done()
        pool.finish(arm)
        taken.append(arm)
    assert taken == graph.arms(1) and pool.finished and json.loads(pool.folder.level.read_text()) == {"level": 1}
    again = Pool(RunFolder(tmp_path), graph, None, this_process())
    assert again.take(0.0) is None and again.finished and again.done == set(taken)


@pytest.mark.parametrize(
    ("faults", "coordinated"),
    [
        (Faults(), False),
        (Faults(kills=20), True),
        (Faults(freezes=8, mutes=8), True),
        (Faults(kills=10, freezes=4, mutes=4, full_s=120), False),
    ],
    ids=repr,
)
def test_nothing_is_lost_in_a_cluster(tmp_path: Path, faults: Faults, coordinated: bool) -> None:
    graph = ArmGraph(range(12), 7)
    run = Cluster(RunFolder(tmp_path), graph, 10, seconds, faults, coordinated=coordinated).run()
    assert run.results.keys() == set(graph.arms(1)) and not run.given_up
    assert run.repeated <= run.takeovers, "at most one epoch, which is between two checkpoints, for each time that an arm changes hands"
    if not (faults.freezes or faults.full_s):
        assert run.takeovers <= faults.kills and set(run.results.values()) == {1}
    if faults == Faults():
        assert run.ends <= 1.1 * list_scheduling(graph, 1, 10, seconds)
    leftovers = [name for folder in run.files.folders.values() for name in folder if ".lease-" in name]
    assert not leftovers


def test_the_calls_of_the_file_system_grow_with_the_arms(tmp_path: Path) -> None:
    """And not with their square: of a search twice as large, each arm takes hardly more."""
    runs = [Cluster(RunFolder(tmp_path / str(seeds)), ArmGraph(range(seeds), 4), 8, seconds) for seeds in (10, 20)]
    for run in runs:
        run.folder.path.mkdir()
    calls = [sum(run.run().files.calls.values()) / len(run.graph.arms(1)) for run in runs]
    assert calls[1] <= 1.3 * calls[0]


class TestFailures:
    def pool(self, folder: Path, **options: int) -> Pool:
        return Pool(RunFolder(folder), ArmGraph(range(2), 1, controls=False), None, this_process(log="x.log"), in_order=True, **options)

    def test_a_failed_arm_is_tried_again_and_then_given_up(self, tmp_path: Path) -> None:
        pool = self.pool(tmp_path, retries=2)
        for attempt in range(3):
            found = pool.take(float(attempt))
            assert found is not None and found[0] == Arm(0, "dense", 0) and found[1].number == attempt
            found[1].end("failed", "loss is nan")
            pool.gave_up(found[0], float(attempt))
        other = pool.take(5.0)
        assert other is not None and other[0] == Arm(1, "dense", 0) and not pool.blocked, "others continue"
        failed = pool.failed[Arm(0, "dense", 0)]
        assert (failed.error, failed.log) == ("loss is nan", "x.log")
        again = self.pool(tmp_path, retries=2)
        assert again.take(6.0) is None and Arm(0, "dense", 0) in again.failed and not again.blocked
        RunFolder(tmp_path).begin({}, resume=True)
        assert self.pool(tmp_path).free and not list(tmp_path.glob("seed0/*.lease-*")), "resuming tries it again"
        assert list(tmp_path.glob("seed1/*.lease-0")), "and leaves what is being trained alone"

    def test_processes_that_train_note_which_leases_expired(self, tmp_path: Path) -> None:
        """Who looks for an arm then need not wait. One that only looks writes nothing."""
        graph = ArmGraph(range(2), 1, False)
        ended, busy, next_one = (Pool(RunFolder(tmp_path), graph, lambda: 1, ELSEWHERE | {"pid": pid}) for pid in range(3))
        onlooker = Pool(RunFolder(tmp_path), graph, None, ELSEWHERE)
        first, own = ended.take(0.0), busy.take(0.0)
        assert first is not None and own is not None and next_one.take(0.0) is None
        for now in (0.0, LEASE_S - 1):
            busy.watch(now)
            onlooker.look(now)
        assert next_one.take(LEASE_S - 1) is None, "the owner may be slow"
        own[1].beat()
        content = Path(first[1].path).read_bytes()
        onlooker.look(LEASE_S + 1)
        assert onlooker.free and Path(first[1].path).read_bytes() == content
        busy.watch(LEASE_S + 1)
        assert Held.parse(Path(first[1].path).read_bytes()).state == "expired" and not own[1].lost
        found = Pool(RunFolder(tmp_path), graph, lambda: 1, ELSEWHERE | {"pid": 9}).take(0.0)
        assert found is not None and found[0] == first[0] and found[1].number == 1 and first[1].lost

    def test_the_longest_chain_goes_first_where_its_owner_ended(self, tmp_path: Path) -> None:
        graph = ArmGraph(range(2), 2, False)
        ended, pool = (Pool(RunFolder(tmp_path), graph, lambda: 1, ELSEWHERE | {"pid": pid}) for pid in range(2))
        first, own = ended.take(0.0), pool.take(0.0)
        assert first is not None and own is not None and first[0].kind == own[0].kind == "dense"
        RunFolder(tmp_path).training(own[0]).touch()
        own[1].done()
        pool.finish(own[0])
        mark(Files(), first[1].path, Held("running", b""), "expired")
        found = pool.take(1.0)
        assert found is not None and found[0] == first[0], "and not the ticket that this process has just opened"

    def test_who_only_looks_sees_a_level_that_is_chosen_later(self, tmp_path: Path) -> None:
        graph, folder = ArmGraph(range(1), 1), RunFolder(tmp_path)
        (tmp_path / "seed0").mkdir()
        for arm in graph.tickets:
            folder.training(arm).touch()
        (pool := Pool(folder, graph, None, this_process())).look(0.0)
        assert pool.level is None and not pool.blocked and not pool.finished
        folder.level.write_text('{"level": 1}')
        pool.look(1.0)
        assert pool.level == 1 and set(pool.free) == set(graph.controls_at(1))

    def test_a_full_disk_is_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """By one of several processes, for so long."""
        folder, arm, sleeps = RunFolder(tmp_path, space_s=25.0), Arm(0, "dense", 0), list[float]()
        folder.begin({}, resume=False)
        clock = SimpleNamespace(monotonic=lambda: sum(sleeps), sleep=sleeps.append)
        monkeypatch.setattr("ltcompile.paths.time", clock)
        monkeypatch.setattr(os, "fsync", failing := lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(DiskFull, match="No space left"):
            folder.save(folder.checkpoint(arm), {"epoch": 1})
        assert sleeps == [10.0] * 3 and capsys.readouterr().err.count("It is tried again for") == 1

        def free(pause: float) -> None:
            monkeypatch.undo()
            sleeps.append(pause)

        monkeypatch.setattr(os, "fsync", failing)
        monkeypatch.setattr("ltcompile.paths.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=free))
        folder.save(folder.checkpoint(arm), {"epoch": 1})
        assert folder.load(folder.checkpoint(arm)) == {"epoch": 1} and len(sleeps) == 4

    @pytest.mark.parametrize("own", [True, False])
    def test_the_process_that_starts_workers_says_that_one_ended(self, tmp_path: Path, own: bool) -> None:
        """Of jobs on other machines, which may have been preempted: no failure. Workers that others started may only be out of sight."""
        head, next_one = (Pool(RunFolder(tmp_path), ArmGraph(range(1), 1, False), None, ELSEWHERE, retries=0) for _ in range(2))
        run = type("Run", (), {"complete": True, "advance": lambda self, _: [self], "pool": lambda *_, **__: head})()
        coordinator = _Coordinator(run, SimpleNamespace(), 1, 0)  # type: ignore[arg-type]
        name = f"{coordinator.batch if own else 'other'}-1"
        gone = Pool(RunFolder(tmp_path), ArmGraph(range(1), 1, False), None, ELSEWHERE | {"worker": name})
        assert gone.take(0.0) is not None and next_one.take(0.0) is None
        coordinator.workers, coordinator.owners = {name: SimpleNamespace(poll=lambda: 143, log="x.log")}, {name}  # type: ignore[dict-item]
        head.look(time.monotonic())
        coordinator._collect()
        assert not head.failed and (next_one.take(1.0) is not None) is own

    def test_stopping_in_order_is_no_failure(self, tmp_path: Path) -> None:
        for attempt in range(9):
            found = self.pool(tmp_path, retries=0).take(0.0)
            assert found is not None and found[0].seed == 0 and found[1].number == attempt
            found[1].end("left")

    @pytest.mark.parametrize("progress", [False, True])
    def test_an_arm_that_ends_its_processes_is_given_up_unless_it_gets_on(self, tmp_path: Path, progress: bool) -> None:
        arm, folder = Arm(0, "dense", 0), RunFolder(tmp_path)
        ended = {**this_process(), "started": "before"}
        for attempt in range(MOST_LOST):
            found = Pool(folder, ArmGraph(range(1), 1, False), None, ended, in_order=True).take(0.0)
            assert found is not None and found[1].number == attempt
            if progress:
                folder.checkpoint(arm).write_text(str(attempt))
                os.utime(folder.checkpoint(arm), ns=(attempt, attempt))
        last = self.pool(tmp_path)
        found = last.take(0.0)
        assert (arm in last.failed) != progress and found is not None and (found[0] == arm) == progress

    def test_a_level_that_is_none(self, tmp_path: Path) -> None:
        graph = ArmGraph(range(1), 1)
        (tmp_path / "seed0").mkdir()
        for arm in graph.tickets:
            RunFolder(tmp_path).training(arm).touch()
        for content in ("[]", '{"level": 2}', '{"level": true}', "{"):
            (tmp_path / "level.json").write_text(content)
            with pytest.raises(InvalidFile, match="level"):
                Pool(RunFolder(tmp_path), graph, lambda: 1, this_process()).look(0.0)


def trainer(folder: Path, number: int) -> None:
    """A process whose trainings only sleep: they write a checkpoint, a line for each epoch, and a result."""
    run = RunFolder(folder)
    pool = Pool(run, ArmGraph(range(4), 3), lambda: 2, this_process(worker=str(number)), lease_s=2)
    while not pool.finished:
        if (found := pool.take(time.monotonic())) is None:
            time.sleep(0.02)
            continue
        arm, lease = found
        with lease.held(0.2):
            checkpoint = run.checkpoint(arm)
            done = int(checkpoint.read_text()) if checkpoint.exists() else 0
            for epoch in range(done, 3):
                with (folder / f"log-{os.getpid()}").open("a") as log:
                    log.write(f"{arm.seed} {arm.name} {epoch}\n")
                time.sleep(0.02)
                scratch = folder / f"scratch-{os.getpid()}"
                scratch.write_text(str(epoch + 1))
                os.replace(scratch, checkpoint)
            os.replace(checkpoint, run.training(arm))
        pool.finish(arm)


def test_processes_that_are_killed_at_random(tmp_path: Path) -> None:
    """Real ones on a real disk; those that were killed on this machine are not waited for."""
    context, rng, kills = multiprocessing.get_context("fork"), random.Random(1), 0
    numbers = itertools.count()

    def begin() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=trainer, args=(tmp_path, next(numbers)))
        process.start()
        return process

    living = [begin() for _ in range(3)]
    while any(process.is_alive() for process in living) and time.monotonic():
        time.sleep(0.1)
        i = rng.randrange(3)
        if kills < 6 and living[i].is_alive():
            os.kill(living[i].pid or 0, signal.SIGKILL)
            living[i].join()
            living[i], kills = begin(), kills + 1
    graph = ArmGraph(range(4), 3)
    assert all((tmp_path / f"seed{arm.seed}/{arm.name}.pt").read_text() == "3" for arm in graph.arms(2))
    begun = [line for file in tmp_path.glob("log-*") for line in file.read_text().splitlines()]
    assert len(set(begun)) == 3 * len(graph.arms(2)) and len(begun) - len(set(begun)) <= kills
    assert not list(tmp_path.glob("seed*/*.lease-*")) or kills


def test_a_lease_of_a_finished_arm_is_removed_at_the_next_beginning(tmp_path: Path) -> None:
    folder, arm = RunFolder(tmp_path), Arm(0, "dense", 0)
    found = Pool(folder, ArmGraph(range(1), 1), None, this_process()).take(0.0)
    assert found is not None and EPOCHS
    folder.training(arm).touch()
    folder.begin({}, resume=True)
    assert [file.name for file in (tmp_path / "seed0").iterdir()] == ["dense-0.pt"]
    assert Held.parse(b"").state == "running" and lease_file("a", 1) == "a.lease-1"
