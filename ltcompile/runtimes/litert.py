"""LiteRT (TensorFlow Lite) with XNNPACK on the CPU, in fp32. Reads .tflite files for one row, in an environment of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices, _venvs
from ltcompile.runtimes._base import Array, Options, Session, Subject, first_line
from ltcompile.runtimes._rows import RowSession

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

APART = THREADS = True
DEFAULT = False
READS = ".tflite"
VENV = "litert"
IMPORTS = ("ai_edge_litert.interpreter",)


def unavailable(device: str) -> str | None:
    """Why LiteRT cannot run on `device`, or None."""
    if device == "cuda":
        return "LiteRT's wheel does not run on NVIDIA GPUs; use the device cpu"
    return _devices.missing(device) or (None if find_spec("ai_edge_litert") else _venvs.missing(VENV))


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The .tflite file, which computes one row after the other. Raises Unavailable where there is none, or LiteRT cannot open it."""
    from ai_edge_litert.interpreter import Interpreter

    file = subject.need_file("litert", READS)
    threads = deployment.threads or 1
    try:
        network = Interpreter(str(file), num_threads=threads)
        network.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise Unavailable(f"LiteRT cannot open {file}: {first_line(error)}; use another runtime") from error
    return _Session(network, deployment, threads)


class _Session(RowSession):
    def __init__(self, network: Any, deployment: Deployment, threads: int) -> None:
        signature = next(iter(network.get_signature_list()))
        self._run = network.get_signature_runner(signature)
        names = ((end.keys()) for end in (self._run.get_input_details(), self._run.get_output_details()))
        inputs, outputs = (sorted(one, key=lambda name: int(re.sub(r"\D", "", name) or 0)) for one in names)
        super().__init__(deployment, {"threads": str(threads), "delegate": "XNNPACK"}, inputs, outputs)

    def row(self, inputs: Sequence[Array]) -> list[Array]:
        found = self._run(**{name: array[None] for name, array in zip(self._inputs, inputs, strict=True)})
        return [found[name][0] for name in self._outputs]
