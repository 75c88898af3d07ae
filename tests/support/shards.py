"""Small images in tar shards and in parquet files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

EACH = 12


def png(seed: int, mode: str = "RGB") -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (10, 12, 3), dtype=np.uint8) if mode == "RGB" else rng.integers(0, 3, (10, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes], kind: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, kind) as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def samples(first: int, count: int = EACH, kind: str = "class") -> dict[str, bytes]:
    """The files of so many images with a "class", a "mask" or a "target" each."""
    found: dict[str, bytes] = {}
    for i in range(first, first + count):
        found |= {
            "class": {f"some/{i:03}.png": png(i), f"some/{i:03}.cls": b"%d\n" % (i % 3)},
            "mask": {f"some/{i:03}.png": png(i), f"some/{i:03}.mask.png": png(i, "L")},
            "target": {f"some/{i:03}.input.png": png(i), f"some/{i:03}.target.png": png(i + 1000)},
        }[kind]
    return found


def write_shards(root: Path, kind: str = "class", training: int = 2) -> str:
    parts = [*(f"train-{i}" for i in range(training)), "val-0", "test-0"]
    for i, part in enumerate(parts):
        write_tar(root / f"{part}.tar", samples(EACH * i, kind=kind))
    return f"{root}/{{{','.join(parts)}}}.tar"


def write_parquet(root: Path, files: int = 2, group: int = 5) -> Path:
    """The images of `write_shards`, those for training in so many files of row groups of `group` rows."""
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["0", "1", "2"]))
    numbers = {f"train-{i:05}-of-{files:05}": range(24 * i // files, 24 * (i + 1) // files) for i in range(files)}
    for part, found in {**numbers, "validation-00000": range(24, 36), "test-00000": range(36, 48)}.items():
        rows = {"image": [{"bytes": png(n), "path": None} for n in found], "label": [n % 3 for n in found]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{part}.parquet", batch_size=group)
    return root
