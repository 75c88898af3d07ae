"""Images as pixels: files, members of archives, rows of tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ltcompile.core.preprocessing import Interpolation
from ltcompile.errors import InvalidData

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # whatever a file is called: PIL would hand PostScript to another program


class Stored(Protocol):
    """An image that is not a file of its own; as text, where it is. `shard` is the file that holds it, "" where its rows are in no order."""

    @property
    def shard(self) -> str: ...
    def read(self) -> bytes: ...


Item = Path | Stored


def read_image(path: Item, read: Callable[[Image], T]) -> T:
    """What `read` takes from an opened image. Raises InvalidData where it cannot be read."""
    import PIL.Image

    try:
        with PIL.Image.open(path if isinstance(path, Path) else io.BytesIO(path.read()), formats=FORMATS) as image:
            return read(image)
    except Exception as error:  # PIL's readers raise anything
        raise InvalidData(f"{path} is not a readable image ({error}); repair or remove it") from error


def decode(path: Item, size: tuple[int, int], interpolation: Interpolation, stretch: bool = False) -> Tensor:
    """The middle of an image as uint8 (3, height, width), cut to that shape and resized; all of it where it is to `stretch`.

    Raises InvalidData.
    """
    from PIL import Image, ImageOps

    shape, method = size[::-1], Image.Resampling[interpolation.upper()]

    def read(image: Any) -> Tensor:
        colours = image.convert("RGB")
        pixels = np.array(colours.resize(shape, method) if stretch else ImageOps.fit(colours, shape, method))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    return read_image(path, read)


def decoded(item: Item, **how: Any) -> tuple[Tensor]:
    """As `decode`, a row of one tensor."""
    return (decode(item, **how),)


def shard_numbers(items: Sequence[Item]) -> Tensor | None:
    """The number of the shard that each of the items lies in (N,), from 0 on; None where they lie in none."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault("" if isinstance(item, Path) else item.shard, len(numbers)) for item in items]
    return torch.tensor(found) if numbers.keys() - {""} else None
