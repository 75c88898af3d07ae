"""Which tile of output channels and pixels a convolution keeps in registers: a model of its time, for a choice without measuring."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ltcompile.engine.cpu.code import Choice

MOST_PIXELS, MOST_VECTORS, MOST = 28, 8, 64
WEIGHT_LANES = 16  # of a block of packed weights
TINY = 4  # rows and columns of images whose border is left out tap by tap
MOST_DIRECT = 4  # rows and columns from which Winograd's products may be fewer
L1_BYTES = 24_000  # of weights that stay in the first cache, next to activations
L2_BYTES = 128_000  # of a layer's weights that are still in the second cache when the next image comes
STREAM_BYTES = 20.0  # from behind that cache, a cycle
FEW = 8  # tilings that are looked at of each kind
TILE_CYCLES = 12.0  # to begin and end a tile


@dataclass(frozen=True)
class InstructionSet:
    """Vectors of `lanes` floats in `registers`; additions and loads of vectors a cycle; whether half vectors cost half."""

    name: str
    lanes: int
    registers: int
    sums: float
    loads: float
    latency: int = 4

    @property
    def half(self) -> int:
        """Lanes of the smallest vector that the code uses."""
        return 8 if self.lanes == 16 else self.lanes


INSTRUCTION_SETS = (
    InstructionSet("avx512", 16, 32, 1.0, 1.0),
    InstructionSet("avx2", 8, 16, 2.0, 2.0),
    InstructionSet("neon", 4, 32, 2.0, 2.0),
)


@cache
def instruction_set() -> InstructionSet | None:
    """What the compiler uses on this machine; None where that is not one of those that the model has."""
    name = {"AVX512": "avx512", "AVX2": "avx2", "DEFAULT": "neon" if os.uname().machine in ("aarch64", "arm64") else ""}
    found = name.get(torch.backends.cpu.get_cpu_capability(), "")
    return next((isa for isa in INSTRUCTION_SETS if isa.name == found), None)


@dataclass(frozen=True, order=True)
class Tiling:
    """A tile of `vectors` vectors of output channels and `height` x `width` pixels, summed in `split` parts; see include/convolution.h.

    With `block`, the tile is one of include/winograd.h's products: `width` of the 2x2 tiles in `block` rows of them; `parts` divide the output
    channels between threads. A `matrix` tiling is one of AMX; see matrix.py.
    With `twins`, lanes are filters times two steps of channels; see include/twins.h.
    """

    vectors: int
    height: int
    width: int
    split: int = 1
    fixed: bool = False
    block: int = 0
    parts: int = 1
    matrix: bool = False
    twins: bool = False

    @classmethod
    def of(cls, choice: Mapping[str, Any]) -> Tiling:
        """A tiling from plain values, which may be from a file. Raises TypeError or ValueError: they are not what `ranked` gives."""
        if any(type(value) not in (int, bool) or not 0 <= value <= MOST for value in choice.values()):
            raise ValueError(f"{dict(choice)} is not a tiling; its numbers are whole and at most {MOST}")
        return cls(**choice)


def check_choices(choices: Mapping[str, Choice]) -> None:
    """Raises AttributeError, TypeError or ValueError: they are not choices of layers; they may be from a file."""
    for choice in choices.values():
        Tiling.of({name: value for name, value in choice.items() if name != "lanes"})


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution that its tiles depend on; `rows` and `columns` in front of the pool."""

    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    image: tuple[int, int]
    rows: int
    columns: int
    pool: bool
    packed: bool = False  # then `channels` counts quads, or pairs

    @property
    def steps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.channels

    @property
    def winograd(self) -> bool:
        """Whether include/winograd.h can compute it."""
        plain = not self.packed and self.kernel == (3, 3) and self.stride == self.dilation == (1, 1) and max(self.padding) <= 1
        return plain and min(self.rows, self.columns) >= MOST_DIRECT and min(self.channels, self.filters) >= 8

    def product(self, block: int) -> Geometry:
        """One of the 16 products of `block` rows of 2x2 tiles: a 1x1 convolution of one row."""
        tiles, one = block * (-(-self.columns // 2)), (1, 1)
        return Geometry(self.channels, self.filters, one, one, (0, 0), one, (1, tiles), 1, tiles, False)


@cache
def best(geometry: Geometry, isa: InstructionSet, threads: int = 1, kind: tuple[int, int] | None = None) -> Tiling:
    """The tiling with the least time by the model; `kind` fixes (block, parts)."""
    return ranked(geometry, isa, threads, kind)[0]


@cache
def ranked(geometry: Geometry, isa: InstructionSet, threads: int = 1, kind: tuple[int, int] | None = None) -> tuple[Tiling, ...]:
    """Tilings, the fastest by the model first: all for direct sums, and a few of each other kind."""
    found = list[tuple[float, Tiling]]()
    for block, parts in [kind] if kind else _kinds(geometry, threads):
        product = geometry.product(block) if block else geometry
        timed = sorted((_time(geometry, product, isa, tiling, threads), tiling) for tiling in _tilings(product, isa, block, parts))
        found += timed[: FEW if block else None]
    return tuple(tiling for _, tiling in sorted(found))


def _kinds(geometry: Geometry, threads: int) -> list[tuple[int, int]]:
    """(rows of 2x2 tiles in a block, parts of the output channels); (0, 1) for direct sums."""
    blocks = [n for n in (1, 2, 4, 8) if n <= -(-geometry.rows // 2)] if geometry.winograd else []
    return [(0, 1), *((block, parts) for block in blocks for parts in sorted({1, threads}))]


def twins(geometry: Geometry, isa: InstructionSet) -> bool:
    """Whether the filters fill half a vector, so that two steps of channels have room in one."""
    return isa.half < isa.lanes and geometry.filters <= isa.half and geometry.channels > 1


def time(geometry: Geometry, isa: InstructionSet, tiling: Tiling, threads: int = 1) -> float:
    """The model's cycles of a whole convolution by `threads` threads."""
    return _time(geometry, geometry.product(tiling.block) if tiling.block else geometry, isa, tiling, threads)


def _time(geometry: Geometry, one: Geometry, isa: InstructionSet, tiling: Tiling, threads: int) -> float:
    whole, tail = _vectors(geometry, isa)
    groups, sources = -(-(whole + tail) // tiling.vectors), 1
    if tiling.block:
        tiles, blocks = tiling.block * -(-geometry.columns // 2), -(-geometry.rows // (2 * tiling.block))
        part = -(-groups // tiling.parts) / groups  # the largest
        transforms = tiles * (40 + 45 * geometry.channels / isa.lanes + 60 * (whole + tail / 2) * part)
        product = cycles(one, isa, tiling) * part + TILE_CYCLES
        scratch = 64 * tiles * (geometry.channels + geometry.filters)  # bytes, which each tile writes and reads
        transforms += tiles * (geometry.channels + geometry.filters) * ((scratch > L1_BYTES) + (scratch > L2_BYTES)) / 2
        items, each, sources = blocks * tiling.parts, 16 * product + transforms, tiling.parts
        numbers = 16 * geometry.channels * geometry.filters
    else:
        items = groups * -(-geometry.rows // tiling.height)
        each, sources = cycles(geometry, isa, tiling) / items, groups
        numbers = geometry.steps * geometry.filters
    far = 4 * numbers / (STREAM_BYTES * min(threads, sources)) if 4 * numbers > L2_BYTES else 0.0
    return each * -(-items // threads) + far


def _tilings(geometry: Geometry, isa: InstructionSet, block: int, parts: int) -> Iterator[Tiling]:
    whole, tail = _vectors(geometry, isa)
    step = 2 if geometry.pool else 1
    fixed = geometry.rows <= TINY and geometry.columns <= TINY and geometry.kernel != (1, 1)
    for vectors in range(1, min(MOST_VECTORS, max(whole, 1) + 1) + 1):
        if vectors < whole and vectors * isa.lanes % WEIGHT_LANES:
            continue  # a group of vectors starts at a block of weights
        widest = max(vectors if whole >= vectors else 0, whole % vectors + tail)
        for height in range(step, min(geometry.rows, 7) + 1, step):
            for width in range(step, min(geometry.columns, MOST_PIXELS) + 1, step):
                sums = widest * height * width
                for split in (1, 2, 4):
                    registers = sums * split + widest + (widest > 1)
                    if registers <= isa.registers and (split == 1 or sums * split <= 2 * isa.latency * isa.sums):
                        yield Tiling(vectors, height, width, split, fixed, block, parts)


def _vectors(geometry: Geometry, isa: InstructionSet) -> tuple[int, int]:
    """Whole vectors of all output channels, and 1 where half a vector follows."""
    halves = -(-geometry.filters // isa.half)
    whole = halves * isa.half // isa.lanes
    return whole, int(halves * isa.half % isa.lanes != 0)


def cycles(geometry: Geometry, isa: InstructionSet, tiling: Tiling) -> float:
    """The model: the slowest of additions, loads and latency in each step of each tile."""
    whole, tail = _vectors(geometry, isa)
    groups = [(whole // tiling.vectors, tiling.vectors, 0), (1, whole % tiling.vectors, tail)]
    heights = [(geometry.rows // tiling.height, tiling.height), (1, geometry.rows % tiling.height)]
    widths = [(geometry.columns // tiling.width, tiling.width), (1, geometry.columns % tiling.width)]
    total = 0.0
    filled = _inside(geometry) if tiling.fixed else 1.0
    for groups_, vectors, half in groups:
        size = vectors + half / 2
        far = geometry.steps * size * isa.lanes * 4 > L1_BYTES
        for rows, height in heights:
            for columns, width in widths:
                tiles, pixels = groups_ * rows * columns, height * width
                if not tiles * pixels * size:
                    continue
                sums = size * pixels * filled / isa.sums
                loads = (size * (2 if far else 1) + pixels * filled / 2) / isa.loads
                step = max(sums, loads, isa.latency / tiling.split * (filled**0.5)) + 0.25
                total += tiles * (geometry.steps * step + TILE_CYCLES + 2 * size * pixels * tiling.split)
    return total


def _inside(geometry: Geometry) -> float:
    """The share of products that are not with the border."""
    shares = []
    for kernel, stride, padding, dilation, size, count in zip(
        geometry.kernel,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.image,
        (geometry.rows, geometry.columns),
        strict=True,
    ):
        inside = sum(0 <= p * stride + r * dilation - padding < size for p in range(count) for r in range(kernel))
        shares.append(inside / (count * kernel))
    return float(shares[0] * shares[1])
