"""Where to train, and in which precision."""

from __future__ import annotations

import torch

from ltcompile.core.recipe import Recipe
from ltcompile.errors import Unavailable


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or a GPU where there is one.

    Raises:
        Unavailable: "cuda" was asked for and this machine has none.
    """
    if name not in (None, "cpu", "cuda"):
        raise Unavailable(f"there is no device {name!r}; choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise Unavailable("torch sees no CUDA device here; use --device cpu, or see `ltcompile doctor`")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def autocast_dtype(recipe: Recipe, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the recipe wants it, or allows it and the device multiplies it natively; None for plain fp32.

    A CPU without native bfloat16 emulates it fifteen times slower than fp32, so "auto" asks the processor.
    """
    if recipe.precision == "fp32":
        return None
    if recipe.precision == "bf16" or _multiplies_bf16(device):
        return torch.bfloat16
    return None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
