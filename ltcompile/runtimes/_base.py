"""What goes into a runtime and what comes out of it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltcompile import numerics
from ltcompile.errors import InvalidFile, InvalidSetting, Unavailable

if TYPE_CHECKING:
    from torch import nn

    from ltcompile.core.deployment import Deployment

Array = NDArray[Any]
Feeds = Array | Sequence[Array] | Mapping[str, Array]


@dataclass(frozen=True)
class Subject:
    """One network to run: a module in eval mode, its ONNX file (a path, or what it holds), or both.

    The module takes its tensors one after the other and gives tensors in any container; the file's inputs have a dynamic first dimension,
    the batch. `file` is the network in a runtime's own format, which that runtime reads instead. `precision` is what all compute in inside;
    their inputs and outputs are float32 where they are fractions.

    Raises:
        InvalidSetting: neither is given, the module is in training mode, or an fp32 one has other parameters.
        InvalidFile: there is no ONNX file at that path.
    """

    name: str
    module: nn.Module | None = None
    onnx: Path | bytes | None = None
    precision: str = "fp32"
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.module is None and self.onnx is None and self.file is None:
            raise InvalidSetting(f"{self.name!r} has neither a module nor an ONNX file; give one of them")
        if isinstance(self.onnx, Path) and not self.onnx.is_file():
            raise InvalidFile(f"there is no ONNX file at {self.onnx}; export {self.name!r} first")
        if self.file is not None and not self.file.exists():
            raise InvalidFile(f"there is no file {self.file}; write it with `ltcompile shrink`")
        if self.module is not None:
            self._check_module(self.module)

    def _check_module(self, module: nn.Module) -> None:
        if module.training:
            raise InvalidSetting(f"{self.name!r} is in training mode; call .eval() on it first")
        odd = {str(p.dtype) for p in module.parameters() if p.is_floating_point()} - {"torch.float32"}
        if odd and self.precision == "fp32":
            raise InvalidSetting(f"{self.name!r} has {', '.join(sorted(odd))} parameters; call .float() on it first")

    def need_module(self, user: str) -> nn.Module:
        """The module. Raises Unavailable where there is none."""
        if self.module is None:
            raise Unavailable(f"{user} needs a torch module, and {self.name!r} is an ONNX file only; use another runtime")
        return self.module

    def need_onnx(self, user: str) -> Path | bytes:
        """The ONNX file. Raises Unavailable where there is none."""
        if self.onnx is None:
            raise Unavailable(f"{user} needs an ONNX file, and {self.name!r} has none; export it first")
        return self.onnx

    def need_file(self, user: str, suffix: str) -> Path:
        """The file in the format `suffix`. Raises Unavailable where there is none."""
        if self.file is None or self.file.suffix != suffix:
            raise Unavailable(
                f"{user} reads {suffix} files, and {self.name!r} has none; write one with `ltcompile shrink -o small{suffix}`"
            )
        return self.file

    def onnx_bytes(self, user: str) -> bytes:
        """What the ONNX file holds. Raises Unavailable where there is none."""
        file = self.need_onnx(user)
        return file if isinstance(file, bytes) else file.read_bytes()

    @property
    def what(self) -> str:
        """What is run, for messages: the file's path, or the name."""
        return str(self.file or self.onnx) if self.file or isinstance(self.onnx, Path) else repr(self.name)


@dataclass(frozen=True)
class Options:
    """How a session is opened beyond its deployment: what measurements need, and users do not.

    Args:
        trace: record how long each operation takes, which slows calls down; `Session.layer_times` gives the times.
        spin: worker threads wait actively for the next call, as they do by default; otherwise they sleep between calls.
        mode: one of several ways in which a runtime compiles, such as "max-autotune"; None for its usual one.
        graph: record calls of PyTorch in a CUDA graph, and replay that.
        wait: calls on a GPU return when they have ended; otherwise they are only put on the current stream.
        sizes: what dynamic dimensions of an ONNX file are fixed to, by name; by default the first one of each input, to the batch.
        watch: memory is watched from before the session is opened, for `Session.peak_bytes`.
    """

    trace: bool = False
    spin: bool = True
    mode: str | None = None
    graph: bool = False
    wait: bool = True
    sizes: Mapping[str, int] | None = None
    watch: bool = False


