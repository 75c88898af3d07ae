"""ltcompile lower: lower a ticket's network to the program that an engine runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._options import MOST_IMAGES

if TYPE_CHECKING:
    from ltcompile.lower.lower import LaidOut, Lowered

SUMMARY = "Fold and fuse a ticket's network; say why."
EPILOG = "Examples:  ltcompile lower ticket.pt  ·  ltcompile lower ticket.pt --explain --precision fp16  ·  ltcompile lower ticket.pt --batch 64 --json"


def lower(
    ticket: Path = typer.Argument(..., help="ticket.pt of a search."),
    batch: int = typer.Option(1, min=1, max=MOST_IMAGES, help="Images in a batch."),
    precision: str = typer.Option("fp32", help="What our kernels would compute in: fp32, fp16 or bf16."),
    explain: bool = typer.Option(False, "--explain", help="Print what became of every operation, and why."),
    model: str | None = typer.Option(None, help="Names your own package.module:factory again, where the ticket needs it."),
    as_json: bool = typer.Option(False, "--json", help="Print the operations, what became of them and the errors as JSON."),
) -> None:
    """Turn a ticket's small network into a program of fused operations, compared with the network after every step."""
    import torch

    from ltcompile.errors import InvalidSetting
    from ltcompile.lower.lower import lower as run
    from ltcompile.lower.lower import to_layout
    from ltcompile.lower.passes.precision import DTYPES
    from ltcompile.pruned import compact, pruned_of

    if precision not in DTYPES:
        raise InvalidSetting(f"--precision is one of {', '.join(DTYPES)}, not {precision!r}")
    pruned = compact(pruned_of(ticket, model))
    example = torch.randn(batch, *pruned.example.shape[1:], generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]  # one tensor
    done = run(pruned.small, example)
    placed = to_layout(done.program, example, precision)
    rows: list[dict[str, Any]] = [
        {"node": n.name, "layer": n.layer, "operation": n.target, "shape": list(n.shape), "became": _became(n.name, done, placed)}
        for n in done.captured
    ]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "nodes": rows,
                    "left": len(done.program.nodes),
                    "batch_norms": dict(done.batch_norms),
                    "errors": {**done.errors, "place": placed.error},
                }
            )
        )
        return
    if explain:
        _print(rows, done)
    left = Counter(node.target for node in done.program.nodes)
    typer.echo(
        f"{len(rows)} operations → {len(done.program.nodes)}: {', '.join(f'{count} {target}' for target, count in left.most_common())}"
    )
    typer.echo(f"every step agrees with the network to {max(done.errors.values()):.1e} of the largest output")
    ours = sum(node.target.startswith("kernel.") for node in placed.program.nodes)
    typer.echo(
        f"on a GPU in {precision}: {ours} of our kernels, {len(placed.program.nodes) - ours} other operations; "
        f"agrees with fp32 to {placed.error:.1e}"
    )


def _became(name: str, done: Lowered, placed: LaidOut) -> str:
    """What the passes did with an operation, and where it would run on a GPU if it is still there."""
    where = placed.outcomes.get(name)
    return done.outcomes[name] if where is None else f"{done.outcomes[name]}; on a GPU: {where}"


def _print(rows: list[dict[str, Any]], done: Lowered) -> None:
    from ltcompile.cli._terminal import show_table

    if done.batch_norms:
        show_table(("batch norm", "what became of it"), done.batch_norms.items())
    keys = ("layer", "operation", "shape", "became")
    show_table(("layer", "operation", "output", "what became of it"), ([row[key] for key in keys] for row in rows))
