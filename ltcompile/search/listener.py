"""Progress reports of a search."""

from __future__ import annotations

from typing import Protocol

from ltcompile.core.records import Trained
from ltcompile.training import Epoch


class Listener(Protocol):
    """Receives the progress of a search; the command line draws bars with it."""

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None: ...
    def epoch(self, seed: int, arm: str, level: int, row: Epoch) -> None: ...
    def finished(self, row: Trained, from_file: bool) -> None: ...


class NullListener:
    """A listener that does nothing."""

    def started(self, seed: int, arm: str, level: int, epochs: int, done: int) -> None: ...
    def epoch(self, seed: int, arm: str, level: int, row: Epoch) -> None: ...
    def finished(self, row: Trained, from_file: bool) -> None: ...
