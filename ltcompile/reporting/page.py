"""Render the figures of a run as one page that needs only a browser, and write them as JSON next to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from ltcompile.core.pictures import Picture, read_pictures
from ltcompile.core.result_file import kind_of
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile
from ltcompile.paths import check_writable, write_json, write_text
from ltcompile.reporting import units
from ltcompile.reporting.collect import collect
from ltcompile.reporting.figures import figures


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run folder: one HTML file that works offline, and its figures as JSON next to it.

    Args:
        run: the folder that `ltcompile find` made; results of shrink, bench (with the table of formats) and sweep in it are included.
        output: the HTML file (default: report.html in `run`); the JSON has the same stem.

    Returns:
        The HTML file.

    Raises:
        InvalidFile: `run` is not a run folder, one of its files is damaged, or the report cannot be written there.
    """
    run = Path(run)
    page = Path(output) if output is not None else run / "report.html"
    found = collect(run)
    figures = figures_path(page)
    html = render(found, read_pictures(RunFolder(run).pictures))
    write_json(figures, found)
    write_text(page, html)
    return page


def figures_path(page: Path, expected: str = "report") -> Path:
    """Where the JSON goes: never over another kind of file, such as the run's own results."""
    figures = page.with_suffix(".json")
    check_page(page)
    check_writable(figures)
    if figures.exists() and kind_of(figures) != expected:
        raise InvalidFile(f"cannot write the report's figures to {figures}: that name is taken; choose another name for the report")
    return figures


def render(found: dict[str, Any], pictures: Sequence[Picture] = ()) -> str:
    """The page for what `collect` returned, with `pictures` of answers; everything in it that came from files is escaped."""
    return template("page.html.j2").render(
        r=found, metric=Metric(**found["metric"]), figures=figures(found), pictures=pictures, plotlyjs=get_plotlyjs()
    )


def check_page(page: Path) -> None:
    """Raises InvalidFile if `page` does not end in .html or .htm, or cannot be written."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise InvalidFile(f"cannot write the report to {page}: the name must end in .html")
    check_writable(page)


def template(name: str) -> jinja2.Template:
    """A page's template; it escapes everything, and has filters that format numbers."""
    files = jinja2.FunctionLoader(lambda file: resources.files(__package__).joinpath(file).read_text(encoding="utf-8"))
    made = jinja2.Environment(loader=files, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(units.FILTERS, plain=_plain)
    made.globals["sizes"] = units.SIZES
    return made.get_template(name)


def _plain(value: Any) -> str:
    """A setting as text: strings as they are, None as "none", the rest as JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
