"""How large a network is: parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-accumulates (MACs) of convolutions and matrix products for one image."""

    params: int
    macs: int


def size(model: nn.Module, example: Tensor) -> Size:
    """The size of `model` on the first image of `example` (N, C, H, W). One MAC is two of PyTorch's counted flops."""
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example[:1])
    model.train(was_training)
    return Size(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
