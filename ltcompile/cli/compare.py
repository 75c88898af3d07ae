"""ltcompile compare: what tickets of one network have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ltcompile.benchmark.similarity import Similarity

SUMMARY = "Compare tickets of one network."
EPILOG = (
    "Examples:  ltcompile compare runs/l1/ticket.pt runs/random/ticket.pt  ·  ltcompile compare runs/*/ticket.pt --data cifar10 "
    "--data-root DIR  ·  ltcompile compare a.pt b.pt c.pt --json"
)


def compare(
    tickets: list[Path] = typer.Argument(..., help="Two or more files ticket.pt of searches for the same network."),
    data: str | None = typer.Option(
        None, help="Whose test images they answer: digits, cifar10, imagefolder:PATH, ...  [default: those that they were found on]"
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    model: str | None = typer.Option(None, help="Names your own package.module:factory again, where the tickets need it."),
    device: str | None = typer.Option(None, help="cpu or cuda; a GPU by default where there is one."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Compare tickets: Jaccard's distance of the weights that they keep, how often their answers agree, and their ensemble's accuracy."""
    from ltcompile.benchmark.similarity import similarity

    found = similarity(tickets, data=data, data_root=data_root, model=model, device=device)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    _print(found)


def _print(found: Similarity) -> None:
    from ltcompile.cli._terminal import printable, show_table

    number = {name: i for i, name in enumerate(dict.fromkeys(t.name for t in found.tickets), start=1)}
    typer.echo(printable(f"{found.model['name']} on {found.images:,} test images of {found.data}"))
    show_table(
        ("", "ticket", "level", "seed", "weights left", "accuracy"),
        ((number[t.name], t.name, t.level, t.seed, f"{t.weights_share:.2%}", f"{t.accuracy:.2%}") for t in found.tickets),
    )
    pairs = [f"{number[pair.first]}-{number[pair.second]}" for pair in found.pairs]
    show_table(
        ("pair", "distance", "answers alike"),
        ((name, f"{pair.distance:.3f}", f"{pair.agreement:.2%}") for name, pair in zip(pairs, found.pairs, strict=True)),
    )
    show_table(
        ("distance in", *pairs), ((layer, *(f"{pair.layers[layer]:.3f}" for pair in found.pairs)) for layer in found.pairs[0].layers)
    )
    typer.echo("distance: Jaccard's, 1 - kept by both / kept by either; 0 is the same mask")
    together = found.unanimous
    typer.echo(f"all answer alike {together.same:.2%}, all right {together.right:.2%}, none right {together.wrong:.2%}")
    best = max(found.tickets, key=lambda t: t.accuracy)
    typer.echo(f"ensemble {found.ensemble_accuracy:.2%} (mean of softmax outputs), the best alone {best.accuracy:.2%}")
