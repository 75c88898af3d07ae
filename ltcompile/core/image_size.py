"""How large images are: one number for square ones, or height and width, in pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ltcompile.errors import InvalidSetting

ImageSize = int | Sequence[int]  # the side of square images, or (height, width)
SMALLEST, LARGEST = 1, 4096


def height_width(size: ImageSize) -> tuple[int, int]:
    """(height, width). Raises InvalidSetting where they are not whole numbers in 1..4096."""
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and SMALLEST <= n <= LARGEST for n in pair):
        raise InvalidSetting(f"an image size is a number of pixels or (height, width), each in {SMALLEST}..{LARGEST}, not {size!r}")
    return pair[0], pair[1]


def to_json(height: int, width: int) -> int | list[int]:
    """The size as files hold it: one number where the image is square, else [height, width]."""
    return height if height == width else [height, width]


def to_text(size: ImageSize) -> str:
    """The size as `parse` reads it: "32" or "32x48"."""
    height, width = height_width(size)
    return str(height) if height == width else f"{height}x{width}"


def parse(text: str) -> int | list[int]:
    """The size in "32" or "32x48" (height by width), as `to_json` gives it. Raises InvalidSetting."""
    found = re.fullmatch(r"([0-9]{1,6})(?:[xX]([0-9]{1,6}))?", text.strip())
    if found is None:
        raise InvalidSetting(f"image_size= takes a number of pixels, or HEIGHTxWIDTH as in 48x64, not {text!r}")
    return to_json(*height_width((int(found[1]), int(found[2] or found[1]))))
