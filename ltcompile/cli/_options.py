"""The options for what may be cut, which `find` and `plan` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.errors import InvalidSetting

if TYPE_CHECKING:
    from torch import nn

    from ltcompile.benchmark.profiling.work import Model
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.profile import Profile
    from ltcompile.core.reached import Reached
    from ltcompile.graph import Example

PRUNING, LIMITS = "Pruning", "Limits"
LAST_SEED = 2**31 - 1
MOST_IMAGES = 1 << 20  # in a batch: more is a slip of the keyboard
KEEP: Any = typer.Option(
    [],
    metavar="PATTERN",
    help="Do not cut these layers: a regular expression for the whole name of a layer, or of a module with all inside. Repeatable.",
    rich_help_panel=LIMITS,
)
ONLY: Any = typer.Option([], metavar="PATTERN", help="Cut no layers but these. Repeatable.", rich_help_panel=LIMITS)
LAYER_RATIO: Any = typer.Option(
    [], metavar="PATTERN=SHARE", help="Cut this share of these layers, whatever becomes of the others. Repeatable.", rich_help_panel=LIMITS
)
IMAGE_SIZE: Any = typer.Option(
    None, metavar="PIXELS", help="Size of its images: 64, or HEIGHTxWIDTH as in 48x64.  [default: 32, 224 for networks from elsewhere]"
)
MAX_LAYER_RATIO: Any = typer.Option(0.95, help="The largest share of its channels that any layer may lose.", rich_help_panel=LIMITS)
MIN_CHANNELS: Any = typer.Option(1, min=1, help="Least number of channels that a layer keeps.", rich_help_panel=LIMITS)
ALIGN: Any = typer.Option(1, min=1, max=1024, help="Widths become multiples of this; 8 or 16 suit most hardware.", rich_help_panel=LIMITS)
TARGET_SPEEDUP: Any = typer.Option(
    None,
    min=1,
    max=10_000,
    help="Instead of a ratio: how many times as fast as the dense network, by measured time; needs --on.",
    rich_help_panel=PRUNING,
)
TARGET_LATENCY: Any = typer.Option(
    None, metavar="TIME", help="The same as a time for one batch, as in 0.2ms or 350us.", rich_help_panel=PRUNING
)
TARGET_ENERGY: Any = typer.Option(
    None,
    metavar="ENERGY",
    help="The same as energy for one image, as in 5mJ or 0.2J, where this machine counts it.",
    rich_help_panel=PRUNING,
)
ON: Any = typer.Option(
    None,
    metavar="TARGET",
    help="Where the network will run: device:runtime:bBATCH:precision, as in cpu:onnxruntime:b1:fp32.",
    rich_help_panel=PRUNING,
)
PROFILE: Any = typer.Option(
    None,
    help="A file of `ltcompile profile`, made on the machine of --on; by default this machine is profiled, once.",
    rich_help_panel=PRUNING,
)
MISSED = 4  # exit code: done, files are written, and a target was missed
GROUP_REDUCTION: Any = typer.Option(
    "default",
    help="Which weights of a channel are scored: the filters that make it (producers), those that read it too (filters), or the scales of "
    "its norms as well (all); by default as the criterion declares.",
    rich_help_panel=PRUNING,
)

NORMALIZE: Any = typer.Option(
    None,
    help="What a group's scores are divided by before groups are compared: none, mean, max or lamp; gaussian subtracts their mean and divides "
    "by their deviation.  [default: none, or mean where the criterion's scores are not comparable]",
    rich_help_panel=PRUNING,
)


def limits(keep: list[str], only: list[str], layer_ratio: list[str], max_layer_ratio: float, min_channels: int) -> dict[str, Any]:
    """The fields of `Limits` as the flags give them. Raises InvalidSetting for a malformed ratio."""
    return {
        "keep": tuple(keep),
        "only": tuple(only),
        "ratios": dict(_ratio(requested) for requested in layer_ratio),
        "max_layer_ratio": max_layer_ratio,
        "min_channels": min_channels,
    }


def end_by_target(reached: Reached | None, *, quiet: bool) -> None:
    """Print how a target was met unless `quiet`; raises typer.Exit with MISSED where it was not."""
    if reached is None:
        return
    if reached.missed_by:
        typer.secho(str(reached), fg="yellow", err=True)
        raise typer.Exit(MISSED)
    if not quiet:
        typer.echo(str(reached))


@dataclass(frozen=True)
class Timed:
    """A target of time or energy: the share of the dense network's that may stay, its profile, and what measures it on this machine, where
    that is the one profiled."""

    measure: str
    share: float
    on: str
    profile: Profile
    measured: Callable[[nn.Module], float] | None

    @property
    def target(self) -> dict[str, Any]:
        """As an argument of `plan` or a field of SearchConfig."""
        return {f"target_{self.measure}": self.share}


def timed(
    model: Model,
    on: str | None,
    profile: Path | None,
    speedup: float | None = None,
    latency: str | None = None,
    energy: str | None = None,
    quiet: bool = False,
    example: Example | None = None,
) -> Timed | None:
    """The requested target of time or energy, or None; profiles this machine where it has to. `model` and `example` are as in `lt.profile`.

    Raises InvalidSetting, ProfileMismatch, and Unavailable where nothing counts energy here.
    """
    given = {"--target-speedup": speedup, "--target-latency": latency, "--target-energy": energy}
    requested = [name for name, value in given.items() if value is not None]
    if not requested:
        if on is not None or profile is not None:
            raise InvalidSetting(f"--on and --profile belong to {' or '.join(given)}; say how fast it must be")
        return None
    if len(requested) > 1:
        raise InvalidSetting(f"a cut has one target: leave {' or '.join(requested)} out")
    if on is None:
        raise InvalidSetting("a target of time or energy needs a place: add --on, as in --on cpu:onnxruntime:b1:fp32")
    from ltcompile.benchmark.energy import counter
    from ltcompile.benchmark.profiling import described, joulemeter, stopwatch
    from ltcompile.core.deployment import Deployment
    from ltcompile.core.profile import Profile
    from ltcompile.errors import ProfileMismatch, Unavailable

    target, most = Deployment.parse(on), None if energy is None else _joules(energy)
    ms = None if latency is None else _milliseconds(latency)
    if most is not None:
        try:
            counter(target.device)  # before anything takes minutes
        except Unavailable as error:
            raise Unavailable(f"--target-energy cannot be measured here: {error}; use --target-latency or --target-speedup") from error
    if profile is None:
        found = shown_profile(model, target, None, again=False, quiet=quiet, example=example)
    else:
        found = Profile.load(profile)
    found.check_fits(described(model, example), target)
    if most is not None:
        found.check_here()
        dense, spent = joulemeter(model, target, example)
        if most >= dense:
            raise InvalidSetting(f"the dense network takes {1000 * dense:.4g} mJ an image at {target} already; choose a lower target")
        return Timed("energy", most / dense, str(target), found, spent)
    try:
        found.check_here()
        measured = stopwatch(model, target, example)
    except ProfileMismatch:
        typer.secho(f"planned for {found.machine.get('cpu', 'another machine')}; not measured on this one", err=True)
        measured = None
    share = ms / found.dense_ms if ms is not None else 1 / (speedup or 1)
    if not 0 < share < 1:
        raise InvalidSetting(f"the dense network takes {found.dense_ms:.4g} ms at {target} already; choose a lower target")
    return Timed("time", share, str(target), found, measured)


def _milliseconds(text: str) -> float:
    """A time such as 0.2ms, 350us or 1.5s. Raises InvalidSetting."""
    return _amount(text, {"us": 1e-3, "ms": 1.0, "s": 1e3}, "--target-latency takes a time with its unit, as in 0.2ms or 350us")


def _joules(text: str) -> float:
    """Energy such as 5mJ, 800uJ or 0.2J. Raises InvalidSetting."""
    return _amount(text, {"uJ": 1e-6, "mJ": 1e-3, "J": 1.0}, "--target-energy takes energy with its unit, as in 5mJ or 0.2J")


def _amount(text: str, units: dict[str, float], rule: str) -> float:
    match = re.fullmatch(rf"\s*([0-9]*\.?[0-9]+)\s*({'|'.join(units)})\s*", text)
    if not match or float(match[1]) <= 0:
        raise InvalidSetting(f"{rule}, not {text!r}")
    return float(match[1]) * units[match[2]]


def shown_profile(model: Model, target: Deployment, path: Path | None, again: bool, quiet: bool, example: Example | None = None) -> Profile:
    """A profile, made or continued under a bar."""
    from rich.console import Console

    from ltcompile.benchmark.profiling import described
    from ltcompile.benchmark.profiling import profile as run
    from ltcompile.cli._terminal import progress

    with progress(Console(stderr=True, quiet=quiet), "networks", disable=quiet) as bar:
        task = bar.add_task(f"timing {described(model, example)['name']} at {target}", total=None)
        return run(
            model,
            target,
            example,
            output=path,
            resume=not again,
            on_progress=lambda done, of, _: bar.update(task, completed=done, total=of),
        )


def size_for(model: str, requested: str | None) -> int | list[int]:
    """The size of a network's images in pixels, as `core.image_size` reads it. Raises InvalidSetting."""
    from ltcompile.core.image_size import parse
    from ltcompile.models import usual_size

    return parse(requested) if requested else usual_size(model)


def _ratio(requested: str) -> tuple[str, float]:
    pattern, equals, share = requested.rpartition("=")
    try:
        if equals:
            return pattern, float(share)
    except ValueError:
        pass
    raise InvalidSetting(f"--layer-ratio takes PATTERN=SHARE, as in 'layer1=0.3', not {requested!r}")
