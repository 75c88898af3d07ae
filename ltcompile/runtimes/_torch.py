"""What PyTorch's two backends share: channels_last copies, inputs in place, calls that wait for the GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from ltcompile.runtimes._base import Array, Bound

if TYPE_CHECKING:
    from torch import Tensor, nn


def placed(module: nn.Module, device: str) -> nn.Module:
    """A copy of `module` on `device` in channels_last; the original is left alone."""
    import torch

    network = copy.deepcopy(module).to(device)
    return network.to(memory_format=torch.channels_last)


def bind(network: Callable[[Tensor], Tensor], device: str, images: Array) -> Bound:
    """`network` with `images` (N, C, H, W) on `device`."""
    import torch

    x = torch.tensor(images, device=device).contiguous(memory_format=torch.channels_last)
    outputs: list[Tensor] = []

    def call() -> None:
        outputs.clear()  # a CUDA graph may not be replayed while its last answer is held
        with torch.inference_mode():
            outputs.append(network(x))
        if device == "cuda":
            torch.cuda.synchronize()

    def read() -> Array:
        answer: Array = outputs[0].float().cpu().numpy().copy()
        return answer

    return Bound(call, read)


def details() -> dict[str, str]:
    """PyTorch's settings that change a timing."""
    import torch

    return {
        "threads": str(torch.get_num_threads()),
        "memory_format": "channels_last",
        "cudnn.benchmark": str(torch.backends.cudnn.benchmark),
    }
