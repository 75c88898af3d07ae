"""ltcompile lower: what becomes of a ticket's network on its way to an engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ltcompile.lower.lower import Lowered

EPILOG = "Examples:  ltcompile lower ticket.pt  ·  ltcompile lower ticket.pt --explain  ·  ltcompile lower ticket.pt --batch 64 --json"


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Fold and fuse a ticket's network; say why.")(lower)


def lower(
    ticket: Path = typer.Argument(..., help="ticket.pt of a search."),
    batch: int = typer.Option(1, min=1, help="Images in a batch."),
    explain: bool = typer.Option(False, "--explain", help="Print what became of every operation, and why."),
    model: str | None = typer.Option(None, help="Names your own package.module:factory again, where the ticket needs it."),
    as_json: bool = typer.Option(False, "--json", help="Print the operations, what became of them and the errors as JSON."),
) -> None:
    """Turn a ticket's small network into a program of fused operations, compared with the network after every step."""
    import torch

    from ltcompile.core.ticket import Ticket
    from ltcompile.lower.lower import lower as run
    from ltcompile.shrinking import check_ticket_fits, dense_network, small_network

    loaded = Ticket.load(ticket)
    check_ticket_fits(loaded, model)
    example = torch.randn(batch, *loaded.data["shape"], generator=torch.Generator().manual_seed(0))
    done = run(small_network(loaded, dense_network(loaded)), example)
    rows: list[dict[str, Any]] = [
        {"node": n.name, "layer": n.layer, "operation": n.target, "shape": list(n.shape), "became": done.told[n.name]}
        for n in done.captured
    ]
    if as_json:
        typer.echo(
            json.dumps({"nodes": rows, "left": len(done.program.nodes), "batch_norms": dict(done.batch_norms), "errors": done.errors})
        )
        return
    if explain:
        _print(rows, done)
    left = Counter(node.target for node in done.program.nodes)
    typer.echo(
        f"{len(rows)} operations → {len(done.program.nodes)}: {', '.join(f'{count} {target}' for target, count in left.most_common())}"
    )
    typer.echo(f"every step agrees with the network to {max(done.errors.values()):.1e} of the largest output")


def _print(rows: list[dict[str, Any]], done: Lowered) -> None:
    from rich.console import Console
    from rich.table import Table

    norms = Table("batch norm", "what became of it")
    for name, told in done.batch_norms.items():
        norms.add_row(name, told)
    table = Table("layer", "operation", "output", "what became of it")
    for row in rows:
        table.add_row(str(row["layer"]), str(row["operation"]), str(row["shape"]), str(row["became"]))
    console = Console()
    if done.batch_norms:
        console.print(norms)
    console.print(table)
