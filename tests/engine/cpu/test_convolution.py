"""Generated convolutions equal PyTorch's, for many shapes in one program, on every instruction set that this machine compiles and runs."""

from __future__ import annotations

import platform
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from string import Template

import numpy as np
import pytest
import torch
from cpu_graphs import SANITIZED
from numpy.typing import NDArray
from torch.nn import functional as F

from ltcompile.engine.cpu import convolution, tiles
from ltcompile.engine.cpu.code import Buffer, Choice, Code, Convolution, lanes_of
from ltcompile.kernels import ACTIVATIONS
from ltcompile.numerics import KERNEL_TOLERANCES

HEADERS = Path(convolution.__file__).parent / "include"
WARNINGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-psabi")
X86 = platform.machine() == "x86_64"
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
BUILDS = {  # name -> compiler, flags, what must be in /proc/cpuinfo, what runs it
    "avx512": ("g++", ("-O0", "-march=x86-64-v4"), "avx512vl", ()),
    "avx2": ("g++", ("-O1", "-mavx2", "-mfma"), "avx2", ()),
    "plain": ("clang++", ("-O1",), "", ()),
    "neon": ("aarch64-linux-gnu-g++", ("-O0", "-static"), "", ("qemu-aarch64",)),
    "sanitized": ("g++", ("-O0", "-march=native", *SANITIZED), "", ()),
}


