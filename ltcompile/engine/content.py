"""Names of tensors by a hash of their contents, which a file may state: so loading need not hash it all again."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_STATED = "_ltcompile_content"  # attribute of a tensor: the name that its file states, and the version that was loaded


def content_name(tensor: Tensor) -> str:
    """The first 128 bits of a SHA-256 of dtype, shape and values."""
    tensor = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def state(tensor: Tensor, name: str) -> Tensor:
    """`tensor`, with the name that its file gives to its contents; without it in inference mode, whose tensors count no changes."""
    if not tensor.is_inference():
        setattr(tensor, _STATED, (name, tensor._version))
    return tensor


def stated_name(tensor: Tensor) -> str | None:
    """What `state` said, unless the values were changed since. A file may lie: check the name before anything is kept under it."""
    stated: tuple[str, int] | None = getattr(tensor, _STATED, None)
    return stated[0] if stated is not None and stated[1] == tensor._version else None
