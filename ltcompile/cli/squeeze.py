"""ltcompile squeeze: the structure in the zeros of any tool."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from ltcompile.cli._network import EXAMPLE, NAMES, named_pruned
from ltcompile.cli._terminal import show_table, sizes_line

SUMMARY = "Remove what another tool's zeros left empty."
EPILOG = """Examples:  ltcompile squeeze --model my.net:build --weights masked.pth --example 1x3x64x64 -o squeezed.safetensors  ·
ltcompile squeeze --model torchvision:resnet18 --weights masked.pth"""


def squeeze(
    model: str | None = typer.Option(None, help=NAMES),
    weights: Path | None = typer.Option(
        None, help="State dict with zeros, or with the masks of torch.nn.utils.prune (.safetensors, .pth)."
    ),
    example: str | None = EXAMPLE,
    output: Path = typer.Option(
        Path("squeezed.safetensors"), "-o", "--output", help="The weights that stay; the plan of what went is written next to it."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the widths and sizes as JSON."),
) -> None:
    """Remove the channels whose weights are all zero: the network computes the same, and is smaller. Nothing is trained.

    A channel that is constant goes too, into the biases of the layers that read it.
    """
    from safetensors.torch import save

    from ltcompile.errors import InvalidModel, InvalidSetting
    from ltcompile.graph import size
    from ltcompile.graph.squeeze import squeezed
    from ltcompile.paths import check_writable, write_bytes

    if model is None or weights is None:
        raise InvalidSetting("name the network and its weights, as in --model package.module:factory --weights masked.pth")
    if output.suffix != ".safetensors":
        raise InvalidSetting(f"-o takes the name of a .safetensors file, not {output}")
    check_writable(output)
    plan = output.with_suffix(".plan.json")
    own = named_pruned(None, model, weights, None, example)
    found = squeezed(own.small, own.example)
    if not found.constant + found.unread:
        raise InvalidModel(f"every channel of {model} with the weights in {weights} has some that are not zero: there is nothing to remove")
    before, after = size(own.small, own.example), size(found.module, own.example)
    found.plan.save(plan)
    write_bytes(output, save({name: value.detach().clone().contiguous() for name, value in found.module.state_dict().items()}))
    rows = [(name, was, now) for name, (was, now) in found.plan.widths.items() if now < was]
    if as_json:
        channels = {"constant": found.constant, "unread": found.unread}
        sizes = {"params": [before.params, after.params], "macs": [before.macs, after.macs]}
        typer.echo(json.dumps({"model": model, "widths": {name: widths for name, *widths in rows}, "removed": channels, **sizes}))
        return
    show_table(("layer", "before", "after"), rows)
    typer.echo(f"removed {found.unread:,} channels that nothing reads and {found.constant:,} that are constant")
    typer.echo(sizes_line(before, after))
    named = f"ltcompile shrink --model {model} --weights {output} --plan {plan}"
    typer.echo(f"wrote {output} and {plan}; next: {named}{f' --example {example}' if example else ''} -o {output.with_suffix('.onnx')}")
