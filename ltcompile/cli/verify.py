"""ltcompile verify: repeat the claims of a report on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ltcompile.verification import Check, Value

SUMMARY = "Repeat a report's claims on this machine."
EPILOG = (
    "Examples:  ltcompile verify small.onnx --claims report.json  ·  "
    "ltcompile verify small.onnx --claims report.json --dense dense.onnx --on cpu:onnxruntime:b1:fp32 -o verified.json"
)
EXIT_CODES = {"confirmed": 0, "not confirmed": 1, "not comparable": 3}
NOTHING = "no claim on accuracy or speed was decided."
NOT_REQUIRED = "not all that is required was decided."
COLOURS = {"confirmed": "green", "not confirmed": "red", "not comparable": "yellow"}


def verify(
    file: Path = typer.Argument(..., help="An ONNX file of `ltcompile shrink`."),
    claims: Path | None = typer.Option(None, help="A report.json or bench.json; the one next to the file by default."),
    dense: Path | None = typer.Option(
        None,
        help="The network that it was cut from, as `ltcompile bench --write-dense` writes it: both run in turns, and speedups are compared.",
    ),
    on: str | None = typer.Option(
        None, metavar="TARGET", help="Check this deployment alone, as in cpu:onnxruntime:b1:fp32 (device:runtime:bN:precision)."
    ),
    data: Path | None = typer.Option(
        None, help="Test images: a .npz file with images (N, C, H, W), float32 as the network takes them, and labels (N,)."
    ),
    require: str | None = typer.Option(
        None,
        metavar="KINDS",
        help="Kinds of claims that must be confirmed, for CI: answers, accuracy, latency, speedup, with commas between them.",
    ),
    runtime: str = typer.Option("onnxruntime", help="What runs the file: onnxruntime, openvino or tract (pip install 'ltcompile[tract]')."),
    seconds: float = typer.Option(6.0, min=0, max=3600, help="Time to spend on each network at each batch size."),
    output: Path | None = typer.Option(None, "-o", "--output", help="Where to write the result, as JSON."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Check the claims about a network on the machine that runs it; onnxruntime and numpy are enough there.

    Ends with 0 if claims were repeated and confirmed, with 1 if one is not confirmed, with 2 if the files do not belong together or a
    setting is wrong, and with 3 if nothing could be repeated, or not what --require names. Size, hash and recorded answers alone confirm
    nothing. Latencies are compared where --dense is not given, on such a machine as they were measured on; accuracy takes --data.

    By one-sided tests at 95 %, a speedup may be less than 8 % below its claim, a latency 6 % above it, an accuracy 2 points below it, on at
    least 100 images.
    """
    from ltcompile.cli._timing_options import warn_if_busy
    from ltcompile.core.deployment import Deployment
    from ltcompile.verification import verify as run

    target = None if on is None else Deployment.parse(on)
    kinds = [] if require is None else [kind.strip() for kind in require.split(",")]
    verified = run(file, claims, dense=dense, on=target, data=data, require=kinds, seconds=seconds, output=output, runtime=runtime)
    if as_json:
        typer.echo(json.dumps(verified.to_json()))
    else:
        _print(verified.checks)
    warn_if_busy(verified.busy_share)
    if verified.missing:
        typer.secho(f"required, and not confirmed: {', '.join(verified.missing)}", fg="red", err=True)
    if verified.outcome == "not comparable":
        absent = {
            f"--dense repeats speedups (`ltcompile bench {file} --write-dense dense.onnx` writes it; that needs torch)": dense,
            "--data repeats accuracies": data,
        }
        advice = ["The table gives the reason for each claim", *(text for text, given in absent.items() if given is None)]
        typer.secho(f"not comparable: {NOT_REQUIRED if verified.missing else NOTHING} {'; '.join(advice)}.", fg="yellow", err=True)
    raise typer.Exit(EXIT_CODES[verified.outcome])


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
    """The claim with its deployment, with spaces at which a narrow table can break."""
    return check.claim if check.on is None else f"{check.claim}, {check.on.replace(':', ' ')}"


def _text(what: str, value: Value | None) -> str:
    if value is None:
        return ""
    form = {"size": "{:,.0f} bytes", "accuracy": "{:.2%}", "speedup": "{:.2f}x", "latency": "{:.3f} ms"}[what]
    interval = "" if value.low is None or value.high is None else f" ({form.format(value.low)} to {form.format(value.high)})"
    return form.format(value.value) + interval
