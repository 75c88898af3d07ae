"""Semantic segmentation: a class for every pixel, judged by the mean intersection over union of the classes that occur."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile import ranks
from ltcompile.core.pictures import Answer, Mark, to_overlay
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Batch, Loss, Metric, Part, Score, Shard, Teacher
from ltcompile.data import Dataset
from ltcompile.data._pairs import IGNORED
from ltcompile.tasks._of_data import DataTask
from ltcompile.training import call, in_fp32, predictions
from ltcompile.training.loss import cross_entropy

BATCH = 32  # of an evaluation
DRAWS = 4  # maps drawn for each image
MOST_NAMED = 12  # classes named in a report's picture


class Segmentation(DataTask):
    """Images with a map of classes each.

    Networks give scores (N, classes, h, w), or a dict that has them as "out"; smaller maps are enlarged. Pixels of class 255 count nowhere.
    """

    metric, annotation = Metric("mIoU"), "masks"

    def __init__(self, data: Dataset) -> None:
        super().__init__(data)
        named = data.description.class_names
        names = ("background", *named) if "boxes" in data.annotations else named
        self.description = replace(data.description, task="segmentation", class_names=names)

    def batches(
        self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0, shard: Shard = EVERYTHING
    ) -> Iterator[Batch]:
        for images, targets in super().batches(part, size, device, recipe, seed, shard):
            yield images, targets["masks"]

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        """Cross-entropy, the mean over pixels."""
        images, masks = batch
        scores = _scores(in_fp32(call(model, images)), masks)
        taught = _scores(teacher(images), masks) if teacher is not None else None
        return Loss(cross_entropy(scores, masks, recipe, taught, IGNORED))

    def curvature_losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Tensor]:
        """Cross-entropies with classes drawn pixel by pixel. Divided by the root of the pixels, their squared gradients add up to the mean's."""
        scores = _scores(call(model, batch[0]), batch[1])
        pixels = scores.movedim(1, -1).flatten(0, -2)
        shares = pixels.detach().double().softmax(1).cpu()
        for drawn in torch.multinomial(shares, DRAWS, replacement=True, generator=rng).T:
            yield F.cross_entropy(pixels, drawn.to(pixels.device), reduction="sum") / scores[0, 0].numel() ** 0.5

    def answers(self, model: nn.Module | None, part: Part, count: int, device: torch.device) -> list[Answer]:
        """The map of classes over the image; the background stays clear."""
        batch = next(iter(self.batches(part, count, device)))
        maps = batch[1] if model is None else _scores(next(predictions(model, [batch]))[0], batch[1]).argmax(1)
        names = self.description.class_names
        clear = {IGNORED, *(k for k, name in enumerate(names) if name == "background")}
        return [
            Answer(
                over=to_overlay(found, clear),
                marks=tuple(Mark(names[k], k) for k in found.unique().tolist() if k not in clear)[:MOST_NAMED],
            )
            for found in maps.cpu()
        ]

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """Intersection over union of each class over all pixels of the part, averaged over the classes that occur."""
        classes, rows = self.description.classes, []
        for outputs, masks in predictions(model, self.evaluation_batches(part, BATCH, device)):
            scores, counted = _scores(outputs, masks), masks != IGNORED
            found = classes * masks[counted] + scores.argmax(1)[counted]
            loss = cross_entropy(scores, masks, ignored=IGNORED).item() * len(masks)
            rows.append((loss, len(masks), torch.bincount(found, minlength=classes**2).view(classes, classes).cpu()))
        losses, counts, each = zip(*ranks.gathered(rows), strict=True)
        pairs = torch.stack(each).sum(0)
        union = pairs.sum(0) + pairs.sum(1) - pairs.diag()
        return Score((pairs.diag() / union)[union > 0].double().mean().item(), sum(losses) / sum(counts))


def _scores(outputs: Any, masks: Tensor) -> Tensor:
    """The scores (N, classes, H, W) in what a network gives, as large as the maps."""
    scores: Tensor = outputs["out"] if isinstance(outputs, Mapping) else outputs
    if scores.shape[-2:] == masks.shape[-2:]:
        return scores
    return F.interpolate(scores, masks.shape[-2:], mode="bilinear")


TASK, MODEL, DATA = Segmentation, "unet", "scenes"
