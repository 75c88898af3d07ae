"""torch.compile with frozen weights, for one input shape at a time.

On a GPU in `reduce-overhead` mode: small networks at small batches are all launches there, and a CUDA graph removes them;
`max-autotune` would tune every convolution for minutes to gain a few percent over cuDNN. The mode "ahead-of-time" is AOTInductor with
the configurations that it finds by timing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltcompile.errors import Unavailable
from ltcompile.runtimes import _devices, _torch
from ltcompile.runtimes._base import Bound, Feeds, Options, Session, Subject, first_line, in_order

if TYPE_CHECKING:
    from torch import nn

    from ltcompile.core.deployment import Deployment

NAMES = ("compile",)
ENGINE = {"fp32": "", "bf16": "", "int8": "torch.compile does not read ONNX files, and int8 lives in one"}
AHEAD_OF_TIME = "ahead-of-time"
SHAPES = 256  # compilations of one forward(), over all networks of that class in this process; PyTorch's default is 8
_SETTINGS = threading.RLock()


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


def load(subject: Subject, deployment: Deployment, options: Options) -> Session:
    """The module for torch.compile, which compiles when inputs are first bound.

    Raises:
        Unavailable: the subject has no module; or, when inputs are bound, the compiler failed.
    """
    import torch

    mode = options.mode or ("reduce-overhead" if deployment.device == "cuda" else "default")
    module = _torch.placed(subject.need_module("compile"), deployment.device)
    network: Any = module if mode == AHEAD_OF_TIME else torch.compile(module, fullgraph=True, dynamic=False, mode=mode)
    return _Compiled(subject.name, network, module, deployment, options, mode)


class _Compiled(_torch.OfModule):
    """A network whose first binding compiles it."""

    def __init__(
        self, name: str, network: Callable[..., Any], module: nn.Module, deployment: Deployment, options: Options, mode: str
    ) -> None:
        super().__init__(network, module, deployment, options, freezing="True", dynamic="False", mode=mode)
        self.thread_safe = deployment.device == "cpu" or mode == AHEAD_OF_TIME  # a mode's CUDA graphs share their memory
        self._name, self._mode, self._compiled = name, mode, set[tuple[Any, ...]]()

    def bind(self, inputs: Feeds) -> Bound:
        shapes = tuple(array.shape for array in in_order(inputs))
        with _SETTINGS:
            if shapes not in self._compiled:
                self._compile(inputs)
                self._compiled.add(shapes)
        return super().bind(inputs)

    def _compile(self, inputs: Feeds) -> None:
        """The first call compiles. Its inputs must not be marked as static: freezing would fold them with the weights, and the whole
        network into its answer.
        """
        import torch

        tensors = [_torch.tensor(array).to(self._device) for array in in_order(inputs)]
        try:
            if self._mode == AHEAD_OF_TIME:
                self._network = _ahead_of_time(self._module, tensors)
                return
            with freezing(), torch.inference_mode():
                _torch.channels_last(self._network, tensors)
        except Exception as error:
            raise Unavailable(f"torch.compile cannot compile {self._name!r}: {first_line(error)}; use another runtime") from error


@contextlib.contextmanager
def freezing() -> Iterator[None]:
    """First calls of torch.compile's functions in it compile with frozen weights, one thread at a time.

    Set for all of PyTorch meanwhile: as an option of one torch.compile it would come after tracing, and two networks of one class and shape
    would then share the first one's frozen weights.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    with _SETTINGS, inductor.patch(freezing=True), dynamo.patch(recompile_limit=SHAPES):
        yield


def _ahead_of_time(module: nn.Module, tensors: list[Any]) -> Callable[..., Any]:
    import torch

    from ltcompile.graph.wrappers import attributes_restored

    inductor: Any = torch._inductor
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder, attributes_restored(module), torch.no_grad():
        path = Path(folder) / "network.pt2"
        last = (t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors)
        program = torch.export.export(module, tuple(last))
        inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs={"max_autotune": True, "freezing": True})
        loaded: Callable[..., Any] = inductor.aoti_load_package(str(path))
        return loaded
