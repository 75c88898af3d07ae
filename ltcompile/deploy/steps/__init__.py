"""The steps of `shrink`, one file each: from one `Pruned` to the next, with a check and lines of the record.

A step offers `ORDER`, its place among the others, and `run(pruned, job) -> (Pruned, lines)`: the network after it, and what
OUTPUT.json records it. A step that has nothing to do returns what it was given. Optional are `check(job)`, which refuses settings before
anything runs, and `summary(record)`, the lines that the command prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ltcompile import registry
from ltcompile.deploy.job import ShrinkJob
from ltcompile.pruned import Pruned

ERRORS = ("equality_error",)  # of which the record holds the largest that a step found


def steps() -> list[ModuleType]:
    """All steps in their order."""
    return sorted(registry.load_all(__name__), key=lambda step: int(step.ORDER))


def run_all(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The network after all steps, and their lines."""
    record: dict[str, Any] = {}
    for step in steps():
        pruned, lines = step.run(pruned, job)
        record |= {key: max(value, record[key]) if key in ERRORS and record.get(key) is not None else value for key, value in lines.items()}
    return pruned, record


def check_all(job: ShrinkJob) -> None:
    """Raises InvalidSetting if a step cannot do what is requested."""
    for step in steps():
        if hasattr(step, "check"):
            step.check(job)


def summary(record: Mapping[str, Any]) -> list[str]:
    """The lines by which the steps summarise a record."""
    return [line for step in steps() if hasattr(step, "summary") for line in step.summary(record)]
