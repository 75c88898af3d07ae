"""Runtimes in processes of their own, one each: a crash, an abort or a hang ends that process, and is an error with its reason here.

Timings are taken in the worker (`timing.RemoteCall`), so that the 0.1 ms that a request takes are in none of them. Between requests a worker
waits for the next one; threads that its runtime leaves spinning sleep within the settling of `timing`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ltcompile import registry
from ltcompile.errors import Crashed
from ltcompile.runtimes import _venvs
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject
from ltcompile.runtimes._memory import Layout, SharedMemory

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment
    from ltcompile.runtimes._ort import Ends

TIMEOUT_S = 600.0  # of one request: compiling a network for a new shape can take minutes
LAST_LINES, LAST_BYTES = 3, 4096  # of what a worker wrote before it ended
ROOT = Path(__file__).parents[2]
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from ltcompile.runtimes._worker import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)


class Workers:
    """Sessions in worker processes, one process a runtime, started by the first session and again after a crash."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s, self._workers, self._lock = timeout_s, dict[str, _Worker](), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, subject: Subject, deployment: Deployment, options: Options) -> Session:
        """As `runtimes.load`. Raises Crashed, too, where the process ends or does not answer."""
        onnx, file = subject.onnx, subject.file and subject.file.resolve()
        if onnx is None and file is None:
            subject.need_onnx(deployment.runtime)
        subject = replace(subject, module=None, onnx=onnx.resolve() if isinstance(onnx, Path) else onnx, file=file)
        worker = self._worker(deployment.runtime)
        return _RemoteSession(worker, deployment, *worker.request("load", subject, deployment, options))

    def describe(self, model: bytes) -> tuple[dict[str, str], Ends, Ends]:
        """As `_ort.describe`. Raises Crashed, too."""
        found: tuple[dict[str, str], Ends, Ends] = self._worker("onnxruntime").request("describe", model)
        return found

    def processes(self) -> dict[str, int]:
        """The number of the process of each runtime that runs."""
        return {runtime: worker.process.pid for runtime, worker in self._workers.items() if not worker.reason}

    def release(self) -> None:
        """Drop the sessions that nothing here refers to any more; they go with the next request otherwise."""
        gc.collect()
        for worker in self._workers.values():
            with contextlib.suppress(Crashed):
                worker.request("release")

    def _worker(self, runtime: str) -> _Worker:
        with self._lock:
            if runtime not in self._workers or self._workers[runtime].reason:
                self._workers[runtime] = _Worker(runtime, self._timeout_s)
            return self._workers[runtime]

    def close(self) -> None:
        """End all processes; their sessions raise Crashed from now on."""
        for worker in self._workers.values():
            worker.close("it was closed")
        self._workers.clear()


@functools.cache
def shared() -> Workers:
    """Workers that last as long as this process."""
    workers = Workers()
    atexit.register(workers.close)
    return workers


os.register_at_fork(after_in_child=shared.cache_clear)  # a connection belongs to one process


class _Worker:
    """A process and this end of its connection; `reason` is why it ended, "" while it runs."""

    def __init__(self, runtime: str, timeout_s: float) -> None:
        self._runtime, self._timeout_s, self._lock, self.reason = runtime, timeout_s, threading.RLock(), ""
        self.dropped: deque[int] = deque()  # what this process no longer refers to
        self._connection, theirs = Pipe()
        self._file, self._owner = os.memfd_create("ltcompile"), os.getpid()
        self._memory, self._output = SharedMemory(self._file), open(os.memfd_create("output"), "r+b")  # noqa: SIM115  `close` closes it
        command = [_interpreter(runtime), "-P", "-c", START, str(ROOT), str(theirs.fileno()), str(self._file)]
        with theirs:
            output, passed = self._output, (theirs.fileno(), self._file)
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=passed)

    def request(self, name: str, *arguments: Any, arrays: Feeds | None = None) -> Any:
        """What the worker answers. Raises Crashed; or what it raises."""
        with self._lock:
            if self.reason:
                raise Crashed(f"{self._runtime}'s process has ended: {self.reason}")
            try:
                dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
                self._connection.send((name, arguments, None if arrays is None else self._memory.write(arrays), dropped))
                if not self._connection.poll(self._timeout_s):
                    self.close(f"no answer to {name!r} within {self._timeout_s:g} s")
                    raise Crashed(f"{self._runtime} hangs: {self.reason}; use another runtime")
                answer = self._connection.recv()
            except (EOFError, ConnectionError) as error:
                self.close()
                raise Crashed(f"{self._runtime} crashed: {self.reason}; use another runtime") from error
            except BaseException:  # such as Ctrl-C: the answer to come would be taken for the next one
                self.close("a request was interrupted")
                raise
            if isinstance(answer, Layout):
                return self._memory.read(answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self, reason: str = "") -> None:
        """End the process; without a reason, how it ended is the reason."""
        if self.reason or os.getpid() != self._owner:
            return
        self._connection.close()
        if reason:
            self.process.kill()
        code = self.process.wait()
        ended = f"its process ended by {_signal(-code)}" if code < 0 else f"its process ended with code {code}"
        with self._output as output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
        self.reason = (reason or ended) + (f"; its last output: {' | '.join(lines[-LAST_LINES:])}" if lines else "")
        os.close(self._file)


def _interpreter(runtime: str) -> str:
    """That of the runtime's own environment, or this one's."""
    module = registry.load("ltcompile.runtimes", "runtime", runtime)
    return str(_venvs.python(module.VENV) or sys.executable) if hasattr(module, "VENV") else sys.executable


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


class _RemoteSession(Session):
    """A session in a worker."""

    thread_safe = False

    def __init__(self, worker: _Worker, deployment: Deployment, number: int, dtype: str, details: Mapping[str, str]) -> None:
        super().__init__(deployment, details)
        self._worker, self._number, self._dtype = worker, number, dtype
        weakref.finalize(self, worker.dropped.append, number)

    @property
    def dtype(self) -> str:
        return self._dtype

    def bind(self, inputs: Feeds) -> Bound:
        call = _Call(self, self._worker, self._worker.request("bind", self._number, arrays=inputs))
        return Bound(call, call.read, call.write)

    def run(self, inputs: Feeds) -> dict[str, Array]:
        outputs: dict[str, Array] = self._worker.request("run", self._number, arrays=inputs)
        return outputs

    def repeated(self, inputs: Feeds) -> _Call:
        return _Call(self, self._worker, self._worker.request("repeated", self._number, arrays=inputs))

    def peak_bytes(self) -> int | None:
        peak: int | None = self._worker.request("peak_bytes", self._number)
        return peak


class _Call:
    """A binding in a worker, as `timing.RemoteCall` has it."""

    def __init__(self, session: _RemoteSession, worker: _Worker, number: int) -> None:
        self._session, self._request = session, functools.partial(self._of, worker, number)  # the session lives as long as its bindings
        weakref.finalize(self, worker.dropped.append, number)

    @staticmethod
    def _of(worker: _Worker, number: int, name: str, *arguments: Any, arrays: Feeds | None = None) -> Any:
        return worker.request(name, number, *arguments, arrays=arrays)

    def __call__(self) -> object:
        return self._request("call")

    def warm_up(self, seconds: float, warmup: int) -> float:
        return float(self._request("warm_up", seconds, warmup))

    def block(self, length: int, settle_s: float, settles: bool) -> list[float]:
        return list(self._request("block", length, settle_s, settles))

    def read(self) -> dict[str, Array]:
        outputs: dict[str, Array] = self._request("read")
        return outputs

    def write(self, inputs: Feeds) -> object:
        return self._request("write", arrays=inputs)
