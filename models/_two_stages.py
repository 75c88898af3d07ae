"""torchvision's Faster R-CNN as it is deployed: one graph for any batch, whose outputs have a fixed shape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class TwoStages(nn.Module):
    """(N, 3, H, W) -> for each of K proposals: `proposals` (N, K, 4) in pixels, `class_logits` (N, K, classes + 1) and `box_regression`
    (N, K, 4 (classes + 1)); class 0 is the background.

    Proposals are in the order of their scores; where suppression leaves fewer than K, the others are empty boxes of zeros. With targets, the
    forward gives torchvision's losses instead.

    Args:
        network: a Faster R-CNN, whose own code computes losses, and detections from these outputs.
        image_size: (height, width) of all images.
    """

    def __init__(self, network: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.image_size = network, image_size

    def forward(self, images: Any, targets: Any = None) -> dict[str, Tensor]:
        if targets is not None or self.training:
            losses: dict[str, Tensor] = self.network(images, targets)
            return losses
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        features = self.network.backbone(images)
        features = {"0": features} if isinstance(features, Tensor) else features
        proposals = self._proposals(images, list(features.values()))
        heads = self.network.roi_heads
        found = heads.box_predictor(heads.box_head(self._pooled(features, proposals)))
        logits, regression = (value.unflatten(0, proposals.shape[:2]) for value in found)
        return {"proposals": proposals, "class_logits": logits, "box_regression": regression}

    def _proposals(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """The boxes (N, K, 4) that the first stage finds: the best of each level, without those that overlap a better one."""
        from torchvision.models.detection.image_list import ImageList
        from torchvision.models.detection.rpn import concat_box_prediction_layers
        from torchvision.ops import boxes as box_ops

        rpn, count = self.network.rpn, images.shape[0]
        scores, deltas = rpn.head(features)
        sizes = [score[0].numel() for score in scores]
        scores, deltas = (_wide(value) for value in concat_box_prediction_layers(scores, deltas))
        anchors = rpn.anchor_generator(ImageList(images[:1], [self.image_size]), [_wide(feature) for feature in features])[0]
        boxes = rpn.box_coder.decode_single(deltas, anchors.repeat(count, 1)).view(count, -1, 4)
        scores = scores.view(count, -1)
        best = [score.topk(min(rpn.pre_nms_top_n(), score.shape[1])).indices for score in scores.split(sizes, 1)]
        levels = torch.cat([torch.full((each.shape[1],), level, device=boxes.device) for level, each in enumerate(best)])
        rows = torch.cat([each + sum(sizes[:level]) for level, each in enumerate(best)], 1)
        boxes = box_ops.clip_boxes_to_image(boxes.gather(1, rows[..., None].expand(-1, -1, 4)), self.image_size)
        scores = scores.gather(1, rows)
        large = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= rpn.min_size
        scores = scores.where(large & (scores.sigmoid() >= rpn.score_thresh), -torch.inf)
        groups = torch.arange(count, device=boxes.device)[:, None] * len(sizes) + levels  # boxes of two never overlap
        apart = (boxes + groups[..., None] * (max(self.image_size) + 1.0)).view(-1, 4)
        kept = box_ops.nms(apart, scores.view(-1), rpn.nms_thresh)
        left = torch.full_like(scores, -torch.inf).view(-1).index_copy(0, kept, scores.view(-1)[kept]).view_as(scores)
        scores, rows = left.topk(min(rpn.post_nms_top_n(), left.shape[1]))
        found: Tensor = boxes.gather(1, rows[..., None].expand(-1, -1, 4)) * scores.isfinite()[..., None]
        return found

    def _pooled(self, features: dict[str, Tensor], proposals: Tensor) -> Tensor:
        """The features (N K, C, height, width) of all proposals, each from the level of its size."""
        from torchvision.ops import roi_align
        from torchvision.ops.poolers import initLevelMapper

        pool, boxes = self.network.roi_heads.box_roi_pool, proposals.flatten(0, 1)
        used = [value for name, value in features.items() if name in pool.featmap_names]
        images = torch.arange(proposals.shape[0], device=boxes.device)[:, None].expand(proposals.shape[:2])
        regions = torch.cat([images.reshape(-1, 1).to(boxes), boxes], 1)
        halvings = [round(math.log2(self.image_size[0] / value.shape[-2])) for value in used]
        levels = initLevelMapper(halvings[0], halvings[-1], pool.canonical_scale, pool.canonical_level)([boxes])
        pooled: Tensor = used[0].new_zeros(boxes.shape[0], used[0].shape[1], *pool.output_size)
        for level, (value, times) in enumerate(zip(used, halvings, strict=True)):
            there = torch.where(levels == level)[0]
            each = roi_align(_wide(value), regions[there], pool.output_size, 0.5**times, pool.sampling_ratio)
            pooled = pooled.index_copy(0, there, each.to(value))
        return pooled

    @torch.no_grad()
    def detect(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Of each image "boxes" (K, 4), "labels" (K,) and "scores" (K,), by torchvision's own thresholds and suppression."""
        real = [boxes[:, 2] > boxes[:, 0] for boxes in outputs["proposals"]]
        logits, regression, proposals = (
            [value[rows] for value, rows in zip(outputs[name], real, strict=True)]
            for name in ("class_logits", "box_regression", "proposals")
        )
        sizes = [self.image_size] * len(real)
        found = self.network.roi_heads.postprocess_detections(torch.cat(logits), torch.cat(regression), proposals, sizes)
        return [{"boxes": boxes, "labels": labels - 1, "scores": scores} for boxes, scores, labels in zip(*found, strict=True)]


def _wide(value: Tensor) -> Tensor:
    """In fp32 or wider: places of pixels need more than half precision."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
