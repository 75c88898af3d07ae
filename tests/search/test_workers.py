"""Arms in processes of their own: the same bits as one after another, whatever happens to a process, and refusals before any training."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command, call, refused
from searches import Stop, StopAfter
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile import executors
from ltcompile.cli import app
from ltcompile.core.arm import Arm
from ltcompile.core.recipe import Recipe
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Task
from ltcompile.errors import InvalidFile, InvalidSetting, LtcompileError, TicketMismatch, TrainingFailed, Unavailable, UnknownName
from ltcompile.search import Source
from ltcompile.search.coordinator import _Coordinator
from ltcompile.search.job import SearchJob, prepare
from ltcompile.search.listener import NullListener
from ltcompile.search.run import SearchRun
from ltcompile.search.status import RunWatch
from ltcompile.search.worker import join

CONFIG = lt.SearchConfig(rounds=2, rate=0.3, seeds=2, margin_points=50, rewind="weight", rewind_epoch=1)
RECIPE = Recipe(epochs=3, batch=64, lr=0.02, flip=False, crop_pixels=1, precision="fp32")


SOURCE = Source("classification", "lenet300", "digits", image_size=(8, 8), train_images=128)


@functools.cache
def digits() -> Task:
    return SOURCE.load()


def search(folder: Path, **more: Any) -> Any:
    more = {"recipe": RECIPE, "config": CONFIG, "model": "lenet300", "data": digits(), "source": SOURCE} | more
    return lt.find(folder=folder, resume=folder.exists(), **more)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search in one process."""
    folder = tmp_path_factory.mktemp("serial") / "run"
    search(folder)
    return folder


@pytest.fixture
def begun(serial: Path, tmp_path: Path) -> RunFolder:
    """The same search, stopped after the first of two epochs of its first ticket."""
    run = RunFolder(shutil.copytree(serial, tmp_path / "run"))
    with pytest.raises(Stop):
        shutil.rmtree(run.path)
        search(run.path, listener=StopAfter(4))
    return run


def same(found: Path, expected: Path) -> None:
    """All trainings to the bit, the verdict, the history and nothing left over."""
    one, other = (sorted(str(f.relative_to(each)) for f in each.rglob("*") if "workers" not in str(f)) for each in (found, expected))
    assert one == other
    for file in (name for name in one if name.endswith(".pt") and name != "ticket.pt"):
        weights, wanted = (torch.load(each / file, weights_only=True)["weights"] for each in (found, expected))
        assert all(torch.equal(value, weights[name]) for name, value in wanted.items()), file
    summaries = [json.loads((each / "search.json").read_text()) for each in (found, expected)]
    assert summaries[0]["verdict"] == summaries[1]["verdict"]
    histories = [[json.loads(line) for line in (each / "history.jsonl").read_text().splitlines()] for each in (found, expected)]
    timeless = [[{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows] for rows in histories]
    assert timeless[0] == timeless[1]


def test_a_run_begun_by_one_process_is_finished_by_a_worker(begun: RunFolder, serial: Path) -> None:
    assert join(begun.path) == {"trained": 9, "failed": 0}
    same(begun.path, serial)
    assert join(begun.path) == {"trained": 0, "failed": 0}, "nothing is left"


class Forked:
    """A worker as a fork of a process that has imported everything."""

    def __init__(self, command: list[str]) -> None:
        self.command = Command(*command[3:])
        self.log = str(self.command._outputs[1])

    def poll(self) -> int | None:
        return self.command._process.exitcode

    def stop(self) -> None:
        if self.poll() is None:
            self.command.send(signal.SIGTERM)


class ForkExecutor:
    """The local executor without the seconds that a worker's imports take."""

    def __init__(self) -> None:
        self.started: list[Forked] = []

    def start(self, command: list[str], name: str) -> Forked:
        assert command[1:4] == ["-m", "ltcompile", "worker"] and name in command
        self.started.append(Forked(command))
        return self.started[-1]

    def close(self) -> None: ...


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkExecutor]:
    made = ForkExecutor()
    monkeypatch.setattr(executors, "open_executor", lambda *_: made)
    yield made
    for worker in made.started:
        worker.stop()
        worker.command.wait(30)


