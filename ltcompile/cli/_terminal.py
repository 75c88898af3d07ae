"""What is shown on a terminal: tables, progress, and what files say as text, with neither the terminal's commands nor rich's markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ltcompile.core.fields import UNWRITABLE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ltcompile.graph import Size


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


def progress(console: Console, unit: str, disable: bool = False) -> Progress:
    """A description, a bar, how many `unit`s are done and of how many, the time taken and left; on a narrow terminal the bar gives way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    def whole() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(table_column=whole()),
        TextColumn(unit),
        TimeElapsedColumn(table_column=whole()),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole()),
        console=console,
        disable=disable,
    )


def sizes_line(before: Size, after: Size) -> str:
    """How large a network is before and after a cut."""
    return (
        f"params {before.params:,} → {after.params:,} ({before.params / after.params:.2f}x fewer)   "
        f"MACs {before.macs:,} → {after.macs:,} ({before.macs / after.macs:.2f}x fewer)"
    )
