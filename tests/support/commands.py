"""The command line as a user meets it, without the seconds that its imports take: commands are forks of a process that has done them.

A fork has a pid, signals, a folder, an environment and outputs of its own, as a process has that was just started.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import typer.main

PATIENCE_S = 500
REFUSAL_S = 60
REFUSAL_BYTES = None if Path("/dev/nvidiactl").exists() else 3 << 30  # CUDA reserves more than it takes
SERVER = multiprocessing.get_context("forkserver")
built_once = functools.cache(typer.main.get_command)  # all commands with their options, which takes longer than to refuse one


def fork(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """`target` under way in a fork of the process that has imported everything; there is one for each that runs tests."""
    SERVER.set_forkserver_preload(["preload", "commands"])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.path.dirname(__file__)):
        multiprocessing.forkserver.ensure_running()
    process = SERVER.Process(target=_forked, args=(target, *arguments))
    process.start()
    return process


def run_script(words: list[str], environment: Mapping[str, str], _: object) -> int | None:
    """The exit code of a script of Python in a fork: for `ltcompile.search.command.call`, without the imports."""
    process = fork(_script, words[1:], dict(environment))
    process.join(PATIENCE_S)
    return process.exitcode


def _script(words: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _forked(target: Callable[..., None], *arguments: object) -> None:
    """In a fork torch makes a new pool of threads when it is first used: if two threads use it, one may find none, and abort."""
    import torch

    torch.set_num_threads(torch.get_num_threads())
    target(*arguments)


class Command:
    """`ltcompile ARGUMENTS`, under way."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        memory_bytes: int | None = None,
        **environment: str,
    ) -> None:
        self._arguments = ["ltcompile", *map(str, arguments)]
        self._scratch = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._scratch.name) / name for name in ("stdout", "stderr")]
        around = {**os.environ, "COLUMNS": "160", **environment}
        self._process = fork(_run, self._arguments, cwd or Path.cwd(), around, self._outputs, memory_bytes)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, sent: signal.Signals) -> None:
        os.kill(self.pid, sent)

    def wait(self, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Its exit code (minus the signal that ended it), output and errors; it is killed when its time is up."""
        with self._scratch:
            self._process.join(timeout)
            if self._process.exitcode is None:
                self._process.kill()
                self._process.join()
                raise subprocess.TimeoutExpired(self._arguments, timeout)
            stdout, stderr = (path.read_text(encoding="utf-8") for path in self._outputs)
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode, stdout, stderr)


def call(
    *arguments: object,
    cwd: Path | None = None,
    memory_bytes: int | None = None,
    timeout: float = PATIENCE_S,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """`ltcompile ARGUMENTS` from beginning to end, with so much memory besides what its imports take."""
    return Command(*arguments, cwd=cwd, memory_bytes=memory_bytes, **environment).wait(timeout)


def call_here(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`ltcompile ARGUMENTS` in this process, for tests of what a command says: it ends before it has begun a thread or another process."""
    from ltcompile.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words, printed, code = ["ltcompile", *map(str, arguments)], (io.StringIO(), io.StringIO()), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        for patch in (
            *(mock.patch.object(sys, "argv", words), mock.patch.dict(os.environ, COLUMNS="160"), contextlib.chdir(cwd)),
            mock.patch.object(typer.main, "get_command", built_once),
            mock.patch.object(warnings, "formatwarning", warnings.formatwarning),  # the command sets it for its process
            *(contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1])),
        ):
            stack.enter_context(patch)
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, *(each.getvalue() for each in printed))


def refused(*arguments: object, says: str, cwd: Path | None = None, **environment: str) -> None:
    """The command ends in a message and exit code 2, without a traceback, in bounded time and memory."""
    done = call(*arguments, cwd=cwd, memory_bytes=REFUSAL_BYTES, timeout=REFUSAL_S, **environment)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert says in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


def _run(arguments: list[str], cwd: Path, environment: dict[str, str], outputs: list[Path], memory_bytes: int | None) -> None:
    """In the fork: become the command, whose timings take no pauses, and which reads exported files that this run of tests has kept."""
    if memory_bytes is not None:
        held = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (held + memory_bytes,) * 2)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = arguments
    from quickly import exported_once, timed_at_once

    from ltcompile.cli import main

    with timed_at_once(), exported_once():
        main()
