"""Passes of a network over several inputs that wait at each watched call until all have come there.

A pass is a thread that computes only while the caller waits for it, so that nothing runs at the same time and all is deterministic.
What a pass holds between two calls is what the network's own code holds there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ltcompile.errors import InvalidModel
from ltcompile.graph.inputs import Arguments
from ltcompile.recovery._calls import Call

Watched = Callable[[Call], bool]


class Pass:
    """One run of `model` on `inputs`. At the end, `output` is the network's."""

    def __init__(self, model: nn.Module, inputs: Arguments, watched: Watched) -> None:
        self._call: Call | None = None
        self.output: Any = None
        self._watched, self._reply, self._stopped = watched, None, False
        self._error: BaseException | None = None
        self._turn, self._waiting = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(model, inputs), daemon=True)
        self._thread.start()
        self._advance()

    @property
    def call(self) -> Call:
        """The watched call that it waits at. Raises InvalidModel at the end."""
        if self._call is None:
            raise InvalidModel("the network calls other layers for some inputs; repair needs a fixed order")
        return self._call

    def reply(self, value: Any) -> None:
        """Let the waiting call return `value`, and run to the next one."""
        self._reply = value
        self._advance()

    def stop(self) -> None:
        """End the pass where it waits."""
        if self._call is not None:
            self._stopped = True
            self._advance()

    def _advance(self) -> None:
        self._call = None
        self._turn.release()
        self._waiting.acquire()
        if self._error is not None:
            raise self._error

    def _run(self, model: nn.Module, inputs: Arguments) -> None:
        self._turn.acquire()
        try:
            with torch.no_grad(), _Pauses(self):
                self.output = model(*inputs.args, **inputs.kwargs)
        except _Stopped:
            pass
        except BaseException as error:  # it is raised where the caller waits
            self._error = error
        self._waiting.release()

    def pause(self, call: Call) -> Any:
        """Wait at `call`, in the thread, for what it returns."""
        if not self._watched(call):
            return call.result()
        self._call = call
        self._waiting.release()
        self._turn.acquire()
        if self._stopped:
            raise _Stopped
        value, self._reply = self._reply, None
        return value


class _Stopped(BaseException):
    """Ends a thread; not an Exception, so that the network's code does not catch it."""


class _Pauses(TorchFunctionMode):
    def __init__(self, run: Pass) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run.pause(Call(func, tuple(args), kwargs or {}))
