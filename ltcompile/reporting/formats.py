"""The table of formats on a page: what `bench --formats` wrote next to the other results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltcompile.core.records import FormatRow
from ltcompile.core.result_file import read_result
from ltcompile.reporting.inputs import Provenance


@dataclass(frozen=True)
class Formats:
    """The rows of formats.json; `metric` is "" and `reference` None where no data was there."""

    batch: int
    metric: str
    reference: float | None
    max_drop: float | None
    dropped: list[str]
    rows: list[FormatRow]
    busy_share: float | None
    provenance: Provenance
    test_images: int | None = None  # on which the metric was measured
    ticket_checksum: str | None = None  # of a network without a ticket, and in tables by versions that did not record it


def read_formats(path: Path) -> Formats | None:
    """The table in `path`; None where there is no such file. Raises InvalidFile where it is damaged."""
    if not path.is_file():
        return None
    found: Formats = read_result(path, {"formats": Formats}, "`ltcompile bench --formats`")
    return found


def formats(found: Formats | None) -> dict[str, Any] | None:
    """The figures of the table; of each row also whether it loses more of the metric than was allowed."""
    if found is None:
        return None
    rows = [{**asdict(row), "dropped": row.title in found.dropped} for row in found.rows]
    return {**asdict(found), "rows": rows}
