"""What consumes a group's channels and what work they are, as the criteria that look at the outputs see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ltcompile.graph.layers import width
from ltcompile.prune.criteria._channels import Channels, positions

if TYPE_CHECKING:
    from ltcompile.prune.criteria import Evidence


@dataclass
class Consumer:
    """A layer that reads C_in channels, all in float64 on the CPU.

    `weights` (C_in, C_in): the products of the weights of two inputs, summed over outputs, each weighed by its sensitivity, and over the
    kernel. `moments` (C_in, C_in): the covariance of the inputs. `index` (C, m): the inputs that go with each channel of the group.
    """

    weights: Tensor
    moments: Tensor
    index: Tensor


def consumers(channels: Channels, evidence: Evidence) -> Iterator[Consumer]:
    """The layers that read the channels of a group, as far as there is evidence of them."""
    for member in channels.readers:
        layer: Any = channels.layer(member)
        moments, sensitivity = evidence.moments.get((member.layer, "in")), evidence.sensitivities.get((member.layer, "out"))
        if moments is None or sensitivity is None or getattr(layer, "groups", 1) != 1:
            continue
        weight: Tensor = layer.weight.detach().double().cpu()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            weight = weight.transpose(0, 1)
        weight = weight.flatten(2) if weight.dim() > 2 else weight[..., None]  # (C_out, C_in, kernel)
        weight = weight * sensitivity.cpu().clamp_min(0).sqrt()[:, None, None]
        rows = weight.transpose(0, 1).flatten(1)
        yield Consumer(rows @ rows.T, moments.cpu(), positions(member))


def work(channels: Channels, evidence: Evidence) -> float:
    """The multiply-accumulates of one channel, on average: of the layers that make it, hold it or consume it; 1 where none is known."""
    total = 0.0
    for member in channels.group.members:
        layer, places = channels.layer(member), evidence.places.get((member.layer, "out"))
        weight = getattr(layer, "weight", None)
        if places is not None and member.axis in ("in", "out", "each") and isinstance(weight, Tensor) and weight.dim() > 1:
            total += float(places) * weight.numel() * len(member.index[0]) / width(layer, member.axis)
    return total or 1.0
