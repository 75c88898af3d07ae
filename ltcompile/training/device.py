"""Where to train, in which memory layout, and what the device can multiply."""

from __future__ import annotations

import torch
from torch import nn

from ltcompile.errors import Unavailable


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or a GPU where there is one.

    Raises:
        Unavailable: "cuda" was requested and this machine has none.
    """
    if name not in (None, "cpu", "cuda"):
        raise Unavailable(f"there is no device {name!r}; choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device here; use device=cpu, or see `ltcompile doctor`")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively. A CPU that does not emulates it, fifteen times slower than fp32; one that does may
    still be slower than in fp32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@torch.no_grad()
def to_memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Move `model` to `device`, in place, in the layout that suits it; the layout, for its inputs."""
    layout = memory_format(model, device)
    model.to(device)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            # `to` would leave a 1x1 filter that was channels_last as it is, for its values lie the same, and its strides would
            # still make the convolution run in that layout.
            parameter.data = parameter.data.clone(memory_format=layout)
    return layout


def memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last, except on a CPU for networks that oneDNN would corrupt memory with.

    Backward of a strided 1x1 convolution of fewer input channels than a register block (8 with AVX2, 16 with AVX-512) writes past
    its workspace in that layout (oneDNN issue 6035): it crashes, or gives wrong gradients. Pruning makes such layers.
    """
    if device.type != "cpu":
        return torch.channels_last
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    unsafe = any(set(m.kernel_size) == {1} and max(m.stride) > 1 and m.in_channels < 16 for m in convolutions)
    return torch.contiguous_format if unsafe else torch.channels_last
