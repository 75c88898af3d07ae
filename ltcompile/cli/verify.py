"""ltcompile verify: are the claims true on this machine?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ltcompile.verifying import Check, Value

EPILOG = (
    "Examples:  ltcompile verify small.onnx --claims report.json  ·  "
    "ltcompile verify small.onnx --claims report.json --dense dense.onnx --on cpu:onnxruntime:b1:fp32 -o verified.json"
)
COLOURS = {"confirmed": "green", "not confirmed": "red", "not comparable": "yellow"}


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Repeat a report's claims on this machine.")(verify)


def verify(
    file: Path = typer.Argument(..., help="An ONNX file of `ltcompile shrink`."),
    claims: Path | None = typer.Option(None, help="A report.json or bench.json; the one beside the file by default."),
    dense: Path | None = typer.Option(
        None,
        help="The network that it was cut from, as `ltcompile bench --write-dense` writes it: both race each other, and speedups are compared.",
    ),
    on: str | None = typer.Option(
        None, metavar="TARGET", help="Check this deployment alone, as in cpu:onnxruntime:b1:fp32 (device:backend:bN:precision)."
    ),
    data: Path | None = typer.Option(
        None, help="Test images: a .npz file with images (N, C, H, W), float32 as the network takes them, and labels (N,)."
    ),
    seconds: float = typer.Option(2.0, min=0, max=3600, help="Time to spend on each network at each batch size."),
    output: Path | None = typer.Option(None, "-o", "--output", help="Where to write the result, as JSON."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Check what was claimed of a network where it is deployed; onnxruntime and numpy are enough there.

    Ends with 0 if all claims that can be repeated here are confirmed, with 1 if one is not, with 2 if none can be, or the files do not
    belong together. Without --dense, latencies are compared, on such a machine as they were measured on; without --data, no accuracy is.
    """
    from ltcompile.cli._timing_options import warn_if_busy
    from ltcompile.core.deployment import Deployment
    from ltcompile.errors import Unavailable
    from ltcompile.verifying import verify as run

    target = None if on is None else Deployment.parse(on)
    verified = run(file, claims, dense=dense, on=target, data=data, seconds=seconds, output=output)
    if as_json:
        typer.echo(json.dumps(verified.to_json()))
    else:
        _print(verified.checks)
    warn_if_busy(verified.busy_share)
    if verified.outcome == "not comparable":
        raise Unavailable(
            f"nothing that {verified.claims} claims can be repeated here; name --dense (`ltcompile bench {file} --write-dense dense.onnx` "
            "writes one, where torch is) or --data, or run it where it was made"
        )
    raise typer.Exit(1 if verified.outcome == "not confirmed" else 0)


def _print(checks: Sequence[Check]) -> None:
    from ltcompile.cli._terminal import show_table

    show_table(
        ("claim", "claimed", "found", "verdict", "why"),
        (
            (_claim(check), _text(check.what, check.claimed), _text(check.what, check.found), check.verdict, check.reason)
            for check in checks
        ),
    )
    for verdict, colour in COLOURS.items():
        if count := sum(check.verdict == verdict for check in checks):
            typer.secho(f"{count} {verdict}", fg=colour)


def _claim(check: Check) -> str:
    """With the deployment in words that a narrow table can break."""
    return check.claim if check.on is None else f"{check.claim}, {check.on.replace(':', ' ')}"


def _text(what: str, value: Value | None) -> str:
    if value is None:
        return ""
    form = {"size": "{:,.0f} bytes", "accuracy": "{:.2%}", "speedup": "{:.2f}x", "latency": "{:.3f} ms"}[what]
    interval = "" if value.low is None or value.high is None else f" ({form.format(value.low)} to {form.format(value.high)})"
    return form.format(value.value) + interval
