"""How a kernel's work is split into programs: a `Config`, a default for every shape, and the configurations worth timing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from ltcompile.errors import InvalidSetting

PROGRAMS = 132  # enough to keep a large GPU busy: the multiprocessors of an H100
PERSISTENT_WARPS = 4  # of every layer in a persistent kernel, which has one number for all layers
_SHARED_BYTES = 160 * 1024  # what an sm_80 program can have; sm_90 has 227 KB


@dataclass(frozen=True)
class Config:
    """Blocks and resources of one kernel. Powers of two.

    block_m: pixels (images, where a kernel has no pixels) of a program; block_n: output channels; block_k: depth of one step.
    split_k: programs that share one output block, the last to arrive finishes it.
    swapped: output channels on the long side of the matrix instruction, for few pixels.
    """

    block_m: int
    block_n: int
    block_k: int = 1
    warps: int = 4
    stages: int = 1
    split_k: int = 1
    swapped: bool = False

    def __post_init__(self) -> None:
        sizes = (self.block_m, self.block_n, self.block_k, self.warps, self.split_k)
        if any(size < 1 or size & (size - 1) for size in sizes) or self.stages < 1:
            raise InvalidSetting(f"{self}: block sizes, warps and split_k are powers of two, stages at least 1")


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()


def gemm_default(pixels: int, channels: int, depth: int, itemsize: int, block_n: int | None = None, warps: int | None = None) -> Config:
    """The configuration that a matrix product (pixels, depth) x (depth, channels) gets when none was timed.

    Large tiles where they fill the GPU; up to 32 pixels the operands are swapped; a long sum over few tiles is split.
    `block_n` and `warps` (4 or 8) where they are not free.
    """
    half = itemsize == 2
    block_k = 64 if half else 32
    columns = max(16, power_of_two(channels))
    if pixels <= 32 and block_n is None:
        block_m, block_n, warps, swapped = (16 if pixels <= 16 else 32), 64, 4, True
    else:
        tiles = [(128, 128, 8), (128, 64, 4), (64, 64, 4)] if half else [(64, 64, 4), (64, 32, 4)]
        fitted = [(m, block_n or min(n, columns), w) for m, n, w in tiles if warps in (None, w)]
        full = [tile for tile in fitted if cdiv(pixels, tile[0]) * cdiv(channels, tile[1]) >= PROGRAMS]
        (block_m, block_n, warps), swapped = full[0] if full else fitted[-1], False
    split_k, there, steps = 1, cdiv(pixels, block_m) * cdiv(channels, block_n), cdiv(depth, block_k)
    while split_k < 16 and 2 * split_k * there <= PROGRAMS and steps >= 4 * split_k:
        split_k *= 2
    stages = max(2, min(4 if half else 3, cdiv(steps, split_k)))
    return Config(block_m, block_n, block_k, warps, stages, split_k, swapped)


def gemm_space(pixels: int, channels: int, depth: int, itemsize: int, block_n: int | None = None) -> list[Config]:
    """The configurations worth timing for a matrix product (pixels, depth) x (depth, channels), the default first, then by estimated time."""
    default = gemm_default(pixels, channels, depth, itemsize, block_n)
    shapes = [(m, n, False) for m, n in product((64, 128, 256), (16, 32, 64, 128, 256))]
    shapes += [(m, n, True) for m, n in product((16, 32), (64, 128))]
    found = [
        Config(m, n, k, 4 if m * n <= 64 * 128 else 8, stages, split_k, swapped)
        for (m, n, swapped), k, stages, split_k in product(shapes, (128 // itemsize, 256 // itemsize), (2, 3, 4), (1, 2, 4, 8, 16))
    ]
    fitting = [config for config in found if block_n in (None, config.block_n) and _is_candidate(config, pixels, channels, depth, itemsize)]
    return _default_first(default, sorted(fitting, key=lambda config: _estimate(config, pixels, channels, depth)))


def _estimate(config: Config, rows: int, channels: int, depth: int) -> float:
    """How long a matrix product takes, without a unit: what the busiest multiprocessor multiplies and reads, large tiles doing it better."""
    tiles = cdiv(rows, config.block_m) * cdiv(channels, config.block_n) * config.split_k
    steps = cdiv(depth, config.block_k * config.split_k)
    multiplied, read = config.block_m * config.block_n * config.block_k, (config.block_m + config.block_n) * config.block_k
    prologue = config.stages - 1  # steps that only fill the pipeline
    return cdiv(tiles, PROGRAMS) * (steps + prologue) * (multiplied + 64 * read)


def _default_first(default: Config, candidates: Iterable[Config]) -> list[Config]:
    return [default, *(config for config in candidates if config != default)]


def _is_candidate(config: Config, pixels: int, channels: int, depth: int, itemsize: int) -> bool:
    """Whether a configuration fits into the registers and shared memory of any GPU since sm_80, and wastes less than half of its work."""
    steps = cdiv(depth, config.block_k)
    tiles = cdiv(pixels, config.block_m) * cdiv(channels, config.block_n)
    sums = config.block_m * config.block_n // (config.warps * 32)  # a thread
    shared_bytes = (config.block_m + config.block_n) * config.block_k * config.stages * itemsize
    # tf32x3 keeps three products' operands in registers
    fits = sums <= (64 if itemsize == 2 else 32) and shared_bytes <= _SHARED_BYTES
    useful = (
        config.block_m <= max(16 if config.swapped else 64, power_of_two(pixels))
        and config.block_n <= max(64 if config.swapped else 16, power_of_two(channels))
        and config.block_k <= max(128 // itemsize, power_of_two(depth))
        and config.stages in (max(2, min(stages, cdiv(steps, config.split_k))) for stages in (3, 4))
    )
    shared = config.split_k == 1 or (steps >= 2 * config.split_k and config.split_k * tiles <= 2 * PROGRAMS)
    return fits and useful and shared


def window_default(pixels: int, channels: int, warps: int | None = None) -> Config:
    """The configuration of a kernel that slides a window over each channel by itself: 16 bytes a load, 8 to 16 sums a thread.

    `warps` (1, 2 or 4) where they are not free.
    """
    block_n = min(64, max(8, power_of_two(channels)))
    block_m = 2048 // block_n
    while block_m * block_n > 256 * (warps or 1) and cdiv(pixels, block_m) * cdiv(channels, block_n) < PROGRAMS:
        block_m //= 2
    return Config(block_m, block_n, warps=warps or max(1, min(4, block_m * block_n // 256)))


def window_space(pixels: int, channels: int) -> list[Config]:
    """The configurations worth timing for such a kernel, the default first."""
    default = window_default(pixels, channels)
    candidates = [Config(m, n, warps=warps) for m, n, warps in product((4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128), (1, 2, 4, 8))]
    fitting = [
        config
        for config in candidates
        if config.block_n <= max(8, power_of_two(channels))
        and config.block_m <= max(4, power_of_two(pixels))
        and config.block_m * config.block_n // config.warps in (256, 512)  # 8 or 16 sums a thread
    ]
    return _default_first(default, fitting)


def head_default(images: int, classes: int, channels: int, warps: int | None = None) -> Config:
    """The configuration of a pooled head: one image a program where there are few, sixteen on the matrix unit where there are many."""
    block_n = min(64, max(16, power_of_two(classes)))
    few = images < 16
    return Config(1 if few else 16, block_n, max(16, min(128 if few else 64, power_of_two(channels))), warps or 4)


def head_space(images: int, classes: int, channels: int) -> list[Config]:
    """The configurations worth timing for a pooled head, the default first."""
    default = head_default(images, classes, channels)
    candidates = [Config(m, n, k, warps) for m, n, k, warps in product((1, 16, 32), (16, 32, 64, 128), (32, 64, 128, 256), (2, 4, 8))]
    fitting = [
        config
        for config in candidates
        if config.block_m <= power_of_two(images)
        and config.block_n <= max(16, power_of_two(classes))
        and config.block_k <= max(32, power_of_two(channels))
        and config.block_n * config.block_k <= 8192
        and config.block_m * config.block_n <= 2048
    ]
    return _default_first(default, fitting)
