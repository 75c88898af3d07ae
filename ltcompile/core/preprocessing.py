"""How images are made ready for a network: what its weights were trained on, and what therefore has to travel with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ltcompile.core.image_size import ImageSize, height_width
from ltcompile.core.records import Record
from ltcompile.errors import InvalidSetting

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing(Record):
    """The size of images in pixels (one number, or height and width), mean and deviation per channel of pixels scaled to 0..1, and how images are resized.

    Raises:
        InvalidSetting: a field outside its range.
    """

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise InvalidSetting(f"there must be as many deviations above 0 as means, not {self.std} for {self.mean}")
        height_width(self.image_size)
        if self.interpolation not in get_args(Interpolation):
            raise InvalidSetting(f"the interpolation must be one of {', '.join(get_args(Interpolation))}, not {self.interpolation!r}")