@dataclass(frozen=True)
class Case:
    channels: int
    filters: int
    image: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "relu"
    pool: bool = False
    residual: bool = False
    border: int = 0  # of the output
    choice: Choice | None = None

    @cached_property
    def op(self) -> Convolution:
        rng, each = np.random.default_rng(self.channels), self.channels // self.groups
        weight = rng.standard_normal((self.filters, each, *self.kernel), np.float32) / np.sqrt(each * self.kernel[0] * self.kernel[1])
        bias = rng.standard_normal(self.filters, np.float32)
        settings = (self.stride, self.padding, self.dilation, self.groups, self.activation, self.pool, self.residual)
        return Convolution(weight.astype(np.float32), bias, *settings)

    @cached_property
    def buffers(self) -> tuple[Buffer, Buffer, Buffer]:
        """Input, residual, output."""
        x = self._buffer(self.channels, self.image, convolution.border_of(self.op, *self.image))
        rows, columns = self.op.out_size(x)
        half = 1 + self.pool
        added = self._buffer(self.filters, (rows, columns), 0)
        return x, added, self._buffer(self.filters, (rows // half, columns // half), self.border)

    @staticmethod
    def _buffer(channels: int, size: tuple[int, int], border: int) -> Buffer:
        return Buffer(*size, channels, border, lanes_of(channels), lanes_of(channels))

    @cached_property
    def code(self) -> Code:
        x, added, y = self.buffers
        return convolution.emit(self.op, [x, added] if self.residual else [x], y, self.choice)

    @cached_property
    def images(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Input and residual, (C, H, W)."""
        rng = np.random.default_rng(1)
        return tuple(rng.standard_normal((b.channels, b.height, b.width), np.float32) for b in self.buffers[:2])  # type: ignore[return-value]

    def arrays(self) -> list[NDArray[np.float32]]:
        return [*(_placed(b, image) for b, image in zip(self.buffers, self.images, strict=False)), *self.code.arrays.values()]

    def expected(self) -> NDArray[np.float32]:
        """(H, W, C) by PyTorch."""
        x, added = (torch.from_numpy(image)[None] for image in self.images)
        op = self.op
        y = F.conv2d(x, torch.from_numpy(op.weight), torch.from_numpy(op.bias), op.stride, op.padding, op.dilation, op.groups)
        y = ACTIVATIONS[op.activation](y + added if op.residual else y)
        answer: NDArray[np.float32] = (F.max_pool2d(y, 2) if op.pool else y)[0].permute(1, 2, 0).numpy()
        return answer


def _placed(b: Buffer, image: NDArray[np.float32]) -> NDArray[np.float32]:
    values = np.zeros((b.height + 2 * b.border, b.width + 2 * b.border, b.stride), np.float32)
    values[b.border : b.border + b.height, b.border : b.border + b.width, : b.channels] = image.transpose(1, 2, 0)
    return values


def _with_choice(case: Case, **settings: int) -> Case:
    """The case with another tiling than the model's."""
    shape = convolution.geometry(case.op, case.buffers[0])
    isa = tiles.INSTRUCTION_SETS[0]
    found = asdict(tiles.best(shape, isa, 1, (settings.get("block", 0), settings.get("parts", 1)))) | {"lanes": isa.lanes} | settings
    return Case(**{**{name: getattr(case, name) for name in Case.__dataclass_fields__}, "choice": found})


def _random_cases(count: int) -> list[Case]:
    rng, cases = random.Random(0), list[Case]()
    while len(cases) < count:
        kernel, dilation = rng.choice([(1, 1), (3, 3), (5, 5), (1, 7), (2, 2)]), rng.choice([(1, 1), (2, 1)])
        groups = rng.choice([1, 1, 1, 2, 3])
        case = Case(
            groups * rng.choice([1, 3, 8, 13, 20]), groups * rng.choice([1, 5, 8, 16, 20, 40, 57]),
            (rng.choice([1, 2, 4, 7, 9]), rng.choice([1, 2, 5, 8, 17])), kernel, rng.choice([(1, 1), (2, 2), (1, 2)]),
            rng.choice([(0, 0), (kernel[0] // 2, kernel[1] // 2), (1, 0)]), dilation, groups, rng.choice(list(ACTIVATIONS)),
            residual=rng.random() < 0.3, border=rng.choice([0, 1]),
        )  # fmt: skip
        if min(case.op.out_size(case.buffers[0])) > 0:
            cases.append(case)
    return cases


CASES = [
    Case(3, 8, (8, 8), pool=True, border=1),
    Case(13, 57, (9, 7), activation="sigmoid", border=2),
    Case(16, 24, (4, 4), residual=True),
    Case(20, 40, (2, 2), pool=True),
    Case(24, 48, (8, 8), activation="silu", pool=True, residual=True, border=1),  # by Winograd
    _with_choice(Case(17, 41, (6, 10), activation="hardsigmoid"), block=2, parts=2),
    _with_choice(Case(9, 24, (7, 5), residual=True), block=2),
    _with_choice(Case(8, 40, (5, 5)), block=0, split=2),
    Case(40, 40, (7, 9), (3, 3), (2, 2), groups=40, activation="relu6"),
    Case(20, 20, (6, 6), (5, 5), padding=(2, 2), groups=20, pool=True, activation="hardswish"),
    Case(24, 12, (1, 1), (1, 1), padding=(0, 0), activation="gelu"),
    *_random_cases(6),
]
_MAIN = """
#include <stdio.h>
#include <stdlib.h>
static float *numbers(size_t count, int fill) {
  void *memory = nullptr;
  if (posix_memalign(&memory, 64, count * sizeof(float))) abort();
  if (fill && fread(memory, sizeof(float), count, stdin) != count) abort();
  return static_cast<float *>(memory);
}
static void work(int from, int to, void (*piece)(float **, int, int), float **arrays) {  // each piece by itself, the last one first
  for (int i = to; i-- > from;) piece(arrays, i, i + 1);
}
int main() {
"""


def program(cases: Sequence[Case]) -> str:
    """C++ that reads the arrays of all cases in turn, and writes their outputs, of which NaN was in front."""
    names = dict.fromkeys(name for case in cases for name in case.code.headers)
    functions = dict.fromkeys(text for case in cases for text in case.code.functions)
    parts = ["#include <math.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <string.h>"]
    parts += [*((HEADERS / name).read_text() for name in names), *functions]
    main = [_MAIN]
    for at, case in enumerate(cases):
        x, added, y = case.buffers
        arrays = case.arrays()
        known = dict(zip(case.code.arrays, range(2, len(arrays)), strict=True))
        call = Template(case.code.call).substitute(
            in0=f"(const float *)(a[0] + {x.origin})", in1=f"(const float *)(a[1] + {added.origin})", out=f"(a[{len(arrays)}] + {y.origin})",
            scratch=f"a[{len(arrays) + 1}]", begin="begin", end="end", **{name: f"a[{n}]" for name, n in known.items()},
        )  # fmt: skip
        parts.append(f"static void case{at}(float **a, int begin, int end) {{ {call} }}")
        reads = ", ".join(f"numbers({array.size}, 1)" for array in arrays)
        main += [
            f"{{ float *a[] = {{{reads}, numbers({y.floats}, 0), numbers({max(case.code.scratch, 1)}, 0)}};",
            f"for (int i = 0; i < {y.floats}; i++) a[{len(arrays)}][i] = NAN;",
            f"work(0, {case.code.items}, case{at}, a);",
            f"fwrite(a[{len(arrays)}], sizeof(float), {y.floats}, stdout); for (float *array : a) free(array); }}",
        ]
    return "\n".join([*parts, *main, "return 0; }"])


@pytest.mark.slow
@pytest.mark.parametrize("build", [b if b == "plain" else pytest.param(b, marks=pytest.mark.slow) for b in BUILDS])
def test_generated_convolutions_equal_pytorch_and_write_nothing_else(build: str, tmp_path: Path) -> None:
    compiler, flags, needed, runner = BUILDS[build]
    for tool in (compiler, *runner):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if build != "neon" and not X86:
        pytest.skip(f"{build} needs an x86-64 processor")
    if needed not in CPU:
        pytest.skip(f"this processor has no {needed}")
    cases = CASES if build == "avx512" else CASES[::3]
    source, binary = tmp_path / "cases.cpp", tmp_path / "cases"
    source.write_text(program(cases))
    subprocess.run([compiler, *flags, *WARNINGS, str(source), "-o", str(binary), "-lm"], check=True)
    arrays = b"".join(np.ascontiguousarray(array).tobytes() for case in cases for array in case.arrays())
    outputs = np.frombuffer(subprocess.run([*runner, str(binary)], input=arrays, stdout=subprocess.PIPE, check=True).stdout, np.float32)
    for case in cases:
        y = case.buffers[2]
        found, outputs = outputs[: y.floats].reshape(y.height + 2 * y.border, -1, y.stride), outputs[y.floats :]
        inside = found[y.border : y.border + y.height, y.border : y.border + y.width]
        expected = case.expected()
        error = float(np.abs(inside[..., : y.channels] - expected).max() / np.abs(expected).max())
        assert error <= KERNEL_TOLERANCES["torch.float32"], f"{case}: {error:.1e}"
        assert not inside[..., y.channels :].any(), f"{case}: lanes behind the channels are not zero"
        assert int(np.isnan(found).sum()) == found.size - inside.size, f"{case}: something was written outside"
    assert not outputs.size
