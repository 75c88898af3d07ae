"""ltcompile shrink: from a ticket, or any pruned network, to a verified, smaller file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from ltcompile.cli._network import EXAMPLE, MODEL, OWN, PLAN, WEIGHTS, named_pruned
from ltcompile.cli._options import end_by_target

if TYPE_CHECKING:
    from ltcompile.core.reached import Reached
    from ltcompile.deploy import Shrunk
    from ltcompile.deploy.job import Calibration
    from ltcompile.graph.inputs import Example
    from ltcompile.pruned import Pruned

SUMMARY = "Cut a network for real; export it."
EPILOG = (
    "Examples:  ltcompile shrink ticket.pt -o small.onnx  ·  ltcompile shrink ticket.pt -o small.pt2 --precision fp16  ·  "
    "ltcompile shrink ticket.pt -o small.onnx --precision int8 --calibrate digits  ·  ltcompile shrink ticket.pt --snap auto  ·  "
    "ltcompile shrink --model my.net:build --weights trained.pth --plan plan.json --example 1x3x64x64 -o small.onnx --dynamic batch,height,width  ·  "
    "ltcompile shrink --model torchvision:resnet18 --weights resnet18.pth --target-speedup 1.5 --repair images/ -o small.onnx"
)
INT8 = "int8"


def shrink(
    ticket: Optional[Path] = typer.Argument(None, help="ticket.pt of a search; without one, --model names the network."),
    output: str = typer.Option(
        "small.onnx",
        "-o",
        "--output",
        help="File to write: .onnx, .pt2 (torch.export), .safetensors, .cpp, .so, .xml (OpenVINO), .mnn, .param (ncnn), .tflite, .pte (ExecuTorch), "
        ".mlpackage (Core ML); or a folder that ends in /, for a page that runs the network in the browser.",
    ),
    precision: str = typer.Option(
        "fp32",
        help="fp32, fp16, bf16 (.cpp, .so) or int8 (.onnx, .xml, .mnn, .cpp, .so; needs --calibrate) inside; inputs and outputs stay fp32.",
    ),
    calibrate: str | None = typer.Option(
        None,
        metavar="DATA",
        help="digits, cifar10, imagefolder:PATH, ..., or a file of inputs by name. In fp32 and fp16, batch norm takes its statistics from the "
        "training images. In int8 they stay as they are: the ranges of activations come from training images, choices from validation images.",
    ),
    repair: str | None = typer.Option(
        None,
        metavar="DATA",
        help="Solve the weights behind the cut of --model against its dense network, without labels or training: a folder of images (for "
        "torchvision:NAME and timm:NAME, prepared as their weights want), or a file of inputs by name.",
        rich_help_panel=OWN,
    ),
    repair_passes: int = typer.Option(
        0,
        min=0,
        help="Then refine all weights by so many passes of gradient descent over the inputs of --repair, still without labels; 20 to 40 help most, "
        "and each takes about as long as an epoch of training on as many images.",
        rich_help_panel=OWN,
    ),
    images: str | None = typer.Option(
        None,
        metavar="DATA",
        help="What a page shows: a data set, of a ticket by default its own; of --model a folder of images or a file of inputs, as for --repair.",
    ),
    data_root: Path = typer.Option(Path("data"), help="Folder with the data in torchvision's layout."),
    model: str | None = MODEL,
    weights: Optional[Path] = WEIGHTS,
    plan: Optional[Path] = PLAN,
    example: str | None = EXAMPLE,
    target_speedup: float | None = typer.Option(
        None,
        min=1,
        max=10_000,
        help="Plan the cut of --model too: how many times as fast as it the small network is to run at --on.",
        rich_help_panel=OWN,
    ),
    opset: int | None = typer.Option(
        None, min=1, max=100, help="Of the .onnx file, for runtimes that are older than the exporter; fp32 and fp16."
    ),
    dynamic: str = typer.Option(
        "batch",
        help="Axes of the inputs that vary in the file: batch,height,width, length, depth, or NAME.AXIS; '' for none.",
        rich_help_panel=OWN,
    ),
    snap: str | None = typer.Option(
        None,
        help="Move widths to multiples of 16: down (the least important channels go), up (zeros fill) or auto (what is faster at --on).",
    ),
    on: str = typer.Option(
        "cpu:onnxruntime:b1:fp32", metavar="TARGET", help="Where --target-speedup and --snap auto measure: device:runtime:bBATCH:precision."
    ),
    max_drop: float = typer.Option(
        0.5, help="Points of validation accuracy that int8 may lose; layers stay in float until it loses no more.", rich_help_panel=INT8
    ),
    finetune_epochs: int = typer.Option(
        0,
        help="First train for so many epochs with rounded weights; where that does not help, again at a tenth and a hundredth of the rate.",
        rich_help_panel=INT8,
    ),
    tune_seconds: float = typer.Option(0.0, min=0.0, help="How long to measure tiles of .cpp and .so here; 0 leaves them to a model."),
    as_json: bool = typer.Option(False, "--json", help="Print the record as JSON."),
) -> None:
    """Make a pruned network physically small, prove it equal to the masked one, and export it.

    Ends with 4 where the network misses --target-speedup, or the target that its ticket was searched for: the file is written.
    """
    from rich.console import Console
    from rich.text import Text

    from ltcompile.benchmark.profiling import stopwatch
    from ltcompile.core.deployment import Deployment
    from ltcompile.deploy import shrink as run
    from ltcompile.deploy.shrink import place

    path = place(output)
    source = named_pruned(ticket, model, weights, plan, example)
    inputs = None if repair is None else _unlabelled(repair, model, source)  # before planning takes minutes
    reached = None
    if target_speedup is not None:
        source, reached = _planned(source, plan, target_speedup, on, as_json)
    shown = _shown(source, path, images, model, data_root)
    with Console(stderr=True, quiet=as_json).status("shrinking") as status:
        done = run(
            source,
            path,
            precision=precision,  # type: ignore[arg-type]
            calibrate=calibration(source, calibrate, data_root),
            max_drop=max_drop,
            finetune_epochs=finetune_epochs,
            tune_seconds=tune_seconds,
            snap=snap,  # type: ignore[arg-type]
            timer=stopwatch(source, Deployment.parse(on)) if snap == "auto" else None,
            dynamic=tuple(name.strip() for name in dynamic.split(",") if name.strip()),
            opset=opset,
            repair=inputs,
            repair_passes=repair_passes,
            images=shown,
            on_progress=lambda message: status.update(Text(message)),
        )
    if source.ticket is not None:
        reached = _reached(source.ticket.config, done.record, on)
    if as_json:
        typer.echo(json.dumps({**done.record, "target": reached.to_json() if reached else None}))
    else:
        _print(done)
    end_by_target(reached, quiet=as_json)


def _planned(own: Pruned, plan: Path | None, speedup: float, on: str, quiet: bool) -> tuple[Pruned, Reached]:
    """The network cut to a measured speedup at `on`, and how it stands to that."""
    from ltcompile.cli._options import timed
    from ltcompile.errors import InvalidSetting
    from ltcompile.prune import plan as choose
    from ltcompile.pruned import Pruned

    if own.ticket is not None or plan is not None:
        raise InvalidSetting("--target-speedup plans the cut of a --model; leave it out where a ticket or --plan says what is cut")
    time = timed(own.small, on, None, speedup, quiet=quiet, example=own.example)
    assert time is not None
    reached: list[Reached] = []
    found = choose(own.small, own.example, **time.target, profile=time.profile, measured=time.measured, on_target=reached.append)
    return Pruned.of_cut(own.small, found, own.example), reached[0]


def calibration(source: Pruned, calibrate: str | None, data_root: Path) -> Calibration | None:
    """A data set for a ticket; of any other network, a file of inputs."""
    from ltcompile.core.description import Description
    from ltcompile.core.preprocessing import Preprocessing
    from ltcompile.core.ticket import CLASSIFICATION
    from ltcompile.data import SPLIT_SEED, VAL_SHARE, DatasetOptions, load_like
    from ltcompile.errors import InvalidSetting
    from ltcompile.graph.examples import TENSORS, read_inputs
    from ltcompile.tasks import load_task

    if calibrate is None:
        return None
    if calibrate.endswith(TENSORS):
        return [read_inputs(Path(calibrate))]
    if (ticket := source.ticket) is None:
        raise InvalidSetting(f"--calibrate takes a file of inputs ({', '.join(TENSORS)}) for a network of your own, not {calibrate!r}")
    if ticket.task != CLASSIFICATION:
        like = Description.from_json(ticket.data)
        prepared = Preprocessing(like.shape[1:], like.mean, like.std, like.interpolation)
        return load_task(ticket.task, calibrate, data_root, DatasetOptions(None, VAL_SHARE, SPLIT_SEED, preprocessing=prepared))
    return load_like(ticket.data, calibrate, data_root)


def _shown(source: Pruned, output: Path, images: str | None, model: str | None, data_root: Path) -> Calibration | None:
    """What a page shows: `images`, else a ticket's own data."""
    from ltcompile.deploy import formats
    from ltcompile.errors import InvalidData, InvalidSetting

    if output.suffix != ".html":
        if images is not None:
            raise InvalidSetting(f"--images is for a page, and the output is {output}; leave it out, or name a folder that ends in /")
        return None
    if source.ticket is None:
        return None if images is None else _unlabelled(images, model, source, "--images")
    if formats.unavailable(formats.of(output)):  # shrink says what to do
        return None
    try:
        return calibration(source, images or source.ticket.data["name"], data_root)
    except InvalidData as error:
        raise InvalidData(f"the page shows the ticket's own data, which is not here: {error}; --images names other data") from error


