"""Where the connections of one node lie to each other: pairs of its pixels, counted by their displacement in the image.

By Wiener and Khinchin, the number of ordered pairs at every displacement is the autocorrelation of the node's mask, so that masks of
thousands of inputs cost some Fourier transforms. Pairs are of one channel (without a connection and itself) or of two different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 2.0  # pixels: up to here two pixels are neighbours
NODES = 256  # whose transforms are held at once


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of connections by displacement, (2H-1, 2W-1) with none in the middle.

    Args:
        own: of one node, summed over all nodes.
        shuffled: as many as `own` would be on average, if every node kept its number of connections and had them anywhere.
        others: of two different nodes: how pairs would lie if nodes shared their taste for pixels, and nothing else.
    """

    own: Tensor
    shuffled: Tensor
    others: Tensor

    def excess(self, where: Tensor) -> float:
        """How many times as large a share of all pairs lies `where` (2H-1, 2W-1) as in a shuffled mask; not a number without pairs."""
        return _share(self.own, where) / _share(self.shuffled, where)

    @property
    def locality(self) -> float:
        """The excess of pairs within `NEAR` pixels: 1 is that of a shuffled mask."""
        return self.excess(distances(self.own) <= NEAR)

    @property
    def beyond(self) -> float:
        """The same relative to pairs of different nodes: 1 is what pixels that all nodes like explain."""
        near = distances(self.own) <= NEAR
        return _share(self.own, near) / _share(self.others, near)

    def profile(self) -> dict[int, float]:
        """Distance, rounded to pixels -> excess there, up to half the image."""
        rounded = distances(self.own).round()
        return {d: self.excess(rounded == d) for d in range(1, (len(self.own) + 1) // 4 + 1)}

    def contrast(self, reach: int) -> Tensor:
        """(own - shuffled) / (own + shuffled) at displacements of at most `reach` each way, from -1 (none) over 0 (as shuffled) to 1."""
        y, x = (size // 2 for size in self.own.shape)
        reach = min(reach, x, y)
        own, shuffled = (part[y - reach : y + reach + 1, x - reach : x + reach + 1] for part in (self.own, self.shuffled))
        return torch.where(own + shuffled > 0, (own - shuffled) / (own + shuffled), 0.0)


def _share(pairs: Tensor, where: Tensor) -> float:
    total, there = pairs.sum().item(), pairs[where].sum().item()
    return there / total if total else float("nan")


def distances(like: Tensor) -> Tensor:
    """How long every displacement is, in pixels, for pairs of that shape."""
    y, x = (torch.arange(size) - size // 2 for size in like.shape)
    return torch.hypot(y[:, None].double(), x[None].double())


def pairs(kept: Tensor) -> tuple[Pairs, Pairs | None]:
    """Pairs of one channel, and of two different ones (None where there is but one), of a mask (nodes, C, H, W)."""
    _, channels, height, width = kept.shape
    counts, popular = kept.flatten(1).sum(1).double(), kept.sum(0)
    chance = (counts * (counts - 1)).sum() / (kept[0].numel() * (kept[0].numel() - 1))  # that two places of a node are both kept, summed
    own, whole = _each_channel(kept), _all_channels(kept)
    everywhere = torch.ones(1, channels, height, width)
    places = _without_itself(_each_channel(everywhere))
    same = Pairs(_without_itself(own), chance * places, _without_itself(_each_channel(popular[None]) - own))
    if channels == 1:
        return same, None
    between = _all_channels(popular[None]) - _each_channel(popular[None]) - (whole - own)
    return same, Pairs(whole - own, chance * (_all_channels(everywhere) - _each_channel(everywhere)), between)


def _without_itself(found: Tensor) -> Tensor:
    found = found.clone()
    found[found.shape[0] // 2, found.shape[1] // 2] = 0
    return found


def _each_channel(images: Tensor) -> Tensor:
    return _autocorrelation(images, lambda part: part)


def _all_channels(images: Tensor) -> Tensor:
    return _autocorrelation(images, lambda part: part.sum(1, keepdim=True))


def _autocorrelation(images: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over images (N, C, H, W) of whole numbers, as `of` makes them, of their autocorrelations (2H-1, 2W-1)."""
    shape = [2 * size - 1 for size in images.shape[-2:]]
    power = sum(torch.fft.rfft2(of(part).double(), s=shape).abs().square().sum((0, 1)) for part in images.split(NODES))
    found: Tensor = torch.fft.fftshift(torch.fft.irfft2(torch.as_tensor(power), s=shape)).round()
    return found