class Counting(NullListener):
    """Counts the epochs that are reported, and does something at one of them."""

    def __init__(self, at: int = 0, action: Callable[[], object] = lambda: None) -> None:
        self.epochs, self.arms, self.at, self.action = 0, 0, at, action

    def epoch(self, *_: object) -> None:
        self.epochs += 1
        if self.epochs == self.at:
            self.action()

    def finished(self, *_: object) -> None:
        self.arms += 1


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_bits(tmp_path: Path, serial: Path, forks: ForkExecutor) -> None:
    """One of the workers is killed under way."""
    listener = Counting(1, lambda: forks.started[0].command.send(signal.SIGKILL))
    search(tmp_path / "run", jobs=2, listener=listener)
    same(tmp_path / "run", serial)
    assert forks.started[0].poll() == -signal.SIGKILL and listener.arms == 10
    assert listener.epochs == len((serial / "history.jsonl").read_text().splitlines())


def test_workers_save_as_often_as_the_search_that_starts_them(begun: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of a worker says how often, if the search does; its process then prepares its job so."""

    def prepared(job: SearchJob) -> None:
        assert job.checkpoint_minutes == 0.05
        raise Stop

    found = prepare(SearchJob("lenet300", digits(), CONFIG, RECIPE, torch.device("cpu")))
    for minutes in (None, 0.05):
        job = dataclasses.replace(found, job=dataclasses.replace(found.job, checkpoint_minutes=minutes))
        command = _Coordinator(SearchRun(job, begun, NullListener()), ForkExecutor(), 1, 2)._command("w")
        assert all(isinstance(word, str) for word in command) and ("--checkpoint-minutes" in command) == (minutes is not None)
    monkeypatch.setattr("ltcompile.search.worker.prepare", prepared)
    with pytest.raises(Stop):
        CliRunner().invoke(app, command[3:], catch_exceptions=False)


@pytest.mark.slow
def test_stopping_leaves_arms_that_are_resumed(tmp_path: Path, serial: Path, forks: ForkExecutor) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", jobs=2, listener=Counting(3, interrupt))
    assert all(worker.poll() is not None for worker in forks.started), "they ended in order"
    search(tmp_path / "run")
    same(tmp_path / "run", serial)


@pytest.mark.slow
def test_arms_that_fail_are_tried_again_and_reported_with_their_log(tmp_path: Path, forks: ForkExecutor) -> None:
    hopeless = dataclasses.replace(RECIPE, lr=1e12)
    with pytest.raises(TrainingFailed, match=r"2 arms failed.*dense-0 of seed \d: .*loss is nan.*\(log: .*workers/.*\.log\).*resume=True"):
        search(tmp_path / "run", jobs=1, retries=1, recipe=hopeless)
    states = RunWatch(tmp_path / "run").look(0.0)
    assert (states.count("failed"), states.count("waiting")) == (2, 4) and states.arms[0].error and not states.verdict
    assert len(list((tmp_path / "run").glob("seed0/*.lease-*"))) == 2


def test_workers_that_end_before_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "python").write_text("#!/bin/sh\necho 'no module named torch'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(Unavailable, match=r"workers end before they train anything.*exit code 3: no module named torch.*log: .*\.log"):
        search(tmp_path / "run", jobs=1, retries=0)


def test_a_status(begun: RunFolder, serial: Path) -> None:
    found = RunWatch(begun.path).look(0.0)
    assert [arm.state for arm in found.arms] == ["finished", "ready", "waiting", "ready", "waiting", "waiting"]
    assert (found.arms[0].epochs, found.arms[1].epochs, found.level, found.verdict) == (3, 1, None, False)
    done = RunWatch(serial).look(0.0)
    assert done.count("finished") == 10 and done.verdict and done.level == 2 and done.left_s is None
    with begun.epochs(Arm(0, "ticket", 1)).open("a") as file:
        file.write('{"seconds": ')
    assert RunWatch(begun.path).look(0.0).arms[1].epochs == 1, "half a line is not counted"


@pytest.mark.slow
def test_the_command_line_shows_a_status(serial: Path, tmp_path: Path) -> None:
    done = call("status", serial, "--watch", cwd=tmp_path)
    assert done.returncode == 0 and "10 finished. Level: 2. Verdict: written." in done.stdout, done.stderr
    value = json.loads(call("status", serial, "--json", cwd=tmp_path).stdout)
    assert value["verdict"] and {arm["state"] for arm in value["arms"]} == {"finished"}


def changed(run: RunFolder, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(run.job.read_text())
    change(value)
    run.job.write_text(json.dumps(value))


REFUSALS: dict[str, tuple[Callable[[RunFolder], object], type[LtcompileError], str]] = {
    "no run": (lambda run: shutil.rmtree(run.path), InvalidFile, r"there is no run at .* as .* sees it; .*mount"),
    "old": (lambda run: run.job.unlink(), InvalidFile, "begun by an older version; continue it once with `ltcompile find --resume`"),
    "versions": (
        lambda run: changed(run, lambda v: v["environment"].update(torch="1.0")),
        TicketMismatch,
        r"other versions \(torch 1.0 there, .* here\).*allow_other_versions=True",
    ),
    "device": (
        lambda run: changed(run, lambda v: v["environment"].update(device="NVIDIA H200")),
        TicketMismatch,
        "device NVIDIA H200 there",
    ),
    "objects": (
        lambda run: changed(run, lambda v: v.update(source=None, reason="data is an object")),
        InvalidSetting,
        "data is an object; start",
    ),
    "own code": (lambda run: changed(run, lambda v: v["source"].update(model="os:system")), InvalidSetting, "add model=os:system"),
    "own loop": (
        lambda run: run.settings.write_text('{"model": "own"}'),
        InvalidSetting,
        "trained by a script of its own; start that script here",
    ),
    "other data": (
        lambda run: changed(run, lambda v: v["source"].update(image_size=[16, 16])),
        TicketMismatch,
        "arguments.*not what .*config.json",
    ),
    "damaged": (lambda run: run.job.write_text("[]"), InvalidFile, "does not describe a job"),
    "settings": (lambda run: run.settings.write_text("{}"), InvalidFile, "does not hold the settings of a run"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_worker_refuses_before_it_trains(begun: RunFolder, case: str) -> None:
    spoil, kind, says = REFUSALS[case]
    spoil(begun)
    before = sorted(begun.path.rglob("*"))
    with pytest.raises(kind, match=says):
        join(begun.path)
    assert sorted(begun.path.rglob("*")) == before


@pytest.mark.slow
def test_other_versions_are_noted_where_they_are_allowed(begun: RunFolder, serial: Path) -> None:
    changed(begun, lambda value: value["environment"].update(torch="1.0"))
    join(begun.path, allow_other_versions=True, name="w")
    same(begun.path, serial)
    (note,) = begun.workers.glob("*.json")
    assert json.loads(note.read_text())["differs"][0].startswith("torch 1.0 there") and RunWatch(begun.path).look(0.0).others == [note.stem]


def test_jobs_need_what_other_processes_can_load(tmp_path: Path) -> None:
    for more, says in (
        ({"jobs": 0}, "jobs=0 must be at least 1"),
        ({"jobs": 2, "source": None}, "jobs=2: the data was passed as an object.*start the same script"),
        ({"jobs": 2, "trainer": print}, "a trainer, mask or network was passed as an object"),
    ):
        with pytest.raises(InvalidSetting, match=says):
            search(tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_refuses(tmp_path: Path) -> None:
    refused("find", "--jobs", 0, says="'--jobs'", cwd=tmp_path)
    refused("find", "--executor", "slurm", says="say how many", cwd=tmp_path)
    refused("find", "--model", "lenet5", "--jobs", 2, "--executor", "slumr", says="Did you mean slurm", cwd=tmp_path)
    refused("worker", "none", says="there is no run at none as", cwd=tmp_path)
    refused("status", "none", says="there is no run at none", cwd=tmp_path)


class TestExecutors:
    """Each runs a command, says when it is over and how, and where its log is."""

    def run(self, name: str, folder: Path, options: Mapping[str, str], code: str) -> tuple[int, str]:
        made = executors.open_executor(name, folder / "run/workers", 1, options)
        try:
            job = made.start([sys.executable, "-c", code], "w")
            while (status := job.poll()) is None:
                time.sleep(0.02)
            return status, Path(job.log).read_text()
        finally:
            made.close()

    def test_local(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        code = "import os; print(*(os.environ[n] for n in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')), flush=True); raise SystemExit(3)"
        assert self.run("local", tmp_path, {"threads": "3"}, code) == (3, "3 5\n")
        made = executors.open_executor("local", tmp_path / "two", 3, {})
        jobs = [made.start([sys.executable, "-c", code], str(i)) for i in range(3)]
        assert [job.poll() or job._process.wait() for job in jobs] == [3, 3, 3]  # type: ignore[attr-defined]
        assert [Path(job.log).read_text().split()[1] for job in jobs] == ["5", "7", "5"], "GPUs are dealt out"

    @pytest.mark.slow
    def test_slurm(self, tmp_path: Path) -> None:
        """By submitit's executors for this machine, and for this process."""
        options = {"cluster": "local", "folder": str(tmp_path / "submitit"), "timeout_min": "1"}
        for cluster in ("local", "debug"):
            assert self.run("slurm", tmp_path, options | {"cluster": cluster}, "print('trained')")[0] == 0
        status, log = self.run("slurm", tmp_path, options, "raise SystemExit('no GPU here')")
        assert status == 1 and "no GPU here" in log
        assert not (tmp_path / "run").exists(), "nothing that is unpickled lies in the run folder"

    @pytest.mark.slow
    def test_ray(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a cluster of two nodes, each with room for one worker, and with a token."""
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        from ray.cluster_utils import Cluster

        unneeded = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}  # processes, which take seconds to start
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **unneeded})
        try:
            cluster.add_node(num_cpus=1)
            made = executors.open_executor("ray", tmp_path / "run/workers", 2, {"address": cluster.address})
            code = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\nwhile not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)"
            names = [str(tmp_path / name) for name in "ab"]
            jobs = [made.start([sys.executable, "-c", code, *order], f"w{i}") for i, order in enumerate((names, names[::-1]))]
            while any(job.poll() is None for job in jobs):  # each waits for the other: both run at once
                time.sleep(0.05)
            assert [job.poll() for job in jobs] == [0, 0]
            failed = made.start([sys.executable, "-c", "raise SystemExit(4)"], "w")
            while failed.poll() is None:
                time.sleep(0.05)
            assert failed.poll() == 4
            made.close()
            code = "import sys\nfrom pathlib import Path\nfrom ltcompile import executors\nfrom ltcompile.errors import Unavailable\ntry:\n"
            code += (
                "    executors.open_executor('ray', Path('x'), 1, {'address': sys.argv[1]})\nexcept Unavailable as error:\n    print(error)"
            )
            monkeypatch.setenv("RAY_AUTH_TOKEN", "1" * 64)
            monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "2")  # Ray tries 20 times, a second each
            other = subprocess.run([sys.executable, "-c", code, cluster.address], capture_output=True, text=True, timeout=120, check=False)
            assert "lets this process in" in other.stdout and "holds the cluster's token" in other.stdout, other.stderr
        finally:
            cluster.shutdown()

    def test_options_and_what_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnknownName, match=r"no executor named 'slrum'. Did you mean slurm\? Known: local, ray, slurm"):
            executors.open_executor("slrum", tmp_path, 1, {})
        with pytest.raises(InvalidSetting, match="executor=local has no option 'partition'; it takes: threads"):
            executors.open_executor("local", tmp_path, 1, {"partition": "gpu"})
        with pytest.raises(InvalidSetting, match="threads=0 of executor=local must be a number of at least 1"):
            executors.open_executor("local", tmp_path, 1, {"threads": "0"})
        with pytest.raises(InvalidSetting, match=r"executor=slurm: .*slrum_partition"):
            executors.open_executor("slurm", tmp_path, 1, {"cluster": "local", "slrum_partition": "gpu"})
        with pytest.raises(Unavailable, match="there is no srun here"):
            executors.open_executor("slurm", tmp_path, 1, {})
        for name, package in (("slurm", "submitit"), ("ray", "ray")):
            monkeypatch.setitem(sys.modules, package, None)
            with pytest.raises(Unavailable, match=rf"executor={name}: .*pip install 'ltcompile\[{name}\]'"):
                executors.open_executor(name, tmp_path, 1, {})

    def test_what_is_out_of_reach_is_said_before_anything_begins(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"no cluster at address=127\.0\.0\.1:1"):
            search(tmp_path / "run", jobs=2, executor="ray", executor_options={"address": "127.0.0.1:1"})
        assert not (tmp_path / "run").exists()

    def test_a_wrong_address(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"no cluster at address=127.0.0.1:1 that lets this process in: .*refused.*token"):
            executors.open_executor("ray", tmp_path, 1, {"address": "127.0.0.1:1"})
