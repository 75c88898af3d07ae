"""ExecuTorch with XNNPACK on the CPU, in fp32. Reads .pte files for one row, in an environment of its own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices, _venvs
from ltcompile.runtimes._base import Array, Options, Session, Subject, first_line
from ltcompile.runtimes._rows import RowSession

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

APART = True
DEFAULT = False
READS = ".pte"
VENV = "executorch"
IMPORTS = ("torch", "executorch.runtime")


def unavailable(device: str) -> str | None:
    """Why ExecuTorch cannot run on `device`, or None."""
    if device == "cuda":
        return "ExecuTorch's wheel runs XNNPACK, on CPUs; use the device cpu"
    return _devices.missing(device) or (None if find_spec("executorch") else _venvs.missing(VENV))


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The .pte file, which computes one row after the other. Raises Unavailable where there is none, or ExecuTorch cannot open it."""
    from executorch.runtime import Runtime

    file = subject.need_file("executorch", READS)
    try:
        method = Runtime.get().load_program(str(file)).load_method("forward")
    except Exception as error:  # its bindings raise their own
        raise Unavailable(f"ExecuTorch cannot open {file}: {first_line(error)}; use another runtime") from error
    return _Session(method, deployment)


class _Session(RowSession):
    def __init__(self, method: Any, deployment: Deployment) -> None:
        inputs, outputs = method.metadata.num_inputs(), method.metadata.num_outputs()
        names = [[f"{kind}_{at}" for at in range(count)] for kind, count in (("input", inputs), ("output", outputs))]
        super().__init__(deployment, {"threads": "default", "delegate": "XNNPACK"}, *names)
        self._method = method

    def row(self, inputs: Sequence[Array]) -> list[Array]:
        import torch

        found = self._method.execute([torch.from_numpy(array[None]) for array in inputs])
        return [tensor[0].numpy().copy() for tensor in found]
