"""Which device a backend may use, and what precision it computes in there."""

from __future__ import annotations

from ltcompile.backends._base import DEVICES
from ltcompile.errors import BadSetting


def missing(device: str) -> str | None:
    """Why `device` cannot be used here, or None.

    Raises:
        BadSetting: no such device.
    """
    if device not in DEVICES:
        raise BadSetting(f"there is no device {device!r}; known: {', '.join(DEVICES)}")
    if device == "cpu":
        return None
    import torch

    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA; install a CUDA build from https://pytorch.org/get-started/locally"
    if not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU; check nvidia-smi and the driver, or use the CPU"
    return None


def dtype(device: str) -> str:
    """What fp32 convolutions are computed in: cuDNN, ONNX Runtime and TensorRT all take TF32 where the GPU has it."""
    if device == "cpu":
        return "float32"
    import torch

    return "tf32" if torch.cuda.get_device_capability() >= (8, 0) and torch.backends.cudnn.allow_tf32 else "float32"
