"""Layers in bf16 and on integers by AMX (include/amx.h): whether this process may use it, and in which tiles."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltcompile.engine.cpu.code import Buffer, Convolution
from ltcompile.engine.cpu.tiles import MOST, WEIGHT_LANES, Geometry, Tiling

ROWS = 16  # of a tile, of 64 bytes each
LEAST_STEPS, LIKELY_STEPS = 4, 8  # quads or pairs of channels, and pixels of a tile, from which AMX may be, and is likely, faster
MOST_COLUMNS = 128  # of an item: its sums go through the first cache
BLOCKINGS = ((2, 2), (1, 5), (1, 4), (3, 1), (1, 2), (1, 1))  # tiles of pixels and of filters
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


@cache
def refusal() -> str:
    """Why this process cannot use AMX, or "". Requests the memory of its registers of Linux, for all threads."""
    flags = Path("/proc/cpuinfo").read_text().split() if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists() else []
    if missing := [flag for flag in ("amx_tile", "amx_int8", "amx_bf16") if flag not in flags]:
        return f"this processor has no {missing[0]}"
    if ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA):
        return "Linux does not allow this process the tiles of AMX (ARCH_REQ_XCOMP_PERM); they need Linux 5.16"
    return ""


def depth(op: Convolution, x: Buffer) -> tuple[int, int]:
    """Steps (quads or pairs) of channels in a tile, and tiles of a tap, which together read nothing behind a pixel's lanes."""
    steps, there = -(-op.weight.shape[1] // op.step), x.lanes // op.step
    return next((-(-steps // n), n) for n in range(-(-steps // ROWS), steps + 1) if n * -(-steps // n) <= there)


def padded(weight: NDArray[np.int32], steps: int) -> NDArray[np.int32]:
    """(K, C, R, S) with zeros up to `steps` channels."""
    return np.pad(weight, ((0, 0), (0, steps - weight.shape[1]), (0, 0), (0, 0)))


def sizes(op: Convolution, x: Buffer, tiling: Tiling) -> dict[str, int]:
    """The constants of a layer that are those of include/amx.h alone."""
    deep, chunks = depth(op, x)
    columns = _columns(op.out_size(x)[1], op.pool)
    pitch = op.stride[0] * x.row // (op.stride[1] * x.stride) if tiling.fixed else columns
    found = {"DEPTH": deep, "CHUNKS": chunks, "FLAT": int(tiling.fixed), "COLUMNS": columns, "PITCH": pitch}
    return {**found, "POSITIONS": (tiling.parts - 1) * pitch + columns}


def _columns(columns: int, pool: bool) -> int:
    """Outputs in a row of an item: the largest divisor of a row that is not above MOST_COLUMNS."""
    step = 1 + pool
    whole = columns // step
    return step * next(n for n in range(min(whole, MOST_COLUMNS // step), 0, -1) if whole % n == 0)


def tilings(geometry: Geometry, threads: int) -> list[Tiling]:
    """Tilings that are worth measuring; none where the layer is too narrow.

    Of a `matrix` tiling, `vectors` are tiles of 16 filters, `height` tiles of `width` pixels each, and `parts` rows of an item, which are one
    where it is `fixed`.
    """
    blocks, step = -(-geometry.filters // WEIGHT_LANES), 1 + geometry.pool
    if not geometry.packed or geometry.channels < LEAST_STEPS or min(geometry.rows, geometry.columns) < step:
        return []
    kinds = dict.fromkeys(_rows(geometry, step, fraction) for fraction in sorted({1, threads}))
    return [
        Tiling(vectors, height, width, fixed=flat, parts=span, matrix=True)
        for flat, span, width, tiles in kinds
        for height, vectors in BLOCKINGS
        if height <= tiles and vectors <= blocks and width >= LEAST_STEPS
    ]


def likely(geometry: Geometry, threads: int) -> Tiling | None:
    """A tiling that is faster than vectors without a measurement that says so; None where that is not likely."""
    wide = geometry.channels >= LIKELY_STEPS and geometry.filters >= WEIGHT_LANES
    return next((tiling for tiling in tilings(geometry, threads) if wide and tiling.width >= LIKELY_STEPS), None)


def _rows(geometry: Geometry, step: int, threads: int) -> tuple[bool, int, int, int]:
    """Whether rows are one, rows of an item, pixels of a tile, tiles of an item: what takes the fewest tiles for an output row."""
    columns, rows = _columns(geometry.columns, geometry.pool), geometry.rows // step * step
    ways = [(-(-columns // ROWS) * 1.0, False, step, columns, step)]
    if geometry.stride[0] == geometry.stride[1] and columns == geometry.columns // step * step:
        pitch = geometry.image[1] + 2 * geometry.padding[1]
        for span in range(step, min(rows // threads, MOST) + 1, step):
            length = (span - 1) * pitch + columns
            if rows % span == 0 and length <= MOST_COLUMNS:
                ways.append((-(-length // ROWS) / span, True, span, length, 1))
    _, flat, span, length, segments = min(ways)
    each = -(-length // ROWS)
    return flat, span, -(-length // each), each * segments
