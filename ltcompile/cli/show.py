"""ltcompile show: what is in a ticket."""

from __future__ import annotations

import json
from pathlib import Path

import typer

SUMMARY = "Print what a ticket holds."
EPILOG = "Examples:  ltcompile show ticket.pt  ·  ltcompile show ticket.pt --json"


def show(
    ticket: Path = typer.Argument(..., help="ticket.pt of a search."),
    as_json: bool = typer.Option(False, "--json", help="Everything but the weights, as JSON."),
) -> None:
    """Print what a ticket holds: model, data, widths, accuracy, verdict, provenance. Nothing in it is executed."""
    from ltcompile.cli._terminal import show_table
    from ltcompile.core.description import Description
    from ltcompile.core.ticket import Ticket

    loaded = Ticket.load(ticket)
    if as_json:
        typer.echo(json.dumps(loaded.to_json()))
        return
    row, dense = loaded.row, loaded.dense_row
    data = Description.from_json(loaded.data)
    outputs = f"{data.classes} classes" if data.classes else f"{data.out_channels} channels"
    typer.echo(
        f"{loaded.model['name']} for {data.task} of {data.name} ({outputs}, images {data.shape}), level {loaded.level}, seed {loaded.seed}"
    )
    for what, before, after in (
        ("filters", dense.filters, row.filters),
        ("params", dense.params, row.params),
        ("MACs", dense.macs, row.macs),
    ):
        typer.echo(f"{what:<8} {before:>13,} → {after:>11,}  ({1 - after / before:.1%} removed)")
    value = loaded.metric.format
    test = "" if row.test_score is None else f", test {value(row.test_score)}"
    typer.echo(f"{loaded.metric.name:<8} validation {value(row.val_score)}{test} (dense: validation {value(dense.val_score)})")
    show_table(
        ("layer", "before", "after", "left alone because"),
        ((name, *widths, loaded.plan.frozen.get(name, "")) for name, widths in loaded.plan.widths.items()),
    )
    for line in loaded.verdict.summary:
        typer.echo(line)
    for line in (
        f"decided between trainings: {'yes' if loaded.verdict.decided else 'no'}",
        f"rule: {loaded.verdict.rule}",
        f"made: {loaded.provenance.get('date')} by {loaded.provenance.get('command')}",
        f"checksum: {loaded.checksum}",
    ):
        typer.echo(line)
