"""torchvision's detectors for images of any size, of which nothing is downloaded.

Those of one stage (SSD, SSDlite, FCOS, RetinaNet) become a `OneStage`, whose `forward` is all that is deployed: images in, tensors of a fixed shape
out. Faster R-CNN becomes a `TwoStages`, which chooses its proposals in the graph.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.recipe import Recipe
from ltcompile.errors import InvalidModel
from ltcompile.models._two_stages import TwoStages

RECIPE = Recipe(
    epochs=26, batch=16, lr=0.01, weight_decay=1e-4, schedule="cosine", warmup_epochs=1
)  # torchvision's reference, but for cosine
TWO_STAGES = "fasterrcnn"


@functools.cache
def names() -> list[str]:
    """Those that find boxes alone."""
    import torchvision

    found: list[str] = torchvision.models.list_models(module=torchvision.models.detection)
    return [name for name in found if not name.startswith(("maskrcnn", "keypointrcnn"))]


def build(name: str, classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Raises InvalidModel where the images are too small for it, or not of three channels."""
    import torchvision

    if in_channels != 3:
        raise InvalidModel(f"torchvision:{name} takes 3 colour channels, the data has {in_channels}; choose another model or data set")
    background = 0 if name.startswith(("fcos", "retinanet")) else 1  # the others have a class for it, number 0
    network = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes + max(background, name.startswith(TWO_STAGES))
    )
    return deployed(network, image_size)


def deployed(network: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    """See `ltcompile.models.detector`."""
    from torchvision.models import detection as known
    from torchvision.models.detection.ssd import SSD

    kinds = (SSD, known.FCOS, known.RetinaNet, known.FasterRCNN)
    if not isinstance(network, kinds) or isinstance(network, known.MaskRCNN | known.KeypointRCNN):
        raise InvalidModel(f"{type(network).__name__} is not torchvision's SSD, FCOS, RetinaNet or Faster R-CNN")
    network = copy.deepcopy(network)
    network.transform = _Prepared()
    if isinstance(network, known.FasterRCNN):
        return TwoStages(network, image_size)
    return OneStage(network, int(isinstance(network, SSD)), image_size)


class _Prepared(nn.Module):
    """In the place of torchvision's transform: the data has normalised and resized its images."""

    def forward(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        tensors = images if isinstance(images, Tensor) else torch.stack(list(images))
        return ImageList(tensors, [(tensors.shape[-2], tensors.shape[-1])] * len(tensors)), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        return result


class OneStage(nn.Module):
    """(N, 3, H, W) -> for each of A anchors: `cls_logits` (N, A, classes), `bbox_regression` (N, A, 4) and what else the head gives.

    Args:
        network: an SSD, FCOS or RetinaNet, whose own code computes losses and detections from these outputs.
        background: the number of classes in front of the data's own.
        image_size: (height, width) of all images.
    """

    def __init__(self, network: Any, background: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.background, self.image_size = network, background, image_size
        network.eval()
        with torch.no_grad():
            found = self._features(torch.zeros(1, 3, *image_size))
        self.cells = [tuple(feature.shape[-2:]) for feature in found]
        network.train()

    def _features(self, images: Tensor) -> list[Tensor]:
        found = self.network.backbone(images)
        return [found] if isinstance(found, Tensor) else list(found.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.network.head(self._features(images))
        return found

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any]) -> Tensor:
        """The sum of torchvision's losses. `targets` has "boxes", a list of (K, 4) in pixels, and "labels", a list of (K,)."""
        pairs = zip(targets["boxes"], targets["labels"], strict=True)
        found = self._replayed(outputs, True, [{"boxes": boxes, "labels": labels + self.background} for boxes, labels in pairs])
        return torch.stack(list(found.values())).sum()

    @torch.no_grad()
    def detect(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Of each image "boxes" (K, 4), "labels" (K,) and "scores" (K,), by torchvision's own thresholds and suppression."""
        return [{**found, "labels": found["labels"] - self.background} for found in self._replayed(outputs, False)]

    def _replayed(self, outputs: dict[str, Tensor], training: bool, *targets: Any) -> Any:
        """What the network makes of the outputs of its head."""
        some = outputs["cls_logits"]
        empty = some.new_zeros(()).expand
        features = OrderedDict((str(i), empty(len(some), 1, *cells)) for i, cells in enumerate(self.cells))
        network = copy.copy(self.network)
        network._modules = {
            **self.network._modules,
            "backbone": _giving(self.network.backbone, lambda *_: features),
            "head": _giving(self.network.head, lambda *_: outputs),
        }
        network.training = training
        return network(empty(len(some), 3, *self.image_size), *targets)


def _giving(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A shallow copy of `module` with another forward."""
    changed: Any = copy.copy(module)
    changed.forward = forward
    return changed  # type: ignore[no-any-return]
