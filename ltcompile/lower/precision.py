"""Half precision inside, single precision at the borders, so that callers need not know."""

from __future__ import annotations

import copy

from torch import Tensor, nn


class HalfInside(nn.Module):
    """A copy of `module` in float16 behind float32 inputs and outputs; `module` itself stays as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.half())
        return y.float()
