"""What starts the workers of a search: one executor a file.

A file offers `unavailable() -> str or None`, which says what to install; `OPTIONS`, the settings that it takes with what they mean (None: any,
which its engine checks); and `Executor(folder, workers, options)`, for `folder` as its workers see it: `start(command, name) -> Job` runs a
command line for one worker, and `close()` ends what the executor itself holds. Commands are lists of words: no shell and no pickled function of
ours takes part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

from ltcompile import registry
from ltcompile.errors import InvalidSetting, Unavailable


class Job(Protocol):
    """A worker that was started; `log` is where it writes."""

    @property
    def log(self) -> str: ...

    def poll(self) -> int | None:
        """Its exit code; None while it runs or waits for a machine."""

    def stop(self) -> None:
        """Let it give its arm up after the last checkpoint, and end."""


class Executor(Protocol):
    """Starts workers."""

    def start(self, command: list[str], name: str) -> Job: ...
    def close(self) -> None: ...


def names() -> list[str]:
    """The executors there are."""
    return list(registry.modules(__name__))


def load(name: str) -> ModuleType:
    """The executor's file. Raises UnknownName; Unavailable where it is not installed."""
    module = registry.load(__name__, "executor", name)
    if (reason := module.unavailable()) is not None:
        raise Unavailable(f"executor={name}: {reason}")
    return module


def open_executor(name: str, folder: Path, workers: int, options: Mapping[str, str]) -> Executor:
    """The executor `name`, for so many workers at a time.

    Raises UnknownName; Unavailable where it is not installed or its cluster is out of reach; InvalidSetting for an option.
    """
    module = load(name)
    known = module.OPTIONS
    if known is not None and (other := sorted(options.keys() - known)):
        takes = ", ".join(f"{key} ({words})" for key, words in known.items()) or "none"
        raise InvalidSetting(f"executor={name} has no option {other[0]!r}; it takes: {takes}")
    made: Executor = module.Executor(folder, workers, dict(options))
    return made
