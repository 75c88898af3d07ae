"""TensorRT without ONNX Runtime: reads .plan files, which `shrink` writes for the GPU and the TensorRT of this machine.

A .plan file holds compiled code. ltcompile opens those alone that it wrote in the same command.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Subject, by_name

if TYPE_CHECKING:
    from ltcompile.core.deployment import Deployment

NAMES = ("tensorrt-plan",)
DEFAULT = False
READS = ".plan"
AT = "cuda"


def unavailable(device: str) -> str | None:
    """Why TensorRT cannot run on `device`, or None."""
    if device == "cpu":
        return "TensorRT runs on NVIDIA GPUs only; use the device cuda"
    return _devices.missing(device) or (None if find_spec("tensorrt") else "TensorRT is not installed; pip install tensorrt")


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The .plan file. Raises Unavailable where there is none, or it was made for another GPU or by another version."""
    import tensorrt

    file = subject.need_file(NAMES[0], READS)
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise Unavailable(
            f"TensorRT {tensorrt.__version__} cannot open {file}: it is damaged, or made for another GPU or version; write it here"
        )
    return _Session(engine, deployment, options.wait)


class _Session(Session):
    """An engine; what is bound has memory and an execution context of its own."""

    thread_safe = False

    def __init__(self, engine: Any, deployment: Deployment, wait: bool) -> None:
        import tensorrt

        super().__init__(deployment, {"TensorRT": tensorrt.__version__, "TF32": "off"})
        names = [engine.get_tensor_name(at) for at in range(engine.num_io_tensors)]
        self._engine, self._wait = engine, wait
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._types = {name: np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))) for name in names}

    def bind(self, inputs: Feeds) -> Bound:
        import torch

        context, held = self._engine.create_execution_context(), dict[str, torch.Tensor]()

        def hold(name: str, tensor: torch.Tensor) -> None:
            held[name] = tensor
            context.set_tensor_address(name, tensor.data_ptr())

        def write(more: Feeds) -> None:
            for name, array in by_name(more, self._inputs).items():
                if not context.set_input_shape(name, array.shape):
                    most = tuple(self._engine.get_tensor_profile_shape(name, 0)[2])
                    raise Unavailable(f"the .plan file takes {name} up to {most}, not {array.shape}; call it with fewer rows at a time")
                hold(name, torch.from_numpy(np.ascontiguousarray(array, self._types[name])).to(AT))
            for name in self._outputs:
                shape = tuple(context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    raise Unavailable(f"the shape of the output {name} depends on what is in the inputs; use another format")
                hold(name, torch.from_numpy(np.zeros(shape, self._types[name])).to(AT))

        def call() -> None:
            stream = torch.cuda.current_stream()
            if not context.execute_async_v3(stream.cuda_stream):
                raise Unavailable("TensorRT cannot run the network on these inputs; use another runtime")
            if self._wait:
                stream.synchronize()

        def read() -> dict[str, Array]:
            return {name: held[name].cpu().numpy() for name in self._outputs}

        write(inputs)
        return Bound(call, read, write)
