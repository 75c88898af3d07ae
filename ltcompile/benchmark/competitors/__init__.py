"""The race: networks by the engine and by everyone else who could run them, side by side on one device, answers checked first.

result = run([Network("small", small, images)], [Heat("small", 64)], device="cpu")
write(result, "race.json")                  # and race.md, layers.html
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from ltcompile.benchmark.competitors.entrant import ENGINE, Network
from ltcompile.benchmark.competitors.picture import page
from ltcompile.benchmark.competitors.race import Heat, entrants, run
from ltcompile.benchmark.competitors.result import Check, RaceResult
from ltcompile.benchmark.competitors.tables import heat, markdown
from ltcompile.paths import write_json, write_text

__all__ = ["ENGINE", "Check", "Heat", "Network", "RaceResult", "entrants", "heat", "markdown", "run", "write"]


def write(result: RaceResult, path: str | Path, picture: str | Path | None = None) -> None:
    """The race as JSON at `path`, as Markdown next to it, and its layers as a page, by default layers.html there.

    Where Plotly is not installed there is no page. Raises BadFile.
    """
    path = Path(path)
    write_json(path, result.to_json())
    write_text(path.with_suffix(".md"), markdown(result))
    with contextlib.suppress(ImportError):
        write_text(picture or path.with_name("layers.html"), page(result))
