"""The options for arms in processes of their own, which `find`, `sweep`, `study` and `worker` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import typer

from ltcompile.errors import InvalidSetting

WORKERS = "Several processes"
JOBS: Any = typer.Option(
    None, min=1, max=10_000, help="Train so many arms at a time, in processes of their own.", rich_help_panel=WORKERS, show_default=False
)
EXECUTOR: Any = typer.Option("local", help="With --jobs: what starts these processes: local, slurm or ray.", rich_help_panel=WORKERS)
EXECUTOR_OPTION: Any = typer.Option(
    [],
    metavar="KEY=VALUE",
    help="A setting of the executor, as in slurm_partition=gpu or address=HOST:6379. Repeatable.",
    rich_help_panel=WORKERS,
)
RETRIES: Any = typer.Option(2, min=0, max=100, help="How often an arm that failed is tried again.", rich_help_panel=WORKERS)


@dataclass(frozen=True)
class Workers:
    """What `find` is called with for --jobs."""

    jobs: int | None = None
    executor: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    retries: int = 2

    @classmethod
    def of(cls, jobs: int | None, executor: str, options: list[str], retries: int) -> Workers:
        """Raises InvalidSetting where an option is not KEY=VALUE, or there are no jobs."""
        pairs = [option.partition("=") for option in options]
        if bad := [option for option, (key, sign, _) in zip(options, pairs, strict=True) if not (key and sign)]:
            raise InvalidSetting(f"--executor-option takes KEY=VALUE, not {bad[0]!r}")
        if jobs is None and (executor != "local" or options):
            raise InvalidSetting(f"--executor {executor} starts the processes of --jobs; say how many")
        return cls(jobs, executor, {key: value for key, _, value in pairs}, retries)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `lt.find`."""
        return {"jobs": self.jobs, "executor": self.executor, "executor_options": self.options, "retries": self.retries}
