"""What emitters of C++ take and return: buffers, dense layers, code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
SLACK = 16  # bytes


def lanes_of(channels: int) -> int:
    """The floats of a pixel that a writer fills: `channels` rounded up to 8, above 16 to a multiple of 16."""
    step = 8 if channels <= 16 else 16
    return -(-channels // step) * step


def literal(value: float) -> str:
    """A finite float32 in C++, exactly."""
    return f"{float(np.float32(value))!r}f"


def aligned(floats: int) -> Array:
    """Memory that starts at a multiple of 64 bytes."""
    memory = np.zeros(floats + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + floats]


@dataclass(frozen=True)
class Buffer:
    """Where the activations of one image lie: float32, NHWC, `border` rows and columns of zeros on every side.

    `stride` is the number of floats from pixel to pixel. `lanes` of them are written, zeros behind `channels`; a slice of a concatenation
    has lanes == channels, a multiple of 8. With a `zero` point, they are bytes: it fills the border, and what follows the channels is anything.
    Where it is `half`, they are bf16. Sizes and offsets count these.
    """

    height: int
    width: int
    channels: int
    border: int
    stride: int
    lanes: int
    zero: int | None = None
    half: bool = False

    @property
    def bytes_each(self) -> int:
        """The size of an element."""
        return 1 if self.zero is not None else 4 // (1 + self.half)

    @property
    def type(self) -> str:
        """Elements in C++."""
        return {1: "uint8_t", 2: "bf16", 4: "float"}[self.bytes_each]

    @property
    def row(self) -> int:
        """Floats from row to row."""
        return (self.width + 2 * self.border) * self.stride

    @property
    def floats(self) -> int:
        """The size, with borders."""
        return (self.height + 2 * self.border) * self.row

    @property
    def origin(self) -> int:
        """Floats from the start to pixel (0, 0)."""
        return self.border * (self.row + self.stride)

    @property
    def memory(self) -> int:
        """The size in floats; behind bytes, a vector of them may be read."""
        return -(-(self.floats * self.bytes_each + SLACK * (self.zero is not None)) // 4)


@dataclass(frozen=True)
class Integers:
    """How sums of integers become others (`ltcompile.lower.integer.conv2d`): the zero of the input, and a factor for each filter."""

    zero: int
    factor: Array
    output: tuple[int, ...]
    added: tuple[float, ...] = ()


@dataclass(frozen=True)
class Convolution:
    """pool(act(conv(x, weight) + bias + residual)): every dense layer. A linear layer has a 1x1 kernel, or one as large as its image.

    `weight` is (K, C / groups, R, S), `bias` (K,), of whole numbers where there are `integers`; `pool` is a 2x2 max pool with stride 2; the
    residual is added before the activation. Where it is `half`, the input and the weight are bf16.
    """

    weight: Array
    bias: Array
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    pool: bool = False
    residual: bool = False
    integers: Integers | None = None
    half: bool = False

    @property
    def step(self) -> int:
        """Channels in a number of 32 bits."""
        return 4 if self.integers is not None else 1 + self.half

    def out_size(self, x: Buffer) -> tuple[int, int]:
        """Rows and columns of the result in front of the pool."""
        sizes = zip((x.height, x.width), self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, pad, dilation in sizes)
        return rows, columns


@dataclass(frozen=True)
class Code:
    """C++ statements of one step, a string.Template.

    `$in0`, `$in1`, ... and `$out` are the addresses of pixel (0, 0), channel 0; `$scratch` is that of `scratch` floats of its own; each array
    is under its name. `headers` are files in include/, `functions` definitions at file level; equal ones are written once. `items`, a
    constant expression, is the number of pieces of work that threads may share; the call does `$begin` to `$end` of them.
    """

    call: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    headers: Sequence[str] = ()
    scratch: int = 0
    functions: Sequence[str] = ()
    items: str = "1"


Choice = Mapping[str, Any]  # how a step is computed, as tuning found it: plain values
