"""ltcompile shrink: from a ticket to a verified, smaller file."""

from __future__ import annotations

import json
from pathlib import Path

import typer

EPILOG = "Examples:  ltcompile shrink ticket.pt -o small.onnx  ·  ltcompile shrink ticket.pt -o small.pt2 --precision fp16"


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Cut a ticket's network for real; export it.")(shrink)


def shrink(
    ticket: Path = typer.Argument(..., help="ticket.pt of a search."),
    output: Path = typer.Option(Path("small.onnx"), "-o", "--output", help="File to write: .onnx, .pt2 (torch.export) or .safetensors."),
    precision: str = typer.Option("fp32", help="fp32 or fp16 (inside; inputs and outputs stay fp32)."),
    calibrate: str | None = typer.Option(
        None, metavar="DATA", help="Take batch norm's statistics anew from the training images of digits, imagefolder:PATH, ..."
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    model: str | None = typer.Option(None, help="Names your own package.module:factory again, where the ticket needs it."),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Make a ticket's network physically small, prove it equal to the masked one, and export it."""
    from ltcompile.core.ticket import Ticket
    from ltcompile.data import load_like
    from ltcompile.paths import check_writable
    from ltcompile.shrinking import shrink as run

    check_writable(output)
    loaded = Ticket.load(ticket)
    dataset = load_like(loaded.data, calibrate, data_root) if calibrate else None
    done = run(loaded, output, precision=precision, model=model, calibrate=dataset)  # type: ignore[arg-type]
    record = done.record
    if as_json:
        typer.echo(json.dumps(dict(record)))
        return
    typer.echo(
        f"params {record['dense_params']:,} → {record['params']:,}   MACs {record['dense_macs']:,} → {record['macs']:,} "
        f"({record['dense_macs'] / record['macs']:.1f}x fewer)"
    )
    typer.echo(
        f"cut = masked to {record['equality_error']:.1e}, file = torch to {record['onnx_error']:.1e} (allowed {record['tolerance']:.0e}), "
        f"{record['folded_batch_norms']} batch norms folded"
    )
    typer.echo(f"wrote {done.path} ({record['bytes'] / 1e6:.2f} MB) in {record['seconds']:.1f} s; next: ltcompile bench {done.path}")
