"""The table of formats on a page: what `bench --formats` wrote next to the other results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltcompile.core.fields import SchemaError, from_json
from ltcompile.core.records import FormatRow
from ltcompile.errors import InvalidFile
from ltcompile.paths import read_json
from ltcompile.reporting.inputs import FORMAT, Provenance

WHAT = "result of `ltcompile bench --formats` (run that again)"


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
    value = read_json(path, WHAT)
    try:
        if not isinstance(value, Mapping) or (value.get("kind"), value.get("format")) != ("formats", FORMAT):
            raise SchemaError(f'it does not say "kind": "formats" and "format": {FORMAT}')
        found: Formats = from_json(value, Formats)
        return found
    except (SchemaError, RecursionError) as error:
        raise InvalidFile(f"{path} cannot be read as a {WHAT}: {error}") from error


def formats(found: Formats | None) -> dict[str, Any] | None:
    """The figures of the table; of each row also whether it loses more of the metric than was allowed."""
    if found is None:
        return None
    rows = [{**asdict(row), "dropped": row.title in found.dropped} for row in found.rows]
    return {**asdict(found), "rows": rows}
