"""Images that start programs, are bombs or are pipes are refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import MARK, PICKLES
from pictures import mnist_files, write_folder
from PIL import Image

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.errors import InvalidData


@pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
def test_images_start_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / MARK}\n")
    (bin_folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    images = write_folder(tmp_path / "images")
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (images / "class0" / "page.png").write_bytes((tmp_path / "page.eps").read_bytes())
    lt.load_data(f"imagefolder:{images}", image_size=8)
    assert not (tmp_path / MARK).exists()


def png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_images_that_are_bombs_or_pipes(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", each=30)
    (images / "class0" / "bomb.png").write_bytes(png(100_000, 100_000, bytes(1 << 20)))
    (images / "class0" / "short.png").write_bytes(png(100, 100, bytes(10)))
    os.mkfifo(images / "class0" / "pipe.png")
    with pytest.warns(Notice, match=r"2 of 92 images .* cannot be read: class0/bomb.png, class0/short.png"):
        lt.load_data(f"imagefolder:{images}", image_size=8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 2**31 - 1, 2**16, 2**16)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">I", 0x0FFF)),
        lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 40) + bytes([200] * 40)),
        lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes(3)),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b""),
    ],
)
def test_digits_that_lie(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    mnist_files(tmp_path)
    damage(tmp_path / "MNIST/raw")
    with pytest.raises(InvalidData, match=r"fetch|missing or corrupt"):
        lt.load_data("mnist", tmp_path, val_share=0.25)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickled_images_are_those_that_were_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """torchvision unpickles them, but only what has the published MD5 sum."""
    monkeypatch.chdir(tmp_path)
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
        for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
            (tmp_path / folder / part).write_bytes(PICKLES["reduce"]())
    with pytest.raises(InvalidData, match="missing or corrupt"):
        lt.load_data(name, tmp_path)
    assert not Path(MARK).exists()
