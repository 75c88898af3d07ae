"""The contents of images as bytes for a hash: of tensors themselves, of files their SHA-256, which is kept in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ltcompile.data._files import Item
from ltcompile.data._listing import cached, counted, read_cached
from ltcompile.data._read import OnDisk
from ltcompile.paths import write_text

ROWS = 4096  # of a tensor at once


def contents(split: Any) -> Iterator[bytes]:
    """What identifies the images of a split, bit by bit; nothing of a split of the caller's own without `images`."""
    images = getattr(split, "images", None)
    if isinstance(images, Tensor):
        yield str(tuple(images.shape)).encode()
        yield from (part.contiguous().cpu().numpy().tobytes() for part in images.split(ROWS))
    elif isinstance(images, OnDisk):
        yield _of_items([item for row in images.rows for item in row])


def _of_items(items: Sequence[Item]) -> bytes:
    """The hash of what is in `items`, in order; they are read again where a name, a size or a time has changed."""
    size_and_time = functools.cache(lambda path: (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None)
    states = hashlib.sha256()
    for item in items:
        home = item if isinstance(item, Path) else Path(item.shard)
        states.update(f"{item}\0{size_and_time(home)}\0{getattr(getattr(item, 'table', None), 'fingerprint', '')}\n".encode())
    state = states.hexdigest()
    cache = cached(Path(state), "contents")
    kept = read_cached(cache, lambda found: found["kind"] == "contents" and isinstance(found["sha256"], str))
    if kept is None:
        digest = hashlib.sha256()
        with ThreadPoolExecutor() as threads:
            for found in counted(threads.map(_hash, items), "reading images"):
                digest.update(found)
        kept = {"kind": "contents", "sha256": digest.hexdigest()}
        write_text(cache, json.dumps(kept))
    return str(kept["sha256"]).encode()


def _hash(item: Item) -> bytes:
    try:
        if not isinstance(item, Path):
            return hashlib.sha256(item.read()).digest()
        with item.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except Exception as error:  # it cannot be decoded later either, which is reported or skipped then
        return type(error).__name__.encode()
