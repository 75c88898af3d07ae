"""A tiny detector of two stages."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models import detection

from ltcompile.models._detection import _Prepared


def faster_rcnn(levels: int = 1) -> Any:
    """torchvision's, for ten classes; its heads take few proposals, from `levels` maps of features."""
    backbone: Any = Pyramid(levels)
    few = {f"rpn_{when}_nms_top_n_{mode}": 16 for when in ("pre", "post") for mode in ("train", "test")}
    network = detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(((16, 24),) * levels, ((1.0,),) * levels),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign([str(level) for level in range(levels)], 4, 1, canonical_scale=20),
        box_head=detection.faster_rcnn.TwoMLPHead(16 * 16, 32),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, 11),
        **few,
    )
    network.transform = _Prepared()
    return network


class Pyramid(nn.Module):
    """Maps at an eighth of the image's sides, at half of those, and so on, by name."""

    out_channels = 16

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU())
        self.steps = nn.ModuleList(nn.Conv2d(16, 16, 3, 2, 1) for _ in range(levels - 1))

    def forward(self, images: Any) -> dict[str, Any]:
        found = [self.stem(images)]
        for step in self.steps:
            found.append(step(found[-1]).relu())
        return {str(level): value for level, value in enumerate(found)}
