"""ltcompile profile: how long each layer takes at which widths, on this machine."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.cli._network import EXAMPLE, NAMES, own_network
from ltcompile.cli._options import IMAGE_SIZE, MOST_IMAGES, shown_profile, size_for

if TYPE_CHECKING:
    from ltcompile.benchmark.profiling.work import Model
    from ltcompile.core.profile import Profile

SUMMARY = "Time a network's layers at many widths, on this machine."
EPILOG = """Examples:  ltcompile profile --model vgg16 --runtime onnxruntime --batch 64  ·
ltcompile profile --model torchvision:resnet50 --classes 1000 --runtime openvino --precision int8 -o resnet50-edge.json"""
NOISY = 1.25
DATA = {(10, 1): "digits", (10, 3): "cifar10", (100, 3): "cifar100"}  # by classes and colours
EXAMPLE_TARGET = ("--target-speedup", "3")
OWN_SIDE = 32  # of their images, in pixels


def profile(
    model: str = typer.Option("vgg16", help=NAMES),
    runtime: str = typer.Option("onnxruntime", help="onnxruntime, openvino or eager."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    batch: int = typer.Option(1, min=1, max=MOST_IMAGES, help="Images in one call."),
    precision: str = typer.Option("fp32", help="fp32, bf16, fp16 or int8, as the runtime has it."),
    classes: int = typer.Option(10, min=2, max=1_000_000, help="Classes that the network distinguishes."),
    in_channels: int = typer.Option(3, min=1, max=1024, help="Colours of its images."),
    image_size: str | None = IMAGE_SIZE,
    example: str | None = EXAMPLE,
    output: Path | None = typer.Option(None, "-o", "--output", help="Where to write; kept in the user's cache by default."),
    again: bool = typer.Option(False, "--again", help="Measure again, instead of resuming what is there."),
    as_json: bool = typer.Option(False, "--json", help="Print where it was written and how well it predicts, as JSON."),
) -> None:
    """Time every layer of a network over a grid of widths, inside the runtime that will run it. Needs no data and no trained weights.

    `find --on` and `plan --on` read it; a profile that was made on the machine of the deployment can be carried to the one that trains.
    """
    from ltcompile.benchmark.profiling import cached, described
    from ltcompile.core.deployment import Deployment

    target = Deployment(device, runtime, batch, precision)
    sizes = {"classes": classes, "in_channels": in_channels, "image_size": size_for(model, image_size)}
    named: Model = {"name": model, "arguments": sizes} if example is None else own_network(None, model, None, None, example)  # type: ignore[assignment]
    path = output or cached(described(named), target)
    began = time.perf_counter()
    found = shown_profile(named, target, path, again, quiet=as_json)
    seconds = time.perf_counter() - began
    if as_json:
        report = {
            "profile": str(path),
            "target": str(target),
            "dense_ms": found.dense_ms,
            "median_error": found.median_error,
            "spread": found.spread,
            "drift": found.drift,
            "seconds": seconds,
        }
        typer.echo(json.dumps(report))
        return
    _print(found)
    carried = ["--profile", str(output)] if output else []
    typer.echo(
        f"wrote {path} in {seconds:.0f} s; next: {shlex.join([*_next(model, sizes, example), '--on', str(target), *carried, *EXAMPLE_TARGET])}"
    )


def _next(name: str, sizes: dict[str, Any], example: str | None) -> list[str]:
    """The command that finds a ticket of such a network, on data of its classes and colours; without such data, the one that plans it."""
    from ltcompile.core.image_size import to_text

    if example is not None:
        return ["ltcompile", "plan", "--model", name, "--example", example]
    classes, colours, side = sizes["classes"], sizes["in_channels"], to_text(sizes["image_size"])
    data = DATA.get((classes, colours), f"imagefolder:FOLDER_OF_{classes}_CLASSES" if colours == 3 else None)
    if data is None:
        return ["ltcompile", "plan", "--model", name, "--classes", str(classes), "--in-channels", str(colours), "--image-size", side]
    own = data in DATA.values() and side == str(OWN_SIDE)
    return ["ltcompile", "find", "--model", name, "--data", data, *([] if own else ["--image-size", side])]


def _print(found: Profile) -> None:
    from ltcompile.cli._terminal import show_table

    rows = []
    for kind in dict.fromkeys(layer.kind for layer in found.layers.values()):
        alike = [name for name, layer in found.layers.items() if layer.kind == kind]
        alignment = found.surfaces[alike[0]].alignment
        ms = sum(found.runs[0].layers_ms[name] for name in alike)
        rows.append(
            (
                kind,
                len(alike),
                f"{ms:.3f}",
                f"{ms / found.dense_ms:.0%}",
                alignment.read_block,
                alignment.made_block,
                f"{alignment.penalty.max():.2f}x",
            )
        )
    show_table(("layers", "how many", "ms", "of all", "block read", "block made", "worst width costs"), rows)
    checks = [run for run in found.runs if run.why == "check"]
    typer.echo(f"{len(checks)} networks that were held back: predicted within {found.median_error:.1%} of measured (median)")
    if max(found.spread, found.drift) > NOISY:
        typer.secho(
            f"timings were noisy (p80 is {found.spread:.2f} of p20 within a network's runs, and the machine's speed changed by "
            f"{found.drift:.2f} between networks): is other work on this machine? --again measures again",
            fg="yellow",
            err=True,
        )
