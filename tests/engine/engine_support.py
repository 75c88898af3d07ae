"""A small network, engines that are timed as briefly as possible, and what tests of engines count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from networks import shaken
from torch import Tensor, nn

from ltcompile.core.deployment import Deployment
from ltcompile.engine import cudnn
from ltcompile.engine.executable import Choice, Executable
from ltcompile.errors import Unavailable
from ltcompile.lower.lower import lower, to_layout
from ltcompile.lower.program import Program


def small() -> nn.Module:
    """Odd widths, a residual and a pooled head."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn = nn.Conv2d(3, 13, 3, padding=1, bias=False), nn.BatchNorm2d(13)
            self.a, self.b = nn.Conv2d(13, 5, 1), nn.Conv2d(5, 13, 3, padding=1)
            self.down, self.head = nn.Conv2d(13, 11, 3, padding=1), nn.Linear(11, 7)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.stem(x)).relu()
            x = (x + self.b(self.a(x).relu())).relu()
            x = nn.functional.max_pool2d(self.down(x).relu(), 2)
            out: Tensor = self.head(x.mean((2, 3)))
            return out

    torch.manual_seed(0)
    return shaken(Block())


def pictures(count: int = 4, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def placed(model: nn.Module, images: Tensor, precision: str = "fp32") -> Program:
    return to_layout(lower(model, images).program, images, precision).program


def with_cudnn(program: Program) -> dict[str, Choice]:
    return {n.name: Choice("cudnn") for n in program.nodes if n.target.startswith("kernel.") and not cudnn.refusal(n)}


def run_twice(executable: Executable, images: Tensor) -> Tensor:
    """The second answer in an arena that was full of NaN: nothing is read that was not written."""
    executable.images.copy_(images)
    for _ in range(2):
        executable._arena.fill_(255)
        executable.run()
    return executable.answer()


def only(*names: str) -> Callable[[str, int], tuple[list[Deployment], dict[str, str]]]:
    return lambda precision, batch=1: ([Deployment("cpu", name, batch, precision, 1) for name in names], {})


def wrong_answers(run: Callable[[Tensor], Tensor], model: Callable[[Tensor], Tensor], threads: int, calls: int, count: int = 2) -> int:
    """How many of `calls` calls by each of `threads` threads, all with images of their own, give the answers to other images."""
    inputs = [torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(at)) for at in range(threads)]
    with torch.no_grad():
        expected = [model(images) for images in inputs]
    start = threading.Barrier(threads)

    def call(at: int) -> int:
        start.wait()
        return sum(not torch.allclose(run(inputs[at]), expected[at], rtol=1e-3, atol=1e-4) for _ in range(calls))

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(call, range(threads)))


class Recorded:
    """In the place of a CUDA graph: a replay runs the executable on its one copy of the memory."""

    def __init__(self, executable: Executable) -> None:
        if executable.mode == "dependent graph":
            raise Unavailable("the interpreter knows no other kernel")
        self.replay = executable.run
        executable.run()
