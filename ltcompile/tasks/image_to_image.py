"""Image to image: denoising, restoration, translation; judged by the mean peak signal-to-noise ratio of the images, in dB."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile import ranks
from ltcompile.core.pictures import Answer, to_png
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import EVERYTHING, Batch, Loss, Metric, Part, Score, Shard, Teacher
from ltcompile.data import Dataset, DatasetOptions, scenes
from ltcompile.data._pairs import from_pairs
from ltcompile.errors import InvalidData
from ltcompile.tasks._of_data import DataTask
from ltcompile.training import call, in_fp32, predictions

NAMES = ("image-to-image",)
BATCH = 32  # of an evaluation
DRAWS = 4  # images drawn for each image
LEAST_ERROR = 1e-10  # of an image: 100 dB


class ImageToImage(DataTask):
    """Images with the image each that a network should make of it, in 0 to 1."""

    metric, annotation = Metric("PSNR", "dB", 1.0), "images"

    def batches(
        self, part: Part, size: int, device: torch.device, recipe: Recipe | None = None, seed: int = 0, shard: Shard = EVERYTHING
    ) -> Iterator[Batch]:
        for images, targets in super().batches(part, size, device, recipe, seed, shard):
            yield images, targets["images"]

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        """Mean squared error, to the target and, by the share `recipe.distill`, to the teacher's image."""
        made = in_fp32(call(model, batch[0]))
        hard = F.mse_loss(made, batch[1])
        if teacher is None or recipe is None:
            return Loss(hard)
        return Loss((1 - recipe.distill) * hard + recipe.distill * F.mse_loss(made, teacher(batch[0])))

    def curvature_losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Tensor]:
        """Squared errors to images drawn around the network's own, of the variance that makes their squared gradients the curvature."""
        made = call(model, batch[0])
        values = made[0].numel()
        for _ in range(DRAWS):
            noise = math.sqrt(values / 2) * torch.randn(made.shape, generator=rng, dtype=made.dtype).to(made.device)
            yield (made - (made.detach() + noise)).square().sum() / values

    def answers(self, model: nn.Module | None, part: Part, count: int, device: torch.device) -> list[Answer]:
        """The images, where they are grey or of three colours."""
        batch = next(iter(self.batches(part, count, device)))
        made = batch[1] if model is None else next(predictions(model, [batch]))[0]
        pixels = (255 * made.clamp(0, 1)).round().to(torch.uint8)
        return [Answer(over=to_png(image)) for image in pixels] if pixels.shape[1] in (1, 3) else []

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """10 log10(1 / mean squared error) of each image, cut to 0..1; the mean over images. The loss is the mean squared error without the cut."""
        rows = []
        for made, targets in predictions(model, self.evaluation_batches(part, BATCH, device)):
            found = ((each - targets).square().flatten(1).double().mean(1) for each in (made, made.clamp(0, 1)))
            rows.append(tuple(each.cpu() for each in found))
        losses, errors = zip(*ranks.gathered(rows), strict=True)
        decibels = -10 * torch.cat(errors).clamp_min(LEAST_ERROR).log10()
        values = tuple(round(each, 4) for each in decibels.tolist())
        return Score(decibels.mean().item(), torch.cat(losses).mean().item(), values=values)


def data(source: str, root: Path, options: DatasetOptions) -> Dataset | None:
    """The scenes with their noise, and without it; None for other sources, which `load_data` knows."""
    if source != "scenes":
        return None
    if (size := options.size(scenes.SIZE, scenes.SIZE)) != (scenes.SIZE, scenes.SIZE):
        raise InvalidData(f"scenes are {scenes.SIZE}x{scenes.SIZE} pixels, not {size[0]}x{size[1]}; leave the image size out")
    parts = {
        part: (scenes.as_pixels(scenes.draw(part, count)), scenes.as_pixels(scenes.draw(part, count, noise=0.0)))
        for part, count in scenes.COUNTS.items()
    }
    return from_pairs("scenes", [], parts, options, flip=False)


TASK, MODEL, DATA = ImageToImage, "unet", "scenes"
