"""What PyTorch's runtimes share: a copy of the module in channels_last, inputs in place, and calls that wait for the GPU."""

from __future__ import annotations

import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ltcompile.errors import InvalidSetting
from ltcompile.runtimes import _devices
from ltcompile.runtimes._base import Array, Bound, Feeds, Options, Session, Trace, in_order

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ltcompile.core.deployment import Deployment

WARMUPS = 3  # calls before a CUDA graph is recorded


def placed(module: nn.Module, device: str) -> nn.Module:
    """A copy of `module` on `device` in channels_last; the original is left alone."""
    import torch

    network: nn.Module = copy.deepcopy(module).to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def channels_last(network: Callable[..., Any], tensors: Iterable[Tensor]) -> Any:
    """What `network` gives for contiguous `tensors`, as all runtimes take them: images change their layout as a part of the call."""
    import torch

    return network(*(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors))


class OfModule(Session):
    """`network` on the deployment's device, called in inference mode."""

    def __init__(self, network: Callable[..., Any], module: nn.Module, deployment: Deployment, options: Options, **details: str) -> None:
        import torch

        super().__init__(
            deployment,
            {
                "threads": str(torch.get_num_threads()),
                "memory_format": "channels_last",
                "cudnn.benchmark": str(torch.backends.cudnn.benchmark),
                **details,
            },
        )
        self._network, self._module, self._options, self._device = network, module, options, deployment.device
        self._marks: list[list[tuple[str, Any]]] = []
        if options.trace:
            self._add_marks()

    @property
    def dtype(self) -> str:
        return _devices.torch_dtype(self._module, self._device)

    def bind(self, inputs: Feeds) -> Bound:
        import torch

        tensors = [tensor(array).to(self._device, copy=self._device != "cpu") for array in in_order(inputs)]
        outputs: list[Any] = []

        def write(more: Feeds) -> None:
            arrays = in_order(more)
            if len(arrays) != len(tensors):
                raise InvalidSetting(f"the network takes {len(tensors)} arrays, not {len(arrays)}")
            for at, array in enumerate(arrays):
                if self._device == "cpu":
                    tensors[at] = tensor(array)
                else:
                    tensors[at].copy_(tensor(array))  # where a CUDA graph reads it

        def run() -> None:
            outputs.clear()  # a CUDA graph may not be replayed while its last answer is held
            with torch.inference_mode():
                outputs.append(channels_last(self._network, tensors))

        call = run
        if self._options.graph:
            call, output = _recorded(self._network, tensors)
            outputs.append(output)
        return Bound(self._timed(call), lambda: _arrays(outputs[0]), write)

    def _timed(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call` with the end of the GPU's work, and of its trace, in it."""
        if self._options.trace:
            return functools.partial(self._traced, call)
        if self._device == "cpu" or not self._options.wait:
            return call

        def waiting() -> None:
            call()
            self._wait()

        return waiting

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _traced(self, call: Callable[[], Any]) -> None:
        self._marks.append([])
        call()
        self._mark("")
        self._wait()

    def _add_marks(self) -> None:
        """A hook in front of every layer that has weights."""
        from ltcompile.graph.widths import LAYERS

        for name, layer in self._module.named_modules():
            if isinstance(layer, LAYERS):
                layer.register_forward_pre_hook(functools.partial(lambda name, *_: self._mark(name), name))

    def _mark(self, name: str) -> None:
        at: Any = time.perf_counter()
        if self._device == "cuda":
            import torch

            at = torch.cuda.Event(enable_timing=True)
            at.record()
        self._marks[-1].append((name, at))

    def layer_times(self) -> Trace:
        """Operations are the layers themselves; each lasts until the next one begins."""
        if not self._options.trace:
            return super().layer_times()
        names = tuple(name for name, _ in self._marks[0][:-1])
        us = [[self._us(start, end) for (_, start), (_, end) in itertools.pairwise(marks)] for marks in self._marks]
        return Trace(names, (True,) * len(names), np.array(us))

    def _us(self, start: Any, end: Any) -> float:
        return float(1000 * start.elapsed_time(end) if self._device == "cuda" else 1e6 * (end - start))


def _recorded(network: Callable[..., Any], tensors: list[Tensor]) -> tuple[Callable[[], Any], Any]:
    """What replays `network` on the memory of `tensors` as a CUDA graph, and its outputs; it keeps the network, whose weights it reads."""
    import torch

    from ltcompile.runtimes._cuda import record

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                channels_last(network, tensors)
        torch.cuda.current_stream().wait_stream(stream)
        made: list[Any] = []
        graph = record(lambda: made.append(channels_last(network, tensors)))

    def replay(holding: Any = network) -> None:
        graph.replay()

    return replay, made[0]


def tensor(array: Array) -> Tensor:
    import torch

    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else np.array(array, order="C"))


def _arrays(output: Any) -> dict[str, Array]:
    """The tensors of a network's output by name, half precision as float32."""
    import torch

    from ltcompile.graph.outputs import outputs_of

    return {
        name: (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t).cpu().numpy().copy()
        for name, t in outputs_of(output).items()
    }
