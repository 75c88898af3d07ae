"""What networks are for: one task a file, as `core.task.Task` describes it.

A file offers `load(source, options) -> Task`, the task on the data that `source` names, and `NAMES` where its name is no module's.
"""

from __future__ import annotations

from types import ModuleType

from ltcompile import registry
from ltcompile.tasks.classification import Classification

__all__ = ["Classification", "load", "names"]


def names() -> list[str]:
    """The tasks there are."""
    return sorted(registry.names(__name__))


def load(name: str) -> ModuleType:
    """The file of the task `name`. Raises UnknownName."""
    return registry.load(__name__, "task", name)
