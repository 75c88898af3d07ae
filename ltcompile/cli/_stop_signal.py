"""What a signal does to a command that trains, which `find`, `sweep`, `study` and `worker` share."""

from __future__ import annotations

import shlex
import signal
import sys
import warnings
from typing import Any

import typer

from ltcompile import ranks


class StopSignal:
    """Lets the first SIGINT or SIGTERM end a search in order, and a second one at once; prints notices as their text.

    Of several processes that train together, the first signal to any stops all at the same batch.
    """

    def __init__(self) -> None:
        self.number: int = signal.SIGINT
        warnings.formatwarning = _plain_notice
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._stop)

    def _stop(self, number: int, _: object) -> None:
        self.number = number
        if ranks.request_stop(number):
            return
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    def exit(self, begun: bool) -> typer.Exit:
        """The exit of a stopped command, once the user has read how to resume it, or how to begin it again."""
        code = 128 + (ranks.stopping() or self.number)  # the same in all processes
        if ranks.follows():
            return typer.Exit(code)
        command = ["ltcompile", *(a for a in sys.argv[1:] if a != "--resume")]
        resume = f"every completed epoch is kept. To resume:  {shlex.join([*command, '--resume'])}"
        hint = resume if begun else f"nothing had begun. To begin:  {shlex.join(command)}"
        typer.secho(f"\nstopped; {hint}", fg="yellow", err=True)
        return typer.Exit(code)


def _plain_notice(message: Warning | str, category: type[Warning], *where: Any, usual: Any = warnings.formatwarning, **line: Any) -> str:
    """A notice as its text alone, other warnings as usual."""
    from ltcompile.core.notice import Notice

    return f"note: {message}\n" if issubclass(category, Notice) else str(usual(message, category, *where, **line))
