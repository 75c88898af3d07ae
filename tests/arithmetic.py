"""Trains in fp32 on every CPU: "auto" would take bfloat16 where a processor multiplies it, and the laws of the tests hold to its rounding."""

from __future__ import annotations

import torch

from ltcompile.train import device

_asked = device._multiplies_bf16


def _on_gpus(where: torch.device) -> bool:
    return where.type == "cuda" and _asked(where)


device._multiplies_bf16 = _on_gpus
