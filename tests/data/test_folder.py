"""Pairs of images in folders: what is wrong with them is said with the file and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_pairs import small_pairs, write_pairs

import ltcompile as lt
from ltcompile.core.recipe import Recipe
from ltcompile.core.streams import generator
from ltcompile.data._epochs import Moves
from ltcompile.errors import InvalidData

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "tiles", "masks")
    return tmp_path / "tiles"


def test_pairs_are_split_once_and_read_as_they_are(folder: Path) -> None:
    data = lt.load_data(f"folder:{folder}", val_share=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 2) and data.description.class_names == ("0", "1", "2")
    assert data.description.shape == (3, 16, 16) and data.description.task == "segmentation" and data.annotations == ("masks",)
    files = {Image.open(file).tobytes() for file in (folder / "masks").iterdir()}
    masks = torch.cat([next(iter(s.batches(12, CPU, None, 0)))[1]["masks"] for s in (data.train, data.val, data.test)])
    read = [mask.to(torch.uint8).numpy().tobytes() for mask in masks]
    assert {*read} == files and len(read) == 12


def test_parts_in_folders_and_names_in_a_file(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        write_pairs(tmp_path / part, "masks", count)
    (tmp_path / "classes.txt").write_text("nothing\nzero\none\n\n")
    data = lt.load_data(f"folder:{tmp_path}", image_size=8)
    assert [len(s) for s in (data.train, data.val, data.test)] == [6, 3, 2] and data.description.class_names == ("nothing", "zero", "one")
    assert data.example.shape == (2, 3, 8, 8)


def test_inputs_and_targets(tmp_path: Path) -> None:
    write_pairs(tmp_path, "images")
    data = lt.load_data(f"folder:{tmp_path}")
    images, targets = next(iter(data.val.batches(1, CPU, None, 0)))
    back = images * torch.tensor(data.description.std).view(3, 1, 1) + torch.tensor(data.description.mean).view(3, 1, 1)
    torch.testing.assert_close(back, targets["images"], rtol=0, atol=1e-3)
    assert data.description.out_channels == 3 == data.description.arguments["classes"] and data.description.class_names == ()


def test_pairs_move_together() -> None:
    """What enters from outside is of no class in a map, and black in both images."""
    recipe, split = Recipe(batch=16, crop_pixels=3, flip=True), small_pairs("images").train
    images, targets = next(iter(split.batches(16, CPU, recipe, 5)))
    rows = torch.randperm(len(split), generator=(rng := generator(5)))[:16]
    moves = Moves.draw(16, recipe, rng)
    black = torch.zeros(1)
    assert torch.equal(targets["images"], moves.of_images(split.pairs[1][rows].float() / 255, black))  # type: ignore[attr-defined]
    _, maps = next(iter(small_pairs("masks").train.batches(16, CPU, recipe, 5)))
    entered = moves.of_images(torch.ones(16, 1, 32, 32), black)[:, 0] == 0
    assert torch.equal(maps["masks"] == 255, entered) and entered.any() and images.shape == (16, 1, 32, 32)


def replace_file(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    Image.fromarray(pixels, mode).save(path)


def grey(value: int, side: int = 16) -> np.ndarray:
    return np.full((side, side), value, dtype=np.uint8)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no partner": (lambda f: (f / "masks/03.png").unlink(), r"1 files have no partner: images/03 has none in masks"),
    "two of a name": (lambda f: replace_file(f / "images/03.bmp", grey(0)), r"03\.png has the name of 03\.bmp|03\.bmp has the name"),
    "another size of a pair": (
        lambda f: replace_file(f / "masks/03.png", grey(0, 8)),
        r"images/03\.png has 16 pixels and .*masks/03\.png 8",
    ),
    "other sizes": (
        lambda f: [replace_file(f / kind / "03.png", grey(0, 8)) for kind in ("images", "masks")],
        r"0[0-9]\.png has 16 pixels, 03\.png 8; pass an image_size=",
    ),
    "a colour mask": (
        lambda f: replace_file(f / "masks/03.png", np.zeros((16, 16, 3), np.uint8)),
        r"masks/03\.png is a picture of mode RGB",
    ),
    "a broken mask": (lambda f: (f / "masks/03.png").write_bytes(b"none"), r"masks/03\.png is not a readable image"),
    "a broken image": (lambda f: (f / "images/03.png").write_bytes(b"none"), r"images/03\.png is not a readable image"),
    "a class too many": (
        lambda f: [(f / "classes.txt").write_text("a\nb\nc"), replace_file(f / "masks/03.png", grey(3))],
        r"03\.png holds class 3, and .*classes\.txt names 3 \(0 to 2\)",
    ),
    "one class": (lambda f: (f / "classes.txt").write_text("a"), r"classes\.txt names 1 classes"),
    "no text": (lambda f: (f / "classes.txt").write_bytes(b"\xff\xfe\xff"), r"classes\.txt cannot be read as text"),
    "no masks": (lambda f: (f / "masks").rename(f / "maps"), "has no folder masks; it must hold images and masks"),
    "no images": (lambda f: [file.unlink() for kind in ("images", "masks") for file in (f / kind).iterdir()], "images holds no image"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_said(folder: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(InvalidData, match=message):
        lt.load_data(f"folder:{folder}")


def test_a_palette_holds_numbers_and_255_is_no_class(folder: Path) -> None:
    image = Image.fromarray(grey(1), "L").convert("P")
    values = grey(2)
    values[0] = 255
    image = Image.fromarray(values, "P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(folder / "masks/03.png")
    data = lt.load_data(f"folder:{folder}")
    assert data.description.classes == 3
    with pytest.raises(InvalidData, match="there is no folder"):
        lt.load_data("folder:/nowhere")
