"""A search under progress bars, which `find` and `sweep` share, and what they call it with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile import ranks

if TYPE_CHECKING:
    from ltcompile.cli._options import Timed
    from ltcompile.cli._stop_signal import StopSignal
    from ltcompile.cli._workers import Workers
    from ltcompile.core.recipe import Recipe
    from ltcompile.core.task import Task
    from ltcompile.data import Dataset
    from ltcompile.search import SearchConfig, SearchResult


def virtual_ranks(folder: Path, resume: bool, recipe: Recipe) -> int:
    """The shards of a batch where they are not set: those of the run to resume, or one for each process. Raises InvalidFile."""
    from ltcompile.core.run_folder import RunFolder

    run = RunFolder(folder)
    if not (resume and run.begun):
        return recipe.virtual_ranks * ranks.world()
    found = run.read_settings().get("recipe")
    return int(found.get("virtual_ranks", 1)) if isinstance(found, dict) else 1


def profiled_model(model: str, dataset: Dataset | Task) -> dict[str, Any]:
    """What a profile calls the network that `model` builds for this data."""
    return {"name": model, "arguments": dataset.description.arguments}


def run_search(
    model: str,
    data: Dataset | Task,
    config: SearchConfig,
    recipe: Recipe,
    folder: Path,
    time: Timed | None,
    stopped: StopSignal,
    *,
    workers: Workers,
    tensorboard: bool = False,
    quiet: bool = False,
    **options: Any,
) -> SearchResult:
    """Run a search under progress bars; `options` are more of `lt.find`. Raises typer.Exit where a signal stops it."""
    from ltcompile.cli.progress import Bars, Screen
    from ltcompile.core.run_folder import RunFolder
    from ltcompile.core.task import ACCURACY
    from ltcompile.search import find as search

    with Screen(quiet or ranks.follows()) as screen, Bars(config, recipe, screen, getattr(data, "metric", ACCURACY)) as bars:
        if tensorboard and not ranks.follows():
            bars.log_to_tensorboard(folder)
        timing: dict[str, Any] = {"profile": time.profile, "measured": time.measured} if time else {}
        try:
            return search(model, data, config, recipe=recipe, folder=folder, listener=bars, **timing, **workers.settings, **options)
        except KeyboardInterrupt:
            raise stopped.exit(RunFolder(folder).begun) from None
