"""CenterNet (Zhou et al. 2019, arXiv:1904.07850) with a small residual backbone: objects as peaks of a map of their centres.

(N, C, H, W) -> for each cell of 4x4 pixels: `heat` (N, classes, H/4, W/4), logits of an object of each class whose centre lies there; `size`
(N, 2, ...), its width and height, and `offset` (N, 2, ...), where in the cell the centre is, both in cells. No anchors, and no suppression but
that of cells next to a higher peak.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe

WIDTHS = {"centernet": 32, "centernet-small": 8}
NAMES = tuple(WIDTHS)
LEAST_SIZE = 16
RECIPE = Recipe(epochs=30, batch=16, lr=0.02, weight_decay=1e-4, schedule="cosine", warmup_epochs=2)
STRIDE = 4  # pixels of a cell's side
MOST, LEAST_SCORE = 100, 0.01  # objects found in an image


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return CenterNet(classes, in_channels, WIDTHS[name])


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.second(self.first(x))
        return found


class CenterNet(nn.Module):
    def __init__(self, classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        widths = [2 * width, 4 * width, 8 * width]  # at strides of 4, 8 and 16 pixels
        self.stem = _conv(in_channels, width, 2)
        self.down = nn.ModuleList(nn.Sequential(_conv(w // 2, w, 2), _Residual(w)) for w in widths)
        self.across = nn.ModuleList(_conv(w, widths[0], size=1) for w in widths)
        heat = nn.Conv2d(widths[0], classes, 1)
        self.heat = nn.Sequential(_conv(widths[0], widths[0]), heat)
        self.boxes = _conv(widths[0], widths[0])
        self.size, self.offset = nn.Conv2d(widths[0], 2, 1), nn.Conv2d(widths[0], 2, 1)
        nn.init.constant_(heat.bias, -3.0)  # type: ignore[arg-type]  # few cells hold a centre

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        y, maps = self.stem(images), []
        for stage, across in zip(self.down, self.across, strict=True):
            y = stage(y)
            maps.append(across(y))
        y = maps.pop()
        while maps:
            y = F.interpolate(y, size=maps[-1].shape[-2:]) + maps.pop()
        boxes = self.boxes(y)
        return {"heat": self.heat(y), "size": self.size(boxes), "offset": self.offset(boxes)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> Tensor:
        """Focal loss of the heat against Gaussians around the centres, and L1 of size and offset at the centres, each for one object: the mean
        over an image's objects, and then over images.

        `targets` has "boxes", a list of (K, 4) in pixels, and "labels", a list of (K,).
        """
        heat, boxes, labels = outputs["heat"], torch.cat(targets["boxes"]) / STRIDE, torch.cat(targets["labels"])
        image = torch.cat([torch.full_like(kinds, i) for i, kinds in enumerate(targets["labels"])])
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        x, y = (c.long().clamp(0, limit - 1) for c, limit in zip(centre.unbind(1), (heat.shape[3], heat.shape[2]), strict=True))
        wanted, chance = _bumps(heat, image, labels, x, y, size), heat.sigmoid()
        focal = torch.where(wanted == 1, (1 - chance) ** 2 * F.logsigmoid(heat), (1 - wanted) ** 4 * chance**2 * F.logsigmoid(-heat))
        found_size, found_offset = (outputs[name][image, :, y, x] for name in ("size", "offset"))
        l1 = 0.1 * (found_size - size).abs().sum(1) + (found_offset - (centre - torch.stack([x, y], 1))).abs().sum(1)
        total = (-focal.sum((1, 2, 3))).index_add(0, image, l1)
        return (total / torch.bincount(image, minlength=len(heat)).clamp(min=1)).mean()

    @torch.no_grad()
    def detect(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Of each image "boxes" (K, 4) in pixels, "labels" (K,) and "scores" (K,): the highest peaks of its heat."""
        heat = outputs["heat"].sigmoid()
        heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
        rows, columns = heat.shape[2:]
        scores, places = heat.flatten(1).topk(min(MOST, heat[0].numel()))
        kind, y, x = places // (rows * columns), places // columns % rows, places % columns
        image = torch.arange(len(heat), device=heat.device)[:, None]
        size, offset = (outputs[name][image, :, y, x] for name in ("size", "offset"))
        centre = torch.stack([x, y], 2) + offset
        boxes = torch.cat([centre - size / 2, centre + size / 2], 2) * STRIDE
        edges = torch.tensor([columns, rows, columns, rows], device=heat.device) * STRIDE
        boxes = torch.minimum(boxes.clamp(min=0), edges)
        found = zip(boxes, kind, scores, scores > LEAST_SCORE, strict=True)
        return [{"boxes": b[likely], "labels": k[likely], "scores": s[likely]} for b, k, s, likely in found]


@torch.no_grad()
def _bumps(heat: Tensor, image: Tensor, labels: Tensor, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
    """What the heat should be: 1 at each centre (x, y), and around it a Gaussian as wide as the object is large; the higher where two meet."""
    across = torch.arange(heat.shape[3], device=heat.device) - x[:, None]
    down = torch.arange(heat.shape[2], device=heat.device) - y[:, None]
    spread = (size.mean(1) / 6).clamp(min=0.5)[:, None, None]
    bumps = (-(down[:, :, None] ** 2 + across[:, None, :] ** 2) / (2 * spread**2)).exp()
    maps = torch.zeros(heat.shape[0] * heat.shape[1], *heat.shape[2:], device=heat.device)
    place = (image * heat.shape[1] + labels)[:, None, None].expand_as(bumps)
    return maps.scatter_reduce(0, place, bumps, "amax").view_as(heat)
