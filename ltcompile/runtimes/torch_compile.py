"""torch.compile with frozen weights, one compilation for each input shape.

On a GPU in `reduce-overhead` mode: small networks at small batches are all launches there, and a CUDA graph removes them;
`max-autotune` would tune every convolution for minutes to gain a few percent over cuDNN.
"""

from __future__ import annotations

import shutil

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices, _torch
from ltcompile.runtimes._base import Array, Artifact, Bound, Subject, first_line
from ltcompile.runtimes._process import freezing

NAMES = ("compile",)


def unavailable(device: str) -> str | None:
    """Why torch.compile cannot work on `device`, or None."""
    if reason := _devices.missing(device):
        return reason
    if device == "cuda":
        return None if _has_triton() else "torch.compile needs Triton on a GPU; pip install triton"
    return None if _has_compiler() else "torch.compile finds no C++ compiler; install g++ (apt install g++), or set CXX to one"


def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return bool(has_triton())


def _has_compiler() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        return shutil.which(cpp_builder.get_cpp_compiler()) is not None
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False


def compile(subject: Subject, device: str) -> Artifact:
    """The module for torch.compile; each input shape is compiled when it is first bound.

    Raises:
        Unavailable: the subject has no module; or, when a shape is bound, the compiler failed.
    """
    import torch

    mode = "reduce-overhead" if device == "cuda" else None
    placed = _torch.placed(subject.need_module("compile"), device)
    network = torch.compile(placed, fullgraph=True, dynamic=False, mode=mode)

    compiled: set[tuple[int, ...]] = set()

    def bind(images: Array) -> Bound:
        bound = _torch.bind(network, device, images)
        if images.shape not in compiled:
            _compile_now(subject.name, bound)
            compiled.add(images.shape)
        return bound

    details = {**_torch.details(), "freezing": "True", "dynamic": "False", "mode": mode or "default"}
    return Artifact("compile", device, _devices.torch_dtype(placed, device), details, bind)


def _compile_now(name: str, bound: Bound) -> None:
    """The first call compiles."""
    try:
        with freezing():
            bound.call()
    except Exception as error:
        raise Unavailable(f"torch.compile cannot compile {name!r}: {first_line(error)}; use another backend") from error
