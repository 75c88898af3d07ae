"""Half precision inside, single precision at the borders, so that callers need not know."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class HalfInside(nn.Module):
    """A copy of `module` in `dtype` behind float32 inputs and outputs; `module` itself stays as it is."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.to(self.dtype))
        return y.float()
