"""How wide the layers of a network are, as a function of what its groups keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltcompile.core.plan import Group

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Width:
    """An axis of a layer: `fixed` positions, and `per_channel[g]` more for every channel that group g keeps."""

    fixed: int
    per_channel: Mapping[str, int]

    def of(self, kept: Mapping[str, Any]) -> Any:
        """The width where each group keeps so many channels: numbers, or arrays that broadcast."""
        return self.fixed + sum(count * kept[name] for name, count in self.per_channel.items())


@dataclass(frozen=True)
class Widths:
    """What a convolution or linear layer reads and makes."""

    read: Width
    made: Width

    @property
    def groups(self) -> set[str]:
        """The groups that they depend on."""
        return {*self.read.per_channel, *self.made.per_channel}

    def of(self, kept: Mapping[str, Any]) -> tuple[Any, Any]:
        return self.read.of(kept), self.made.of(kept)


def layer_widths(model: nn.Module, groups: Iterable[Group]) -> dict[str, Widths]:
    """Convolution or linear layer -> its widths, for the network that `groups` are of."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    read: dict[str, dict[str, int]] = defaultdict(dict)
    made: dict[str, dict[str, int]] = defaultdict(dict)
    left = {name: list(_whole(layer)) for name, layer in layers.items()}
    for group in groups:
        for member in (m for m in group.members if m.layer in layers and m.axis in ("in", "out", "each")):
            count = len(member.index[0])
            for side, axis in enumerate((read, made)):
                if member.axis in (("in", "each"), ("out", "each"))[side]:
                    axis[member.layer][group.name] = axis[member.layer].get(group.name, 0) + count
                    left[member.layer][side] -= count * group.width
    return {name: Widths(Width(left[name][0], read[name]), Width(left[name][1], made[name])) for name in layers}


def _whole(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return (layer.out_channels if layer.groups > 1 else layer.in_channels), layer.out_channels


def kind(layer: Any) -> str:
    """What layers of one kind share: the operation, its window and its stride."""
    if isinstance(layer, nn.Linear):
        return "linear"
    window = "x".join(map(str, layer.kernel_size))
    return f"{'grouped ' if layer.groups > 1 else ''}{window} by {'x'.join(map(str, layer.stride))}"
