"""tract on the CPU, in fp32 on one thread: a second reader of ONNX files that shares no code with the others."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, by_name, first_line
from ltcompile.runtimes._convert import one_file

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

APART = READS_ONNX = True
DEFAULT = False
IMPORTS = ("tract", "onnx")


def unavailable(device: str) -> str | None:
    """Why tract cannot run on `device`, or None."""
    if device == "cuda":
        return "tract's wheel does not run on NVIDIA GPUs; use the device cpu"
    return _devices.missing(device) or (None if find_spec("tract") else "tract is not installed; pip install 'ltcompile[tract]'")


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The ONNX file, optimised for any batch.

    Raises:
        Unavailable: the subject has no ONNX file, or tract lacks one of its operators.
    """
    import tract

    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        path = one_file(subject, "tract", Path(folder))
        try:
            read = tract.onnx().load(path)
            names = [[call(at) for at in range(count)] for call, count in _ends(read)]
            return _Session(read.into_model().into_runnable(), names, deployment)
        except tract.TractError as error:
            raise Unavailable(f"tract cannot run {subject.what}: {first_line(error)}; use another runtime") from error


def _ends(model: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
    return (model.input_name, model.input_count()), (model.output_name, model.output_count())


class _Session(Session):
    """`names` are those of inputs and outputs."""

    thread_safe = False

    def __init__(self, network: Any, names: list[list[str]], deployment: Deployment) -> None:
        super().__init__(deployment, {"threads": "1"})
        self._network, (self._inputs, self._outputs) = network, names

    def bind(self, inputs: Feeds) -> Bound:
        import tract

        held, outputs = dict[str, Array](), list[Any]()

        def call() -> None:
            try:
                outputs[:] = self._network.run(list(held.values()))
            except tract.TractError as error:
                raise Unavailable(f"tract cannot run these inputs: {first_line(error)}; use another runtime") from error

        def read() -> dict[str, Array]:
            return {name: value.to_numpy().copy() for name, value in zip(self._outputs, outputs, strict=True)}

        write = lambda more: held.update(by_name(more, self._inputs))  # noqa: E731
        write(inputs)
        return Bound(self.in_turns(call), read, write)
