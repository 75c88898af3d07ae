"""How good a network is on a split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltcompile.data import Split
from ltcompile.graph.wrappers import in_eval_mode
from ltcompile.training.memory import fitting

BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, share of right answers, and which images were right (N,), as a boolean tensor on the CPU."""

    loss: float
    accuracy: float
    correct: Tensor

    @property
    def correct_hex(self) -> str:
        """`correct` as hexadecimal digits, the first image in the highest bit."""
        bits = "".join("1" if c else "0" for c in self.correct.tolist())
        return f"{int(bits, 2):0{(len(bits) + 3) // 4}x}"


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, device: torch.device) -> Evaluation:
    """`model` in eval mode over all images of `split`, in fp32 as it is deployed, however it was trained; and stays in the modes it has."""
    loss, correct, parts = 0.0, [], 1

    def logits_of(images: Tensor, parts: int) -> Tensor:
        return torch.cat([model(part) for part in images.chunk(parts)])

    with in_eval_mode(model):
        for images, labels in split.batches(BATCH, device, None, 0):
            logits, parts = fitting(partial(logits_of, images), len(images), parts)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct.append((logits.argmax(1) == labels).cpu())
    right = torch.cat(correct)
    return Evaluation(loss / len(right), right.double().mean().item(), right)
