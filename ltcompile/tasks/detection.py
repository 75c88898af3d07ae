"""Object detection: the mAP of COCO.

A network is one of two kinds. Either `model(images)` gives tensors, `model.loss(outputs, targets)` a number, and `model.detect(outputs)` a list of
{"boxes", "labels", "scores"}: then all that is deployed has fixed shapes. Or it is as torchvision's: in training mode `model(images, targets)` gives a
dict of losses, else `model(images)` that list, with labels from 1 on, or tensors of which `model.detect(outputs)` makes a list with labels from 0 on.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from ltcompile import ranks
from ltcompile.core.pictures import Answer, Box, Mark
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import seeded
from ltcompile.core.task import EVERYTHING, Batch, Loss, Metric, Part, Score, Shard, Teacher
from ltcompile.data import Dataset
from ltcompile.errors import InvalidModel, InvalidSetting
from ltcompile.graph.wrappers import unwrap
from ltcompile.tasks._average_precision import mean_average_precision
from ltcompile.tasks._of_data import DataTask
from ltcompile.training import in_fp32, predictions

BATCH = 32  # of an evaluation
MOST_SHOWN, LEAST_SHOWN = 12, 0.3  # boxes of an image in a report, and their score
ACTIVE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # what training mode changes besides the outputs


class Detection(DataTask):
    """A data set of images with boxes. Raises InvalidData for another one."""

    metric, annotation = Metric("mAP"), "boxes"

    def __init__(self, data: Dataset) -> None:
        super().__init__(data)
        self.description = replace(data.description, task="detection")

    def _truth(self, split: Any) -> Iterator[bytes]:
        return (objects.boxes.numpy().tobytes() + objects.labels.numpy().tobytes() for objects in split.objects)

    def adapt(self, recipe: Recipe) -> Recipe:
        """Shifts of at most an eighth of an image, and mirrored images where the data allows it."""
        return replace(recipe, flip=self.data.flip, crop_pixels=min(self.data.description.shape[1:]) // 8)

    def batches(
        self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0, shard: Shard = EVERYTHING
    ) -> Iterator[Batch]:
        """Images (N, C, H, W), and "boxes" and "labels" of their objects, a list of each."""
        for images, targets in super().batches(part, size, device, recipe, seed, shard):
            yield images, {"boxes": targets["boxes"], "labels": targets["labels"]}

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        """The network's own; with a teacher, also the mean squared difference to each of its outputs."""
        images, targets = batch
        network = unwrap(model)
        if trains_by_losses(network):
            if teacher is not None and recipe is not None and recipe.distill:
                raise InvalidSetting(f"distill={recipe.distill} needs outputs in training; a network with losses as outputs has none")
            return Loss(_losses(model, images, targets))
        if not hasattr(network, "loss"):
            raise _not_a_detector(network)
        outputs = in_fp32(model(images))
        hard: Tensor = network.loss(outputs, targets)  # type: ignore[operator]
        if teacher is None or recipe is None or not recipe.distill:
            return Loss(hard)
        taught = teacher(images)
        soft = torch.stack([F.mse_loss(outputs[name], taught[name]) for name in outputs]).sum()
        return Loss((1 - recipe.distill) * hard + recipe.distill * soft)

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """mAP, and the mean loss over batches; nan where a network only detects, as a file of one that trains by losses."""
        rows = []
        for outputs, targets in predictions(model, self.evaluation_batches(part, BATCH, device)):
            truth = [{"boxes": b, "labels": k} for b, k in zip(targets["boxes"], targets["labels"], strict=True)]
            loss = float(model.loss(outputs, targets)) if hasattr(model, "loss") else math.nan  # type: ignore[operator]
            rows.append(tree_map_only(Tensor, Tensor.cpu, (detections(model, outputs), truth, loss)))
        boxes, truths, losses = zip(*ranks.gathered(rows), strict=True)
        if trains_by_losses(model):
            with torch.no_grad(), seeded(0):
                losses = tuple(float(_losses(model, *batch)) for batch in self.batches(part, BATCH, device))
        value = mean_average_precision(list(chain(*boxes)), list(chain(*truths)), self.description.classes)
        return Score(value, sum(losses) / len(losses))

    def answers(self, model: nn.Module | None, part: Part, count: int, device: torch.device) -> list[Answer]:
        """Boxes: of a network those with a score of 0.3 or more, the highest twelve."""
        batch = next(iter(self.batches(part, count, device)))
        if model is None:
            return [self._boxes(b, k) for b, k in zip(batch[1]["boxes"], batch[1]["labels"], strict=True)]
        found = [each for outputs, _ in predictions(model, [batch]) for each in detections(model, outputs)]
        return [self._boxes(each["boxes"], each["labels"], each["scores"]) for each in found]

    def _boxes(self, boxes: Tensor, labels: Tensor, scores: Tensor | None = None) -> Answer:
        """Boxes (K, 4), labels (K,) and perhaps scores (K,) as an answer."""
        order = (
            range(len(boxes))
            if scores is None
            else [i for i in scores.argsort(descending=True)[:MOST_SHOWN].tolist() if scores[i] >= LEAST_SHOWN]
        )
        height, width = self.description.shape[1:]
        edges = (boxes.cpu().double() / torch.tensor([width, height, width, height])).clamp(0, 1).tolist()
        names = self.description.class_names
        return Answer(
            tuple(
                Box(Mark(names[k := int(labels[i])], k, None if scores is None else round(float(scores[i]), 4)), tuple(edges[i]))
                for i in order
            )
        )


def trains_by_losses(model: nn.Module) -> bool:
    """Whether a network gives its losses in training mode, as torchvision's."""
    return "targets" in inspect.signature(model.forward).parameters


def _not_a_detector(model: nn.Module) -> InvalidModel:
    return InvalidModel(
        f"{type(model).__name__} is not a detector: it needs loss(outputs, targets) and detect(outputs), or forward(images, targets) as torchvision's"
    )


def detections(model: nn.Module, outputs: Any) -> list[dict[str, Tensor]]:
    """Of each image "boxes" (K, 4) as x0, y0, x1, y1 in pixels, "labels" (K,) from 0 on and "scores" (K,), of a network's outputs."""
    if hasattr(model, "detect"):
        found: list[dict[str, Tensor]] = model.detect(outputs)  # type: ignore[operator]
        return found
    if not trains_by_losses(model):
        raise _not_a_detector(model)
    return [{**each, "labels": each["labels"] - 1} for each in outputs]


def _losses(model: nn.Module, images: Tensor, targets: Mapping[str, list[Tensor]]) -> Tensor:
    """The sum of the losses of a network as torchvision's, which it gives in training mode alone."""
    pairs = zip(targets["boxes"], targets["labels"], strict=True)
    with _training_outputs(model):
        found = model(list(images), [{"boxes": boxes, "labels": labels + 1} for boxes, labels in pairs])
    return torch.stack(list(found.values())).sum()


@contextlib.contextmanager
def _training_outputs(model: nn.Module) -> Iterator[None]:
    """Training mode, but for batch norm and dropout where the network is in eval mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = module.training or not isinstance(module, ACTIVE)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


TASK, MODEL, DATA = Detection, "centernet", "scenes"
