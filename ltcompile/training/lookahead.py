"""Lookahead (Zhang et al. 2019, arXiv:1907.08610) with a decay that rises over the training, as airbench94 has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

DECAY = 0.95**5


class Lookahead:
    """Slow weights, which follow those of `model` every few steps and replace them then; at the end of an epoch they replace them alone."""

    def __init__(self, model: nn.Module, every: int) -> None:
        self.model, self.every, self.steps = model, every, 0
        self.slow = {name: value.clone() for name, value in self._fast().items()}

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """After a step of the optimiser, at the share `progress` of the training."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.join(DECAY * progress**3)

    @torch.no_grad()
    def join(self, decay: float = 1.0) -> None:
        """Move the slow weights to the network's by all but `decay`, and put them into the network."""
        for name, value in self._fast().items():
            value.copy_(self.slow[name].lerp_(value, 1 - decay))

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.slow.items():
            value.copy_(state["slow"][name])
        self.steps = int(state["steps"])

    def _fast(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
