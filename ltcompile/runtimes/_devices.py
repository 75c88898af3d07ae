"""Which device a runtime may use, and what precision it computes in there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcompile.core.deployment import DEVICES
from ltcompile.errors import InvalidSetting

if TYPE_CHECKING:
    from torch import nn


def missing(device: str) -> str | None:
    """Why `device` cannot be used here, or None.

    Raises:
        InvalidSetting: no such device.
    """
    if device not in DEVICES:
        raise InvalidSetting(f"there is no device {device!r}; known: {', '.join(DEVICES)}")
    if device == "cpu":
        return None
    import torch

    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install a CUDA build from https://pytorch.org/get-started/locally"
    if not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU; check nvidia-smi and the driver, or use the CPU"
    return None


def torch_dtype(network: nn.Module, device: str) -> str:
    """What PyTorch computes the fp32 products of `network` in: "tf32" where one of its layers takes it, else "float32".

    Convolutions take TF32 by default, matrix products only where they are allowed to.
    """
    import torch
    from torch import nn

    kinds: tuple[type[nn.Module], ...] = ()
    if torch.backends.cudnn.allow_tf32:
        kinds += (nn.modules.conv._ConvNd,)
    if torch.backends.cuda.matmul.allow_tf32:
        kinds += (nn.Linear, nn.MultiheadAttention)
    return "tf32" if _has_tf32(device) and any(isinstance(layer, kinds) for layer in network.modules()) else "float32"


def onnxruntime_dtype(device: str) -> str:
    """What ONNX Runtime and TensorRT compute fp32 products in: both take TF32 where the GPU has it, whatever PyTorch is set to."""
    return "tf32" if _has_tf32(device) else "float32"


def _has_tf32(device: str) -> bool:
    """NVIDIA GPUs do, since Ampere."""
    if device == "cpu":
        return False
    import torch

    return torch.cuda.get_device_capability() >= (8, 0)