class Bound(NamedTuple):
    """A session with inputs in place: `call` runs it, `read` gives the outputs of the last call by name, and `write` puts other inputs of
    the same shapes in place.

    It belongs to one thread; other threads bind their own inputs. Inputs are not copied on a CPU: leave them alone until `read`.
    """

    call: Callable[[], object]
    read: Callable[[], dict[str, Array]]
    write: Callable[[Feeds], object]


@dataclass(frozen=True)
class Trace:
    """Operations in the order in which they ran: their names, which of them multiply by weights, and microseconds (calls, operations)."""

    names: tuple[str, ...]
    products: tuple[bool, ...]
    us: NDArray[np.float64]


class Session(ABC):
    """A network that a runtime made ready for one deployment.

    `details` are the settings that a reader needs to repeat a timing. `thread_safe` says whether calls that are bound apart run at the same
    time; where it is False they take turns.
    """

    thread_safe = True
    watched: Callable[[], int | None] | None = None

    def __init__(self, deployment: Deployment, details: Mapping[str, str]) -> None:
        self.deployment, self.details = deployment, dict(details)
        self._idle: deque[Bound] = deque()
        self._turn = threading.RLock()

    @property
    def dtype(self) -> str:
        """What fp32 products are computed in: "float32", or "tf32" on NVIDIA GPUs since Ampere."""
        return "float32"

    @abstractmethod
    def bind(self, inputs: Feeds) -> Bound:
        """The session with `inputs` placed on its device, and all work done that depends on their shapes.

        Raises:
            Unavailable: the runtime cannot compile the network for these shapes.
        """

    def in_turns(self, call: Callable[[], None]) -> Callable[[], None]:
        """`call`, for bindings of a session that is not thread-safe: one runs at a time."""

        def one_at_a_time() -> None:
            with self._turn:
                call()

        return one_at_a_time

    def layer_times(self) -> Trace:
        """The times of each operation in all calls so far, and the end of their recording. Raises Unavailable without `Options.trace`."""
        raise Unavailable(f"{self.deployment} was opened without recording the times of operations")

    def peak_bytes(self) -> int | None:
        """The most memory since the session was opened, above what its process held before (`core.memory.watch`); None without `Options.watch`."""
        return None if self.watched is None else self.watched()

    def run(self, inputs: Feeds) -> dict[str, Array]:
        """The outputs by name; any number of threads may call it. Raises Unavailable as `bind`."""
        with nullcontext() if self.thread_safe else self._turn:
            try:
                bound = self._idle.pop()
            except IndexError:
                bound = self.bind(inputs)
            else:
                bound.write(inputs)
            bound.call()
            outputs = bound.read()
        self._idle.append(bound)
        return outputs

    def repeated(self, inputs: Feeds) -> Callable[[], object]:
        """`run` with these inputs, for timing: with what it takes to hand them over and to fetch the outputs."""
        return partial(self.run, inputs)

    def answers(self, rows: Array) -> Array:
        """The first output for any number of rows of a network's only input, in batches of the deployment's size; the last is filled up."""
        batch = self.deployment.batch
        filled = numerics.tile(rows, max(batch, len(rows)))
        return numerics.in_chunks(lambda chunk: next(iter(self.run(chunk).values())), filled, batch)[: len(rows)]


def in_order(inputs: Feeds) -> list[Array]:
    """The arrays alone."""
    if isinstance(inputs, np.ndarray):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, Mapping) else inputs)


def by_name(inputs: Feeds, names: Sequence[str]) -> dict[str, Array]:
    """The arrays under the names of a file's inputs: those of a mapping by name, where there is more than one, others in order.

    Raises:
        InvalidSetting: they do not fit.
    """
    arrays = in_order(inputs)
    if isinstance(inputs, Mapping) and set(names) <= inputs.keys():  # a file may leave out what its network does not read
        arrays = [inputs[name] for name in names]
    elif len(arrays) != len(names) or (isinstance(inputs, Mapping) and len(names) > 1):
        given = ", ".join(inputs) if isinstance(inputs, Mapping) else f"{len(arrays)} arrays"
        raise InvalidSetting(f"the network takes {', '.join(names)}, not {given}")
    return {name: np.ascontiguousarray(array) for name, array in zip(names, arrays, strict=True)}


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
