"""PyTorch as it is: channels_last, inference mode, nothing fused. The baseline of the other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ltcompile.runtimes import _devices, _torch
from ltcompile.runtimes._base import Options, Session, Subject

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

TRACED = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
unavailable = _devices.missing


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """A copy of the module on the device. Raises Unavailable where the subject has no module."""
    network = _torch.placed(subject.need_module("eager"), deployment.device)
    return _torch.OfModule(network, network, deployment, options)
