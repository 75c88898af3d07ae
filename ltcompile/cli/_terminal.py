"""What files say, on a terminal: text, and neither the terminal's commands nor rich's markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ltcompile.core.fields import UNWRITABLE


def printable(text: str) -> str:
    """`text` with what a terminal would obey written out."""
    return UNWRITABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def show_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows of texts under the names of their columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    Console(markup=False, emoji=False, highlight=False).print(table)
