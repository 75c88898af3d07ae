"""The options that name a network of the user's own, which all commands share that take a ticket or any other network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltcompile.errors import InvalidSetting

if TYPE_CHECKING:
    from ltcompile.pruned import Pruned

OWN = "Any network"
NAMES = "Built-in name, torchvision:NAME, timm:NAME, or your own package.module:factory or path/to/file.py:factory (from the current directory too)."
MODEL: Any = typer.Option(
    None,
    help="A network instead of a ticket: package.module:factory or path/to/file.py:factory of your own, called without arguments and looked "
    "for in the current directory too; torchvision:NAME, timm:NAME or a built-in name. With a ticket: names your code again, where it needs it.",
    rich_help_panel=OWN,
)
WEIGHTS: Any = typer.Option(None, help="State dict of --model, before or after the cut (.safetensors, .pth).", rich_help_panel=OWN)
PLAN: Any = typer.Option(None, help="plan.json of `ltcompile plan`: what is cut.", rich_help_panel=OWN)
EXAMPLE: Any = typer.Option(
    None,
    metavar="SHAPES",
    help="Inputs of --model: 1x3x32x32, or image=1x3x64x64,tokens=1x16:int64, or a file of tensors by name. Your own code needs it.",
    rich_help_panel=OWN,
)


def own_network(target: Path | None, model: str | None, weights: Path | None, plan: Path | None, example: str | None) -> Pruned | None:
    """The network that the options name; None where `target`, a ticket or another file, is given instead.

    Raises InvalidSetting where both are given, or neither.
    """
    given = [f"--{name}" for name, value in {"weights": weights, "plan": plan, "example": example}.items() if value is not None]
    if target is not None:
        if given:
            raise InvalidSetting(f"{given[0]} belongs to a network of your own, and {target} holds its network; leave one of them out")
        return None
    from ltcompile.models import is_own_code
    from ltcompile.pruned.files import pruned_from_files

    if model is None:
        raise InvalidSetting(
            "there is no target: name a ticket.pt, or a network of your own: --model package.module:factory --example 1x3x32x32"
        )
    if is_own_code(model) and example is None:
        raise InvalidSetting(f"--model {model} needs the shapes of its inputs: add --example, as in --example 1x3x32x32")
    return pruned_from_files(model, weights, plan, example)


def named_pruned(target: Path | None, model: str | None, weights: Path | None, plan: Path | None, example: str | None) -> Pruned:
    """The network of the ticket `target`, or the one that the options name. Raises InvalidSetting as `own_network`."""
    from ltcompile.pruned import pruned_of

    return own_network(target, model, weights, plan, example) or pruned_of(target, model)  # type: ignore[arg-type]  # a path then
