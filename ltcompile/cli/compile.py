"""ltcompile compile: an engine for this machine, by measurement."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from ltcompile.cli._network import EXAMPLE, MODEL, PLAN, WEIGHTS, named_pruned
from ltcompile.cli._options import MOST_IMAGES

if TYPE_CHECKING:
    from ltcompile.engine import Engine
    from ltcompile.graph import Example
    from ltcompile.pruned import Pruned

SUMMARY = "Make an engine of a network, the fastest here."
EPILOG = (
    "Examples:  ltcompile compile ticket.pt -o small.engine  ·  ltcompile compile ticket.pt --precision int8 --batch 1  ·  "
    "ltcompile compile small.engine --retune -o here.engine  ·  "
    "ltcompile compile --model my.net:build --weights trained.pth --plan plan.json --example 1x3x64x64"
)
IMAGES = 256  # as many training images as outputs are compared on, and int8's ranges taken from


def compile(
    target: Optional[Path] = typer.Argument(
        None, help="ticket.pt of a search; or an engine, with --retune; without one, --model names the network."
    ),
    output: Path = typer.Option(Path("small.engine"), "-o", "--output", help="The engine file to write."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    batch: list[int] = typer.Option([1, 8, 64], min=1, max=MOST_IMAGES, help="Batch sizes to be ready for; repeat for several."),
    precision: str | None = typer.Option(
        None, help="fp32, bf16 or int8 on a CPU; fp16, bf16 or fp32 on a GPU.", show_default="fp32, GPU fp16"
    ),
    data: str | None = typer.Option(
        None,
        help="Training images to compare outputs on, the ticket's own data by default; or a file of inputs by name (.safetensors, .pt).",
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    model: str | None = MODEL,
    weights: Optional[Path] = WEIGHTS,
    plan: Optional[Path] = PLAN,
    example: str | None = EXAMPLE,
    max_drop: float = typer.Option(5.0, help="With int8: the per cent of images that may change their class against fp32."),
    tune_seconds: float = typer.Option(30.0, min=0.0, help="How long to measure tiles of generated C++; 0 leaves them to a model."),
    retune: bool = typer.Option(False, "--retune", help="Measure an engine of another machine again on this one."),
    explain: bool = typer.Option(False, "--explain", help="Print the time of every runtime, the runtime of each layer, and why."),
    as_json: bool = typer.Option(False, "--json", help="Print the decisions as JSON."),
) -> None:
    """Compile a small network for this machine: measures the runtimes and takes the fastest, for each batch size."""
    import ltcompile as lt
    from ltcompile.paths import check_writable

    check_writable(output)
    pruned = None if retune else named_pruned(target, model, weights, plan, example)
    with _progress(as_json) as report:
        if pruned is None:
            engine = lt.load_engine(str(target), retune=True, tune_seconds=tune_seconds, on_progress=report)
        else:
            inputs = _inputs(pruned, data, data_root, precision)
            settings: dict[str, Any] = {"max_drop": max_drop, "tune_seconds": tune_seconds}
            engine = lt.compile(pruned, inputs, device=device, batch=batch, precision=precision, **settings, on_progress=report)
    engine.save(output)
    if as_json:
        typer.echo(json.dumps([decision.to_json() for decision in engine.decisions.values()]))
        return
    _print(engine, explain)
    call = ", ".join(engine.signature.names)
    typer.echo(f'wrote {output} ({output.stat().st_size / 1e6:.2f} MB); use it: lt.load_engine("{output}")({call})')


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows the progress in one line on the terminal."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    with console.status("lowering the network") as status:
        yield status.update


def _inputs(pruned: Pruned, data: str | None, root: Path, precision: str | None) -> Example:
    """The inputs of a file; or of a ticket for classification, training images, and noise where its data is not here, which int8 does not do with."""
    import torch

    from ltcompile.data import load_like
    from ltcompile.errors import InvalidSetting, LtcompileError
    from ltcompile.graph.examples import TENSORS, read_inputs
    from ltcompile.lower.answers import probe

    if data is not None and data.endswith(TENSORS):
        return read_inputs(Path(data))
    if (described := pruned.classified) is None:
        if data is not None:
            raise InvalidSetting(f"--data takes a file of inputs ({', '.join(TENSORS)}) for a network of your own, not {data!r}")
        return pruned.example
    try:
        dataset = load_like(described, data or described["name"], root)
    except LtcompileError:
        if data is not None or precision == "int8":
            raise
        return probe(pruned.small, pruned.example, IMAGES).example
    images, _ = next(iter(dataset.train.batches(IMAGES, torch.device("cpu"), None, 0)))
    return images.contiguous()


def _print(engine: Engine, explain: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("batch", "run by", "ms", "error", "the others, ms")
    for decision in engine.decisions.values():
        others = ", ".join(f"{who} {ms:.3g}" for who, ms in decision.ms.items() if who != decision.by)
        mine = decision.ms[decision.by]
        by = f"{decision.by} (tie with {decision.runner_up})" if decision.tie else decision.by
        table.add_row(str(decision.batch), by, f"{mine:.3g}", f"{decision.max_error:.0e}", others)
    console.print(table)
    if explain:
        for row in _reasons(engine):
            console.print(row)


def _reasons(engine: Engine) -> list[Any]:
    """Who was kept out and why, and who runs each layer."""
    rows = [f"batch {decision.batch}: not {who}: {why}" for decision in engine.decisions.values() for who, why in decision.refused.items()]
    return rows + [
        f"batch {decision.batch}: {layer}: {who}" for decision in engine.decisions.values() for layer, who in decision.layers.items()
    ]
