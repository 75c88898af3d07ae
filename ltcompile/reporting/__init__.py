"""One page about a run, a study or a network: results, their uncertainty, and how they were checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import FILE
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidSetting
from ltcompile.paths import write_json, write_text
from ltcompile.reporting import own, page, study

if TYPE_CHECKING:
    from ltcompile.pruned import Pruned, Result

__all__ = ["report"]


def report(run: str | Path | Pruned | Result, output: str | Path | None = None, *, bench: str | Path | None = None) -> Path:
    """Write the page on a run, a study or a network, and its figures as JSON next to it; the page's path.

    Args:
        run: the folder of a run of `find` (`page.report`), of a study (`study.report`) or of a search in one's own loop, with the results of
            shrink, bench (with the table of formats) and sweep in it; or a `Pruned` or what a `lt.Search` found, whose speedup is measured.
        output: the page; by default report.html in the folder, a study's study.html. A `Pruned` has no folder, and needs it.
        bench: of a `Pruned`, the bench.json of `lt.bench(pruned, output=)`; by default it is timed now, at batch 1.

    Raises:
        InvalidFile: a file is damaged or of something else, or the page cannot be written. InvalidSetting: a `Pruned` comes without `output`.
    """
    if not isinstance(run, str | Path):
        if output is None:
            raise InvalidSetting('output= names the page of a Pruned, as in output="report.html"')
        from ltcompile.pruned import pruned_of

        figures = own_page(Path(output))
        return _write_own(own.of_pruned(pruned_of(run), bench), Path(output), figures)
    if bench is not None:
        raise InvalidSetting("bench= belongs to a Pruned; a folder holds its bench.json")
    if own.is_own(folder := Path(run)):
        path = Path(output) if output is not None else folder / "report.html"
        return _write_own(own.collect(folder), path, own_page(path))
    is_study = (folder / FILE).is_file() and not RunFolder(run).summary.exists()  # a run's folder may hold a file of that name
    return (study.report if is_study else page.report)(run, output)


def own_page(path: Path) -> Path:
    """Where the figures of a page go. Raises InvalidFile where that cannot be written."""
    return page.figures_path(path, "own report")


def _write_own(found: own.Figures, path: Path, figures: Path) -> Path:
    metric = Metric(**found["metric"]) if found["metric"] else Metric()
    html = page.template("own.html.j2").render(r=found, metric=metric, sentence=own.sentence(found))
    write_json(figures, found)
    write_text(path, html)
    return path
