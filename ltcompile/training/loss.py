"""What classifications of images and pixels minimise: cross-entropy with the labels, and with a teacher's answers where there is one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ltcompile.core.recipe import Recipe

TEMPERATURE = 4.0


def cross_entropy(
    logits: Tensor, labels: Tensor, recipe: Recipe | None = None, taught: Tensor | None = None, ignored: int = -100
) -> Tensor:
    """(1 - a) CE(student, labels) + a T^2 KL(softmax(teacher / T) || softmax(student / T)), T = 4, a = `recipe.distill`.

    Hinton et al. 2015 (arXiv:1503.02531); T^2 keeps the gradient's magnitude whatever the temperature. Logits of the student and
    the teacher's `taught` are (N, classes), labels (N,); the mean over images. Maps (N, classes, H, W) with labels (N, H, W)
    are as many images as they have pixels, without those of the label `ignored`. Without a teacher it is the cross-entropy alone, and without a
    recipe it is not smoothed.
    """
    smoothing = recipe.label_smoothing if recipe else 0.0
    if labels.dim() == 1:
        hard = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    else:
        counted = labels != ignored
        hard = F.cross_entropy(logits, labels, ignore_index=ignored, label_smoothing=smoothing, reduction="sum") / counted.sum().clamp_min(
            1
        )
    if taught is None or recipe is None:
        return hard
    if labels.dim() > 1:
        logits, taught = (x.movedim(1, -1)[counted] for x in (logits, taught))
    student, teacher = (F.log_softmax(x / TEMPERATURE, 1) for x in (logits, taught))
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - recipe.distill) * hard + recipe.distill * soft
