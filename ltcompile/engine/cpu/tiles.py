"""Which tile of output channels and pixels a convolution keeps in registers: a model of its time, for a choice without measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

MOST_PIXELS, MOST_VECTORS = 28, 8
WEIGHT_LANES = 16  # of a block of packed weights
TINY = 4  # rows and columns of images whose border is left out tap by tap
L1_BYTES = 24_000  # of weights that stay in the first cache, next to activations
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


@dataclass(frozen=True, order=True)
class Tiling:
    """A tile of `vectors` vectors of output channels and `height` x `width` pixels, summed in `split` parts; see include/convolution.h.

    With `block`, the tile is one of include/winograd.h's products: `width` of the 2x2 tiles in `block` rows of them; `parts` divide the output
    channels between threads.
    """

    vectors: int
    height: int
    width: int
    split: int = 1
    fixed: bool = False
    block: int = 0
    parts: int = 1


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

    @property
    def steps(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.channels

    @property
    def winograd(self) -> bool:
        """Whether include/winograd.h can compute it."""
        plain = self.kernel == (3, 3) and self.stride == self.dilation == (1, 1) and max(self.padding) <= 1
        return plain and self.rows % 2 == self.columns % 2 == 0 and min(self.channels, self.filters) >= 8

    def product(self, block: int) -> Geometry:
        """One of the 16 products of `block` rows of 2x2 tiles: a 1x1 convolution of one row."""
        tiles, one = block * self.columns // 2, (1, 1)
        return Geometry(self.channels, self.filters, one, one, (0, 0), one, (1, tiles), 1, tiles, False)


@cache
def best(geometry: Geometry, isa: InstructionSet, block: int = 0) -> Tiling:
    """The tiling with the least time by the model, for some `block`."""
    return ranked(geometry, isa, block)[0]


def best_block(geometry: Geometry, isa: InstructionSet) -> int:
    """The block with the least time by the model; 0 for direct sums."""
    blocks = (0, *(n for n in (1, 2, 4, 8) if n <= geometry.rows // 2)) if geometry.winograd else (0,)
    return min(blocks, key=lambda block: (time(geometry, isa, best(geometry, isa, block)), block))


def time(geometry: Geometry, isa: InstructionSet, tiling: Tiling) -> float:
    """The model's cycles of a whole convolution."""
    if not tiling.block:
        return cycles(geometry, isa, tiling)
    tiles, (whole, tail) = geometry.rows * geometry.columns / 4, _vectors(geometry, isa)
    transforms = 45 * (geometry.channels / isa.lanes) + 60 * (whole + tail / 2)
    blocks = -(-geometry.rows // 2 // tiling.block)
    return blocks * 16 * (cycles(geometry.product(tiling.block), isa, replace(tiling, block=0)) + 10) + tiles * transforms


@cache
def ranked(geometry: Geometry, isa: InstructionSet, block: int = 0) -> tuple[Tiling, ...]:
    """All tilings of some `block`, the fastest by the model first."""
    if block:
        return tuple(replace(tiling, block=block) for tiling in ranked(geometry.product(block), isa))
    return tuple(sorted(_tilings(geometry, isa), key=lambda tiling: (cycles(geometry, isa, tiling), tiling)))


def _tilings(geometry: Geometry, isa: InstructionSet) -> Iterator[Tiling]:
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
                        yield Tiling(vectors, height, width, split, fixed)


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
    return shares[0] * shares[1]
