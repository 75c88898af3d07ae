"""ltcompile shrink: from a ticket to a verified, smaller file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._options import end_by_target

if TYPE_CHECKING:
    from ltcompile.core.reached import Reached
    from ltcompile.deploy import Shrunk

EPILOG = (
    "Examples:  ltcompile shrink ticket.pt -o small.onnx  ·  ltcompile shrink ticket.pt -o small.pt2 --precision fp16  ·  "
    "ltcompile shrink ticket.pt -o small.onnx --precision int8 --calibrate digits  ·  ltcompile shrink ticket.pt --snap auto"
)
INT8 = "int8"


def register(app: typer.Typer) -> None:
    app.command(epilog=EPILOG, short_help="Cut a ticket's network for real; export it.")(shrink)


def shrink(
    ticket: Path = typer.Argument(..., help="ticket.pt of a search."),
    output: Path = typer.Option(Path("small.onnx"), "-o", "--output", help="File to write: .onnx, .pt2 (torch.export) or .safetensors."),
    precision: str = typer.Option(
        "fp32", help="fp32, fp16 or int8 inside; inputs and outputs stay fp32. int8 is for .onnx, and needs --calibrate."
    ),
    calibrate: str | None = typer.Option(
        None,
        metavar="DATA",
        help="digits, cifar10, imagefolder:PATH, ... In fp32 and fp16: take batch norm's statistics anew from its training images. In int8 "
        "those stay as they are: the ranges of activations come from its training images, choices from validation images.",
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    model: str | None = typer.Option(None, help="Names your own package.module:factory again, where the ticket needs it."),
    snap: str | None = typer.Option(
        None,
        help="Move widths to multiples of 16: down (the least important channels go), up (zeros fill) or auto (what is faster at --on).",
    ),
    on: str = typer.Option(
        "cpu:onnxruntime:b1:fp32", metavar="TARGET", help="Where --snap auto measures: device:runtime:bBATCH:precision."
    ),
    max_drop: float = typer.Option(
        0.5,
        help="Points of validation accuracy that int8 may lose; layers stay in float until it loses no more.",
        rich_help_panel=INT8,
    ),
    finetune_epochs: int = typer.Option(
        0,
        help="First train for so many epochs with rounded weights; where that does not help, again at a tenth and a hundredth of the rate.",
        rich_help_panel=INT8,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Make a ticket's network physically small, prove it equal to the masked one, and export it.

    Ends with 4 where the ticket was searched for a target that the network misses: the file is written.
    """
    from rich.console import Console
    from rich.text import Text

    from ltcompile.benchmark.profiling import stopwatch
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.ticket import Ticket
    from ltcompile.data import load_like
    from ltcompile.deploy import shrink as run
    from ltcompile.paths import check_writable

    check_writable(output)
    loaded = Ticket.load(ticket)
    dataset = load_like(loaded.data, calibrate, data_root) if calibrate else None
    with Console(stderr=True, quiet=as_json).status("shrinking") as status:
        done = run(
            loaded,
            output,
            precision=precision,  # type: ignore[arg-type]
            model=model,
            calibrate=dataset,
            max_drop=max_drop,
            finetune_epochs=finetune_epochs,
            snap=snap,  # type: ignore[arg-type]
            clock=stopwatch(loaded.model, Deployment.parse(on)) if snap == "auto" else None,
            on_progress=lambda told: status.update(Text(told)),
        )
    record, reached = done.record, _reached(loaded.config, done.record, on)
    if as_json:
        typer.echo(json.dumps({**record, "target": reached.to_json() if reached else None}))
    else:
        _print(done)
    end_by_target(reached, quiet=as_json)


def _reached(config: Mapping[str, Any], record: Mapping[str, Any], on: str) -> Reached | None:
    """How the network stands to its ticket's target: of size, or of time where --snap auto measured it at the target's place."""
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.reached import Reached

    if (size := record["target"]) is not None:
        return Reached.from_json(size)
    again, time = list(record["snapped"]["again_share"].values()), config.get("target_time")
    if not again or time is None or config.get("on") != str(Deployment.parse(on)):
        return None
    return Reached("time", time, again[0])


def _print(done: Shrunk) -> None:
    record = done.record
    typer.echo(
        f"params {record['dense_params']:,} → {record['params']:,}   MACs {record['dense_macs']:,} → {record['macs']:,} "
        f"({record['dense_macs'] / record['macs']:.1f}x fewer)"
    )
    typer.echo(
        f"cut = masked to {record['equality_error']:.1e}, file = torch to {record['onnx_error']:.1e} (allowed {record['tolerance']:.0e}), "
        f"{record['folded_batch_norms']} batch norms folded"
    )
    if "structure" in record:
        _tell_structure(record["structure"])
    if record["snapped"]["way"] != "as it is" or record["snapped"]["told_share"]:
        _tell_snapped(record["snapped"])
    if "int8" in record:
        _tell_int8(record["int8"])
    typer.echo(f"wrote {done.path} ({record['bytes'] / 1e6:.2f} MB) in {record['seconds']:.1f} s; next: ltcompile bench {done.path}")


def _tell_snapped(told: Mapping[str, Any]) -> None:
    """What the widths became and, where a clock decided, what it said at first and in a second measurement."""
    tried = ", ".join(f"{way} {share:.1%}" for way, share in told["told_share"].items())
    typer.echo(f"widths: {told['way']}{f' (of the dense network: {tried})' if tried else ''}")
    if told["again_share"]:
        (_, own), (rival, other) = told["again_share"].items()
        typer.echo(
            f"measured again: {own:.1%} of the dense network's time; {'a tie with' if told['tie'] else 'ahead of'} {rival}, {other:.1%}"
        )


def _tell_structure(told: Mapping[str, Any]) -> None:
    """How much of a mask's sparsity was whole channels."""
    weights, channels = told["weights"], told["channels"]
    typer.echo(
        f"mask keeps {weights['kept']:,} of {weights['all']:,} weights; {told['share_in_removed']:.1%} of the zeros left with "
        f"{channels['constant'] + channels['unread']:,} of {channels['all']:,} channels ({channels['unread']:,} unread, "
        f"{channels['constant']:,} constant)"
    )


def _tell_int8(told: Mapping[str, Any]) -> None:
    """What was chosen, what it costs, and what stayed in float."""
    val, test, images = told["val_accuracy"], told["test_accuracy"], told["images"]
    typer.echo(
        f"int8 with {told['ranges']} ranges of {images['calibration']} training images, weights of {told['weight_bits']} bits: "
        f"validation {val['fp32']:.2%} → {val['int8']:.2%}, test {test['fp32']:.2%} → {test['int8']:.2%}"
    )
    if told["fine_tuning"] != "not asked for":
        typer.echo(f"fine-tuned weights {told['fine_tuning']}")
    for name, why in told["float_nodes"].items():
        typer.echo(f"{name} stays in float: {why}")
    if "same_class" in (second := told["openvino"]):
        typer.echo(
            f"OpenVINO agrees: {second['same_class']:.2%} of validation images in the same class, outputs {second['error']:.1e} (RMS) from "
            f"the simulated rounding ({second['allowed']:.0e} is allowed)"
        )
    else:
        typer.echo(f"OpenVINO was not asked: {second['not_asked']}")
