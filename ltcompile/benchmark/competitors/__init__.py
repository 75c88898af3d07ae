"""Networks by the engine and by all runtimes that could run them instead, in turns on one device, with answers checked first.

result = run([Network("small", small, images)], [Case("small", 64)], device="cpu")
write(result, "competitors.json")           # and competitors.md, layers.html
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ltcompile.benchmark.competitors.cases import Case, run
from ltcompile.benchmark.competitors.competitor import ENGINE, Network
from ltcompile.benchmark.competitors.entries import competitors
from ltcompile.benchmark.competitors.picture import page
from ltcompile.benchmark.competitors.result import Check, CompetitorsResult
from ltcompile.benchmark.competitors.tables import case_table, markdown
from ltcompile.paths import write_json, write_text

__all__ = ["ENGINE", "Case", "Check", "CompetitorsResult", "Network", "case_table", "competitors", "markdown", "run", "write"]


def write(result: CompetitorsResult, path: str | Path, picture: str | Path | None = None) -> None:
    """The result as JSON at `path`, as Markdown next to it, and its layers as a page, by default layers.html there.

    Where Plotly is not installed there is no page. Raises InvalidFile.
    """
    path = Path(path)
    write_json(path, result.to_json())
    write_text(path.with_suffix(".md"), markdown(result))
    with contextlib.suppress(ImportError):
        write_text(picture or path.with_name("layers.html"), page(result))
