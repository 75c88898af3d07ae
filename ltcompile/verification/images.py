"""Test images from a .npz file: plain arrays, and no more memory than the file's length justifies."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcompile.core.fields import short
from ltcompile.core.tensors import check_is_file
from ltcompile.errors import InvalidData, InvalidFile
from ltcompile.verification.network import Array

Labels = NDArray[np.integer[Any]]
MAX_EXPANSION = 200  # times the length of the file: images that are mostly background compress to a hundredth
HINT = "write it with np.savez(FILE, images=..., labels=...)"


def read_arrays(path: Path, hint: str) -> dict[str, NDArray[Any]]:
    """All arrays in a .npz file. Raises InvalidFile where it is missing, not such a file, or would expand to far more than its length."""
    check_is_file(path, ".npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            expanded = sum(entry.file_size for entry in archive.infolist())
        if expanded > MAX_EXPANSION * path.stat().st_size:
            raise InvalidFile(f"{path} would expand to {expanded:,} bytes; {hint}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except InvalidFile:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types for a broken archive
        raise InvalidFile(f"{path} cannot be read as .npz: {str(error) or type(error).__name__}; {hint}") from error


def read_images(path: Path, shape: tuple[int, ...], classes: int) -> tuple[Array, Labels]:
    """The arrays `images` (N, C, H, W) float32, ready for the network, and `labels` (N,) in `path`.

    Raises:
        InvalidFile: it is missing, or not a .npz file. InvalidData: its arrays are missing, or of wrong shapes, types or values.
    """
    arrays = read_arrays(path, HINT)
    if not {"images", "labels"} <= arrays.keys():
        raise InvalidData(f"{path} lacks images or labels; {HINT}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.float32 or images.shape[1:] != shape or images.ndim != 4 or not len(images):
        raise InvalidData(f"{path}: images are {images.dtype} {short(images.shape)}, and must be float32 (N, {', '.join(map(str, shape))})")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InvalidData(f"{path}: labels are {labels.dtype} {short(labels.shape)}, and must be whole numbers ({len(images)},)")
    if not np.isfinite(images).all() or labels.min() < 0 or labels.max() >= classes:
        raise InvalidData(f"{path}: images must be finite, and labels lie between 0 and {classes - 1}; write it again")
    return np.ascontiguousarray(images), labels
