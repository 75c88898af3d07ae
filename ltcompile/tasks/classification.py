"""Image classification: cross-entropy, and the share of correct answers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile import ranks
from ltcompile.core.pictures import Answer, Mark
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import ACCURACY, Batch, Loss, Metric, Part, Score, Teacher
from ltcompile.errors import InvalidModel
from ltcompile.tasks._of_data import DataTask
from ltcompile.training import in_fp32, predictions
from ltcompile.training.loss import cross_entropy

BATCH = 256  # of an evaluation
DRAWS = 4  # labels drawn for each image


class Classification(DataTask):
    """A data set of labelled images."""

    metric: Metric = ACCURACY

    def loss(self, model: nn.Module, batch: Batch, recipe: Recipe | None = None, teacher: Teacher | None = None) -> Loss:
        images, labels = batch
        if recipe is not None and recipe.mixup:
            return _mixed(model, images, labels, recipe, teacher)
        logits, taught = in_fp32(model(images)), teacher(images) if teacher is not None else None
        return Loss(cross_entropy(logits, labels, recipe, taught), (logits.detach().argmax(1) == labels).sum())

    def curvature_losses(self, model: nn.Module, batch: Batch, rng: torch.Generator) -> Iterator[Tensor]:
        """Cross-entropies with labels drawn from the network's own softmax: the Gauss-Newton-Bartlett estimate."""
        logits = model(batch[0])
        for labels in _drawn_labels(logits, rng):
            yield F.cross_entropy(logits, labels, reduction="sum")

    def answers(self, model: nn.Module | None, part: Part, count: int, device: torch.device) -> list[Answer]:
        """The class, and of a network its probability."""
        batch = next(iter(self.batches(part, count, device)))
        names = self.description.class_names
        if model is None:
            return [Answer(marks=(Mark(names[label], label),)) for label in batch[1].tolist()]
        shares, labels = next(predictions(model, [batch]))[0].softmax(1).max(1)
        return [Answer(marks=(Mark(names[k], k, round(p, 4)),)) for k, p in zip(labels.tolist(), shares.tolist(), strict=True)]

    def evaluate(self, model: nn.Module, part: Part, device: torch.device) -> Score:
        """Share of correct answers, mean cross-entropy, and which images were correct."""
        pairs = predictions(model, self.evaluation_batches(part, BATCH, device))
        rows = [(F.cross_entropy(logits, labels, reduction="sum").item(), (logits.argmax(1) == labels).cpu()) for logits, labels in pairs]
        losses, correct = zip(*ranks.gathered(rows), strict=True)
        found = torch.cat(correct)
        bits = "".join("1" if each else "0" for each in found.tolist())
        return Score(found.double().mean().item(), sum(losses) / len(found), f"{int(bits, 2):0{(len(bits) + 3) // 4}x}")


def _mixed(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, teacher: Teacher | None) -> Loss:
    """The loss of mixup: images are mixed in pairs, x = a x1 + (1 - a) x2, and so is the loss; an answer is correct for the larger share."""
    share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
    order = torch.randperm(len(images)).to(images.device)
    share, mixed = max(share, 1 - share), max(share, 1 - share) * images + min(share, 1 - share) * images[order]
    logits, taught = in_fp32(model(mixed)), teacher(mixed) if teacher is not None else None
    ours, theirs = (cross_entropy(logits, one, recipe, taught) for one in (labels, labels[order]))
    return Loss(share * ours + (1 - share) * theirs, (logits.detach().argmax(1) == labels).sum())


@torch.no_grad()
def _drawn_labels(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Labels with the probabilities that the logits (N, classes) give them: (DRAWS, N), on their device.

    Raises InvalidModel where logits are not finite.
    """
    if not logits.isfinite().all():
        raise InvalidModel("the network's logits are not finite, so it has no curvature: train it again, with a smaller learning rate")
    shares = logits.double().softmax(1).cpu()  # the generator is the CPU's: one stream for every device
    return torch.multinomial(shares, DRAWS, replacement=True, generator=rng).T.to(logits.device)


TASK, MODEL, DATA = Classification, "vgg16", "digits"
