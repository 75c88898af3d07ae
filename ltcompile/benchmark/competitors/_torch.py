"""A network by PyTorch: as it is, in a CUDA graph, through torch.compile, ahead of time by AOTInductor."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.benchmark.competitors.entrant import Network, Ready
from ltcompile.engine.engine import Run
from ltcompile.lower.passes.precision import DTYPES
from ltcompile.runtimes._process import freezing

WARMUPS = 3


class Inside(nn.Module):
    """`module` in `dtype` and channels_last, between float32 images (N, C, H, W) and float32 answers, as everyone takes and gives them."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.module(images.to(self.dtype, memory_format=torch.channels_last))
        return answer.float()


def eager(network: Network, images: Tensor, device: str, precision: str) -> Ready:
    """Operation after operation."""
    return _ready(Inside(network.module, DTYPES[precision], device), images.to(device, copy=True))


def eager_recorded(network: Network, images: Tensor, precision: str) -> Ready:
    """The same, recorded once in a CUDA graph."""
    return _recorded(Inside(network.module, DTYPES[precision], "cuda"), images.cuda())


def compiled(network: Network, images: Tensor, device: str, precision: str, mode: str | None = None) -> Ready:
    """Through torch.compile with frozen weights, for this shape alone, called as everyone calls it."""
    ready = _ready(_frozen(network, images, device, precision, mode), images.to(device, copy=True))
    for _ in range(WARMUPS):  # a mode's own CUDA graph is recorded by the calls behind the first
        ready.call()
    return ready


def compiled_recorded(network: Network, images: Tensor, precision: str) -> Ready:
    """max-autotune without its own CUDA graph, in ours: no guards, and no copy of the images in front of it."""
    return _recorded(_frozen(network, images, "cuda", precision, "max-autotune-no-cudagraphs"), images.cuda())


def ahead_of_time(network: Network, images: Tensor, precision: str) -> Ready:
    """By AOTInductor, with the configurations that it finds by timing, for this shape alone."""
    placed, module = images.cuda(), Inside(network.module, DTYPES[precision], "cuda").eval()
    inductor: Any = torch._inductor
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder, torch.no_grad():
        path = Path(folder) / "network.pt2"
        program = torch.export.export(module, (placed,))
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs={"max_autotune": True, "freezing": True})
        return _ready(inductor.aoti_load_package(str(path)), placed)


def _frozen(network: Network, images: Tensor, device: str, precision: str, mode: str | None) -> Run:
    """Compiled by its first call. The images must not be marked as staying where they are: freezing would fold them with the weights,
    and the whole network into its answer."""
    module: Run = torch.compile(Inside(network.module, DTYPES[precision], device), fullgraph=True, dynamic=False, mode=mode)
    with freezing(), torch.inference_mode():
        module(images.to(device))
    return module


def _recorded(run: Run, images: Tensor) -> Ready:
    """`run` in a CUDA graph, which reads its weights where they were, and does not keep them."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                run(images)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            answer = run(images)

    def replay(holding: Run = run) -> None:
        graph.replay()

    return Ready(replay, answer.cpu, images.copy_)


def _ready(run: Run, images: Tensor) -> Ready:
    answers: list[Tensor] = []

    def call() -> None:
        answers.clear()  # a CUDA graph may not be replayed while its last answer is held
        with torch.inference_mode():
            answers.append(run(images))

    def answer() -> Tensor:
        return answers[0].cpu()

    return Ready(call, answer, images.copy_)
