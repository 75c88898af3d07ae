"""Arrays that two processes pass to each other in memory that both have mapped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ltcompile.runtimes._base import Array, Feeds

ALIGNED = 64  # bytes


class Layout(NamedTuple):
    """Where arrays lie: name, dtype, shape and first byte of each. `form` is what they were handed over as: "array", "list" or "dict"."""

    form: str
    arrays: list[tuple[str, str, tuple[int, ...], int]]


class SharedMemory:
    """An open file without a name that grows with what is written. The processes write in turns, each from the first byte on."""

    def __init__(self, file: int) -> None:
        self._file, self._map = file, mmap.mmap(-1, 1)

    def write(self, feeds: Feeds) -> Layout:
        """Copy arrays to the memory."""
        form = "dict" if isinstance(feeds, Mapping) else "array" if isinstance(feeds, np.ndarray) else "list"
        named = dict(feeds) if isinstance(feeds, Mapping) else {str(i): a for i, a in enumerate([feeds] if form == "array" else feeds)}
        entries, end = [], 0
        for name, array in named.items():
            entries.append((name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // ALIGNED) * ALIGNED
        if end > os.fstat(self._file).st_size:
            os.ftruncate(self._file, end)
        for view, array in zip(self._views(entries), named.values(), strict=True):
            view[...] = array
        return Layout(form, entries)

    def read(self, layout: Layout) -> Feeds:
        """Copies of the arrays, in the form in which they were handed over."""
        arrays = [np.array(view) for view in self._views(layout.arrays)]
        if layout.form == "dict":
            return {name: array for (name, *_), array in zip(layout.arrays, arrays, strict=True)}
        return arrays[0] if layout.form == "array" else arrays

    def _views(self, entries: list[tuple[str, str, tuple[int, ...], int]]) -> list[Array]:
        size = os.fstat(self._file).st_size
        if size > len(self._map):
            self._map = mmap.mmap(self._file, size)
        return [
            np.ndarray(shape, dtype, self._map, start) if 0 not in shape else np.empty(shape, dtype) for _, dtype, shape, start in entries
        ]
