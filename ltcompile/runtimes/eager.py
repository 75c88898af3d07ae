"""PyTorch as it is: channels_last, inference mode, nothing fused. The baseline that the others are checked against."""

from __future__ import annotations

import functools

from ltcompile.runtimes import _devices, _torch
from ltcompile.runtimes._base import Artifact, Subject

unavailable = _devices.missing


def compile(subject: Subject, device: str) -> Artifact:
    """A copy of the module on `device`. Raises Unavailable where the subject has no module."""
    network = _torch.placed(subject.need_module("eager"), device)
    return Artifact(
        "eager", device, _devices.torch_dtype(network, device), _torch.details(), functools.partial(_torch.bind, network, device)
    )
