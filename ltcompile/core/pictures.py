"""A few inputs with what should be answered, what the dense network answers, and what the small one does: pictures.json of a run folder."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ltcompile.core.fields import SchemaError
from ltcompile.core.records import Record
from ltcompile.core.result_file import FORMAT, read_result
from ltcompile.paths import write_json

if TYPE_CHECKING:
    from torch import Tensor

PNG = b"\x89PNG\r\n\x1a\n"
# White text shows on all of them.
COLOURS = ("#0b62a0", "#a6361c", "#00694c", "#7a3fa0", "#805300", "#9c1f5f", "#4a5f00", "#44508c", "#6b4a3a", "#00646b")


@dataclass(frozen=True)
class Mark(Record):
    """A class in a picture: its name, its number, which gives the colour, and how sure the network is of it (None: not known)."""

    name: str
    number: int
    score: float | None = None

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]


@dataclass(frozen=True)
class Box(Record):
    """Where something is, as shares of the image's width and height: left, top, right, bottom."""

    mark: Mark
    edges: tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer(Record):
    """What is answered to one image: boxes, a picture over the image (a PNG in base64, or ""), and the classes in it."""

    boxes: tuple[Box, ...] = ()
    over: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Picture(Record):
    """One input, `width` x `height` pixels (a PNG in base64), and the answers."""

    image: str
    width: int
    height: int
    truth: Answer
    dense: Answer
    small: Answer


@dataclass(frozen=True)
class _Pictures:
    pictures: list[Picture]


def to_png(pixels: Tensor) -> str:
    """uint8 (C, H, W), grey, RGB or RGBA, as a PNG in base64."""
    from PIL import Image

    array = pixels.cpu().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer := io.BytesIO(), "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def to_overlay(classes: Tensor, clear: Container[int]) -> str:
    """Classes (H, W) as a PNG of their colours, half transparent, and fully where a class is in `clear`."""
    import torch

    found = torch.zeros(4, *classes.shape, dtype=torch.uint8)
    for number in classes.unique().tolist():
        if number not in clear:
            colour = (*bytes.fromhex(COLOURS[number % len(COLOURS)][1:]), 150)
            found[:, classes == number] = torch.tensor(colour, dtype=torch.uint8)[:, None]
    return to_png(found)


def write_pictures(path: Path, pictures: list[Picture]) -> None:
    """Raises InvalidFile where it cannot be written."""
    write_json(path, {"kind": "pictures", "format": FORMAT, "pictures": [picture.to_json() for picture in pictures]})


def read_pictures(path: Path) -> list[Picture]:
    """The pictures of a run; none where it has no such file. Raises InvalidFile where the file is damaged."""
    if not path.is_file():
        return []
    found: _Pictures = read_result(path, {"pictures": _Pictures}, "`ltcompile find`", _check_all)
    return found.pictures


def _check_all(found: _Pictures) -> None:
    for i, picture in enumerate(found.pictures):
        _check(picture, f"pictures[{i}]")


def _check(picture: Picture, where: str) -> None:
    """Raises SchemaError for what is not an image, or lies outside of it."""
    if not (0 < picture.width <= 1 << 16 and 0 < picture.height <= 1 << 16):
        raise SchemaError(f"{where} has {picture.width}x{picture.height} pixels")
    for name, image in (("image", picture.image), *((n, a.over) for n, a in _answers(picture).items() if a.over)):
        try:
            decoded = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        if not decoded.startswith(PNG):
            raise SchemaError(f"{where}.{name} is not a PNG in base64")
    for name, answer in _answers(picture).items():
        for left, top, right, bottom in (box.edges for box in answer.boxes):
            if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
                raise SchemaError(f"{where}.{name} has a box outside of the image")
        if any(mark.number < 0 for mark in (*answer.marks, *(box.mark for box in answer.boxes))):
            raise SchemaError(f"{where}.{name} has a class below 0")


def _answers(picture: Picture) -> dict[str, Answer]:
    return {"truth": picture.truth, "dense": picture.dense, "small": picture.small}
