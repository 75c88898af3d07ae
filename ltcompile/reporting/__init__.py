"""One page about a run or a study: results, their uncertainty, and how they were checked."""

from __future__ import annotations

from pathlib import Path

from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import FILE
from ltcompile.reporting import page, study

__all__ = ["report"]


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the page on the folder of a run (`page.report`) or of a study (`study.report`). Raises InvalidFile."""
    is_study = (Path(run) / FILE).is_file() and not RunFolder(run).summary.exists()  # a run's folder may hold a file of that name
    return (study.report if is_study else page.report)(run, output)
