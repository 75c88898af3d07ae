"""The process in which a runtime runs alone: it answers one request after the other, and ends when its parent does. Imports no torch."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from ltcompile import timing
from ltcompile.core.deployment import Deployment
from ltcompile.errors import LtcompileError, Unavailable
from ltcompile.runtimes import _ort, load
from ltcompile.runtimes._base import Bound, Feeds, Options, Session, Subject, first_line
from ltcompile.runtimes._memory import Layout, SharedMemory


def serve(requests: int, memory: int) -> None:
    """Answer requests (name, arguments, arrays, what is dropped) from a connection until its other end closes; both are file descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which closes the connection
    gc.disable()  # nothing collects within a timing; `load` does
    connection, server = Connection(requests), _Server(SharedMemory(memory))
    while True:
        try:
            name, arguments, layout, dropped = connection.recv()
        except (EOFError, OSError):
            os._exit(0)  # without the destructors of runtimes, which can hang
        for key in dropped:
            server.held.pop(key, None)
        try:
            answer = getattr(server, name)(*arguments, *([] if layout is None else [server.memory.read(layout)]))
        except LtcompileError as error:
            answer = type(error)(*error.args)  # without what it was raised from, which need not pass through a connection
        except Exception as error:  # each runtime raises its own
            answer = Unavailable(f"the runtime failed: {first_line(error)}; use another runtime")
        connection.send(answer)


class _Server:
    """What a parent can request; sessions and bindings are held by number."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory, self.held, self._numbers = memory, dict[int, Any](), itertools.count()

    def _hold(self, value: Session | Bound) -> int:
        number = next(self._numbers)
        self.held[number] = value
        return number

    def load(self, subject: Subject, deployment: Deployment, options: Options) -> tuple[int, str, dict[str, str]]:
        gc.collect()
        session = load(subject, deployment, options)
        return self._hold(session), session.dtype, dict(session.details)

    def describe(self, model: bytes) -> Any:
        return _ort.describe(model)

    def peak_bytes(self, session: int) -> int | None:
        peak: int | None = self.held[session].peak_bytes()
        return peak

    def bind(self, session: int, inputs: Feeds) -> int:
        return self._hold(self.held[session].bind(inputs))

    def run(self, session: int, inputs: Feeds) -> Layout:
        return self.memory.write(self.held[session].run(inputs))

    def repeated(self, session: int, inputs: Feeds) -> int:
        return self._hold(Bound(self.held[session].repeated(inputs), dict, lambda _: None))

    def release(self) -> None:
        gc.collect()

    def call(self, bound: int) -> None:
        self.held[bound].call()

    def write(self, bound: int, inputs: Feeds) -> None:
        self.held[bound].write(inputs)

    def read(self, bound: int) -> Layout:
        return self.memory.write(self.held[bound].read())

    def warm_up(self, bound: int, seconds: float, warmup: int) -> float:
        return timing.warm_up(self.held[bound].call, seconds, warmup)

    def block(self, bound: int, length: int, settle_s: float, settles: bool) -> list[float]:
        return timing.block(self.held[bound].call, length, settle_s, settles)
