"""Random networks of every operation that C++ is generated for, and many of them in one translation unit, since compiling is what costs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from networks import shaken
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.engine.cpu.convolution import tiled
from ltcompile.engine.cpu.generate import RULES, Unit, generate, with_headers
from ltcompile.engine.cpu.plan import planned
from ltcompile.engine.cpu.tiles import INSTRUCTION_SETS, Geometry, Tiling
from ltcompile.lower.lower import lower
from ltcompile.lower.program import Program

TOLERANCE = 1e-5  # of the largest output
IMAGES = 2
# What is undefined traps: code without messages compiles in two thirds of the time, and clang++ takes twice as long as g++.
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-undefined-trap-on-error")


class Permuted(nn.Module):
    """A layer norm and a linear layer over channels, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(x.permute(0, 2, 3, 1)))
        return F.gelu(y).permute(0, 3, 1, 2)


class Excite(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return x * scale


class Attend(nn.Module):
    """Two heads over all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 12)
        self.out = nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        tokens = self.qkv(x.flatten(2).transpose(1, 2)).reshape(n, h * w, 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(tokens[0], tokens[1], tokens[2]).transpose(1, 2).reshape(n, h * w, 4)
        seen: Tensor = self.out(y).transpose(1, 2).reshape(x.shape)
        return x + seen


class Graph(nn.Module):
    """A random network: `steps` are names of STEPS, of which those that do not fit the image are left out."""

    def __init__(self, channels: int, steps: Sequence[str], head: str, size: tuple[int, int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.steps, self.head = list(steps), head
        self.layers = nn.ModuleDict()
        with torch.no_grad():
            self.building = True
            self._forward(torch.randn(1, channels, *size))
        self.building = False

    def _layer(self, name: str, make: nn.Module | None = None) -> nn.Module:
        if self.building and make is not None:
            self.layers[name] = make.eval()
        return self.layers[name]

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def _width(self) -> int:
        return int(self.rng.integers(1, 21)) if self.building else 1

    def _forward(self, x: Tensor) -> Tensor:
        for at, step in enumerate(self.steps):
            x = self._step(f"{at}{step}", step, x)
        if self.head == "none":
            return x
        if self.head == "flat":
            x = x.flatten(1)
            return self._layer("head", nn.Linear(x.shape[1], 7) if self.building else None)(x)
        return self._layer("head", nn.Linear(x.shape[1], 7) if self.building else None)(x.mean((2, 3))).log_softmax(1)

    def _step(self, name: str, step: str, x: Tensor) -> Tensor:  # noqa: PLR0912
        channels, least = x.shape[1], min(x.shape[2:])
        new = lambda make: self._layer(name, make() if self.building else None)  # noqa: E731
        match step:
            case "conv3":
                return F.relu(new(lambda: nn.Conv2d(channels, self._width(), 3, padding=1))(x))
            case "conv1":
                return F.silu(new(lambda: nn.Conv2d(channels, self._width(), 1, bias=False))(x))
            case "strided" if least > 2:
                return F.hardswish(new(lambda: nn.Conv2d(channels, self._width(), 3, stride=2, padding=1))(x))
            case "dilated":
                return torch.tanh(new(lambda: nn.Conv2d(channels, self._width(), 3, padding=2, dilation=2))(x))
            case "depthwise":
                return F.relu6(new(lambda: nn.Conv2d(channels, channels, (3, 5), padding=(1, 2), groups=channels))(x))
            case "grouped":
                groups = 2 - channels % 2
                return F.gelu(new(lambda: nn.Conv2d(channels, 3 * groups, 3, padding=1, groups=groups))(x))
            case "residual":
                return F.relu(x + new(lambda: nn.Conv2d(channels, channels, 3, padding=1))(x))
            case "norm":
                return F.relu(new(lambda: shaken(nn.BatchNorm2d(channels), int(self.rng.integers(100))))(x))
            case "maxpool" if least > 1:
                return F.max_pool2d(x, 2)
            case "padded_pool" if least > 1:
                return F.max_pool2d(x, 3, 2, 1)
            case "avgpool" if least > 1:
                return F.avg_pool2d(x, 3, 2, 1)
            case "adaptive":
                return F.adaptive_avg_pool2d(x, (3, 2)) + F.adaptive_max_pool2d(x, (3, 2))
            case "excite":
                return new(lambda: Excite(channels))(x)
            case "concat":
                a, b = (self._layer(f"{name}{i}", nn.Conv2d(channels, w, 1) if self.building else None) for i, w in ((0, 8), (1, 5)))
                return torch.cat([F.relu(a(x)), b(x), x], 1)
            case "in_place":
                a, b = (
                    self._layer(f"{name}{i}", nn.Conv2d(channels, w, k, padding=k // 2) if self.building else None)
                    for i, w, k in ((0, 8, 3), (1, 16, 1))
                )
                return torch.cat([F.relu(a(x)), F.sigmoid(b(x))], 1)
            case "shuffle" if channels % 2 == 0:
                a, b = x.chunk(2, 1)
                y = torch.cat([F.relu(a), b], 1)
                return y.view(len(y), 2, channels // 2, *y.shape[2:]).transpose(1, 2).reshape(y.shape)
            case "nearest":
                return F.interpolate(x, scale_factor=2, mode="nearest")
            case "bilinear":
                return F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=bool(channels % 2))
            case "permuted":
                return new(lambda: Permuted(channels))(x)
            case "attend":
                return new(lambda: Attend(channels))(x)
            case "pad":
                return F.pad(x, (1, 0, 2, 1), value=0.5)
            case "moved" if least > 2:
                return F.pad(F.pad(x.roll((1, -2), (2, 1)), (1, 2, 0, 1), mode="reflect"), (0, 1, 1, 0), mode="replicate")
            case "groups":
                return F.relu(new(lambda: nn.GroupNorm(1 + (channels + 1) % 2, channels))(x))
            case "arithmetic":
                return (0.5 - x) * x.abs() / (1.0 + x.exp()).clamp(0.1, 9.0) + F.leaky_relu(x) - F.elu(x)
            case "softmax":
                return x.softmax(1) * x.amax(1, keepdim=True) + x.mean((2, 3), keepdim=True)
        return x


STEPS = [
    *("conv3", "conv1", "strided", "dilated", "depthwise", "grouped", "residual", "norm", "maxpool", "padded_pool", "avgpool", "adaptive"),
    *("excite", "concat", "in_place", "shuffle", "nearest", "bilinear", "permuted", "attend", "pad", "arithmetic", "softmax"),
    *("moved", "groups"),
]
HEADS = ("flat", "pooled", "none")


@dataclass(frozen=True)
class Case:
    """A program, its unit, images and what the program answers."""

    program: Program
    unit: Unit
    images: np.ndarray
    expected: np.ndarray


def case(model: nn.Module, images: Tensor) -> Case:
    program = lower(model.eval(), torch.randn(1, *images.shape[1:])).program
    expected = torch.cat([program.run(image) for image in images.split(1)]).numpy()
    return Case(program, generate(program), images.numpy(), expected)


def with_choices(case: Case, tilings: Callable[[Geometry], list[Tiling]], called: str, pick: int = 0, threads: int = 1) -> Case:
    """The case with one of `tilings` wherever there are some; at least two layers `called` so are in its C++."""
    choices = {}
    for step in planned(case.program, RULES, {}, threads).steps:
        shape = step.layer and tiled(step.layer.op, step.layer.inputs, step.layer.output)
        if shape is not None and (found := tilings(shape)):
            choices[step.name] = {**asdict(found[pick % len(found)]), "lanes": INSTRUCTION_SETS[0].lanes}
    unit = generate(case.program, choices, threads)
    assert unit.body.count(called) >= 2
    return replace(case, unit=unit)


_RUNNER = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(USES_AMX)
#include <sys/syscall.h>
static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
static const bool allowed = true;
#endif
// At a multiple of 64 bytes and, but for sanitizers, which look themselves, right in front of a page that cannot be touched.
static float *memory(size_t count) {
  const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
#if defined(SANITIZED)
  return static_cast<float *>(aligned_alloc(64, bytes));
#else
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page * page;
  char *start = static_cast<char *>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (mprotect(start + pages, page, PROT_NONE)) exit(4);
  return reinterpret_cast<float *>(start + pages - bytes);
#endif
}
struct Case { void (*clear)(float *); void (*image)(const float *, const float *, float *, float *); size_t weights, input, output, arena; };
static float *filled(FILE *file, size_t count) {
  float *floats = memory(count);
  if (fread(floats, sizeof(float), count, file) != count) exit(3);
  return floats;
}
int main(int, char **words) {
  FILE *in = fopen(words[1], "rb"), *out = fopen(words[2], "wb");
  const int images = IMAGES;
  if (!allowed) return 5;
  for (const Case &c : CASES) {
    float *weights = filled(in, c.weights), *pixels = filled(in, images * c.input);
    float *arena = memory(c.arena);
    c.clear(arena);
    for (int repeat = 0; repeat < 2; repeat++)
      for (int n = 0; n < images; n++) {
        float *answer = static_cast<float *>(malloc(c.output * sizeof(float)));
        c.image(weights, pixels + n * c.input, answer, arena);
        if (repeat) fwrite(answer, sizeof(float), c.output, out);
        free(answer);
      }
#if defined(SANITIZED)
    free(weights), free(pixels), free(arena);
#endif
  }
  fclose(in), fclose(out);
}
"""


def program_text(units: Sequence[Unit]) -> str:
    """One program of several units: reads their weights and images from a file, and writes the answers."""
    headers = dict.fromkeys(name for unit in units for name in unit.headers)
    bodies = "".join(f"namespace g{n} {{\n{unit.body}}}\n" for n, unit in enumerate(units))
    rows = ", ".join(f"{{g{n}::clear, g{n}::image, {u.weights.size}, g{n}::INPUT, g{n}::OUTPUT, g{n}::ARENA}}" for n, u in enumerate(units))
    runner = (
        _RUNNER.replace("CASES)", "cases)")
        .replace("IMAGES", str(IMAGES))
        .replace("int main", f"static const Case cases[] = {{{rows}}};\nint main")
    )
    return with_headers(list(headers)) + bodies + runner


def graphs(make: Callable[[list[str], str, int, tuple[int, int], int], Case]) -> st.SearchStrategy[Case]:
    """Random networks, made of steps, head, channels, size and seed."""
    sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
    return st.builds(
        make, st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), st.sampled_from(HEADS), st.integers(1, 5), sizes, st.integers(0, 99)
    )


def answers(cases: Sequence[Case], command: Sequence[str], folder: Path, run: Sequence[str] = ()) -> list[np.ndarray]:
    """What the cases answer when they are compiled by `command` and run. Skips where the compiler or the emulator is not installed."""
    for program in (command[0], *run[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    (source := folder / "cases.cpp").write_text(program_text([c.unit for c in cases]))
    data = b"".join(c.unit.weights.tobytes() + c.images.tobytes() for c in cases)
    (folder / "in.bin").write_bytes(data)
    sanitized = ["-DSANITIZED"] if any("sanitize" in word for word in command) else []
    flags = [*sanitized, "-std=c++17", str(source), "-o", str(folder / "cases"), "-lm"]
    for line in ([*command, *flags], [*run, *(str(folder / name) for name in ("cases", "in.bin", "out.bin"))]):
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
    found = np.frombuffer((folder / "out.bin").read_bytes(), np.float32)
    ends = np.cumsum([c.expected.size for c in cases])
    return [part.reshape(c.expected.shape) for part, c in zip(np.split(found, ends[:-1]), cases, strict=True)]
