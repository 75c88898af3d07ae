"""What a network has to know of its task and of the images that it was made for; it travels with tickets and ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltcompile.core.image_size import to_json
from ltcompile.core.preprocessing import Interpolation
from ltcompile.core.records import Record
from ltcompile.errors import InvalidData


@dataclass(frozen=True)
class Description(Record):
    """What a network has to know of its data: names of the classes, shape (C, H, W) of an image, mean and deviation per channel.

    Networks get (pixels / 255 - mean) / std of images that were resized by `interpolation`. `task` is the name of a task. Where outputs are
    images there are no classes, and `out_channels` says how many channels they have. `skipped` is how many damaged images or shards were left out.
    """

    name: str
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    task: str = "classification"
    out_channels: int = 0
    skipped: int = 0

    def to_json(self) -> dict[str, Any]:
        """Without `skipped` where nothing was: the checksums of tickets stay what they were."""
        return {name: value for name, value in super().to_json().items() if name != "skipped" or value}

    def __post_init__(self) -> None:
        for name in ("class_names", "shape", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.task == "classification" and self.classes < 2:
            raise InvalidData(f"{self.name}: {self.classes} class is too few to learn from; there must be two at least")
        if (self.classes > 0) == (self.out_channels > 0) or self.out_channels < 0:
            raise InvalidData(f"{self.name}: {self.classes} classes and {self.out_channels} channels of outputs; there must be one of them")
        if (
            len(self.shape) != 3
            or min(self.shape) < 1
            or len(self.mean) != self.shape[0]
            or len(self.std) != self.shape[0]
            or min(self.std) <= 0
        ):
            raise InvalidData(f"{self.name}: mean and std do not fit images of shape {self.shape}")

    @property
    def arguments(self) -> dict[str, Any]:
        """What `build_model` takes for such data: classes, in_channels and image_size."""
        channels, height, width = self.shape
        return {"classes": self.classes or self.out_channels, "in_channels": channels, "image_size": to_json(height, width)}

    @property
    def classes(self) -> int:
        return len(self.class_names)
