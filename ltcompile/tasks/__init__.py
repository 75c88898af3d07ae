"""What networks are for: one task a file, as `core.task.Task` describes it.

A file offers `task(data) -> Task` for the data that it takes, and `trainer(execution) -> Trainer`, which trains for it.
"""

from __future__ import annotations

from types import ModuleType

from ltcompile import registry
from ltcompile.tasks.classification import Classification, SgdTrainer

__all__ = ["Classification", "SgdTrainer", "load", "names"]


def names() -> list[str]:
    """The tasks there are."""
    return list(registry.modules(__name__))


def load(name: str) -> ModuleType:
    """The task `name`. Raises UnknownName."""
    return registry.load(__name__, "task", name)
