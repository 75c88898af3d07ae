"""What runs a network: one file per backend, found by its name.

A backend offers `unavailable(device) -> str | None`, the reason why it cannot run here and what to do about it, and
`compile(subject, device) -> Artifact`. The generic tests walk this folder.
"""

from __future__ import annotations

from ltcompile import registry
from ltcompile.errors import Unavailable
from ltcompile.runtimes._base import DEVICES, Array, Artifact, Bound, Subject

__all__ = ["DEVICES", "Array", "Artifact", "Bound", "Subject", "available", "compile", "unavailable"]


def available(device: str) -> dict[str, str | None]:
    """Every backend -> None where it works on `device` ("cpu" or "cuda"), else the reason and what to do.

    Raises:
        BadSetting: no such device.
    """
    return {name: unavailable(name, device) for name in sorted(registry.names(__name__))}


def unavailable(backend: str, device: str) -> str | None:
    """Why `backend` cannot run on `device` and what to do, or None where it works.

    Raises:
        UnknownName, BadSetting: no such backend, no such device.
    """
    reason: str | None = registry.load(__name__, "backend", backend).unavailable(device)
    return reason


def compile(backend: str, subject: Subject, device: str) -> Artifact:
    """`subject` made ready to run by `backend` on `device`.

    Raises:
        UnknownName, BadSetting: no such backend, no such device.
        Unavailable: the backend does not work here, the subject lacks what it needs, or it cannot compile the network.
    """
    if reason := unavailable(backend, device):
        raise Unavailable(f"{backend} ({device}): {reason}")
    artifact: Artifact = registry.load(__name__, "backend", backend).compile(subject, device)
    return artifact
