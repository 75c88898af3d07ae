"""What networks are for: one task a file, as `core.task.Task` describes it.

A file offers `TASK`, which makes a task of a `Dataset`; `MODEL` and `DATA`, the names of a network and of data to begin with; `NAMES` where its
name is no module's; and where it has data of its own `data(source, root, options) -> Dataset or None`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ltcompile import registry
from ltcompile.core.task import Task
from ltcompile.data import DatasetOptions, load_data
from ltcompile.tasks.classification import Classification

__all__ = ["Classification", "load", "load_task", "names"]


def names() -> list[str]:
    """The tasks there are."""
    return sorted(registry.names(__name__))


def load(name: str) -> ModuleType:
    """The file of the task `name`. Raises UnknownName."""
    return registry.load(__name__, "task", name)


def load_task(name: str, source: str, root: Path, options: DatasetOptions) -> Task:
    """The task `name` on the data that `source` names.

    Raises as `load_data`, UnknownName for another task, and InvalidData where the data is for another one.
    """
    module, size = load(name), options.image_size
    found = module.data(source, root, options) if hasattr(module, "data") else None
    if found is None:
        wanted = {"preprocessing": options.preprocessing, "strict": options.strict, "skip_damaged": options.skip_damaged}
        found = load_data(source, root, size, options.val_share, options.download, **wanted)  # type: ignore[arg-type]
    task: Task = module.TASK(found)
    return task
