"""The options for what may be cut, which `find` and `plan` share."""

from __future__ import annotations

from typing import Any

import typer

from ltcompile.errors import BadSetting

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
MAX_LAYER_RATIO: Any = typer.Option(0.95, help="The largest share of its channels that any layer may lose.", rich_help_panel=LIMITS)
MIN_CHANNELS: Any = typer.Option(1, min=1, help="Least number of channels that a layer keeps.", rich_help_panel=LIMITS)
ALIGN: Any = typer.Option(1, min=1, max=1024, help="Widths become multiples of this; 8 or 16 suit most hardware.", rich_help_panel=LIMITS)
GROUP_REDUCTION: Any = typer.Option(
    "producers",
    help="Which weights speak for a channel: the filters that make it (producers), or all that go with it (all).",
    rich_help_panel=PRUNING,
)


def limits(keep: list[str], only: list[str], layer_ratio: list[str], max_layer_ratio: float, min_channels: int) -> dict[str, Any]:
    """The fields of `Limits` as they were asked for. Raises BadSetting where a ratio is none."""
    return {
        "keep": tuple(keep),
        "only": tuple(only),
        "ratios": dict(_ratio(asked) for asked in layer_ratio),
        "max_layer_ratio": max_layer_ratio,
        "min_channels": min_channels,
    }


def _ratio(asked: str) -> tuple[str, float]:
    pattern, equals, share = asked.rpartition("=")
    try:
        if equals:
            return pattern, float(share)
    except ValueError:
        pass
    raise BadSetting(f"--layer-ratio takes PATTERN=SHARE, as in 'layer1=0.3', not {asked!r}")