def _unlabelled(data: str, model: str | None, source: Pruned, flag: str = "--repair") -> Iterable[Example]:
    """Batches of inputs: from a file of tensors, or the images of a folder as the network's weights want them."""
    from torch import Tensor

    from ltcompile.data._unlabelled import unlabelled
    from ltcompile.errors import InvalidData, InvalidSetting
    from ltcompile.graph.examples import TENSORS, read_inputs
    from ltcompile.graph.inputs import Arguments
    from ltcompile.models import preprocessing

    if data.endswith(TENSORS):
        return [read_inputs(Path(data))]
    if source.ticket is not None:
        raise InvalidSetting(
            "--repair needs the trained dense network, as --model and --weights name it; a ticket is trained after its cut"
        )
    known = preprocessing(str(model))
    example = Arguments.of(source.example).tensors[0]
    if known is None or not isinstance(example, Tensor) or example.dim() != 4:
        raise InvalidSetting(
            f"{flag} {data}: how images are prepared for {model} is not known; give a file of inputs ({', '.join(TENSORS)})"
        )
    if not Path(data).is_dir():
        raise InvalidData(f"there is no folder {data}; {flag} takes a folder of images or a file of inputs ({', '.join(TENSORS)})")
    return unlabelled(Path(data), replace(known, image_size=tuple(example.shape[-2:])))


def _reached(config: Mapping[str, Any], record: Mapping[str, Any], on: str) -> Reached | None:
    """How the network stands to its ticket's target: of size, or of time where --snap auto measured it at the target's place."""
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.reached import Reached

    if (size := record["target"]) is not None:
        return Reached.from_json(size)
    again, time = list(record["snapped"]["repeated_fraction"].values()), config.get("target_time")
    if not again or time is None or config.get("on") != str(Deployment.parse(on)):
        return None
    return Reached("time", time, again[0])


def _print(done: Shrunk) -> None:
    from ltcompile.deploy.steps import summary

    for line in summary(done.record):
        typer.echo(line)
    after = f"; next: ltcompile bench {done.path}" if "ticket_checksum" in done.record and done.path.suffix == ".onnx" else ""
    if done.path.suffix == ".html":
        after = f"; see it by: python -m http.server -b localhost -d {done.path.parent}"
    typer.echo(f"wrote {done.path} ({done.record['bytes'] / 1e6:.2f} MB) in {done.record['seconds']:.1f} s{after}")
