# mypy: disable-error-code="import-untyped"
"""The only place where kernels are launched and interpreted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ltcompile.errors import InvalidSetting, Unavailable
from ltcompile.kernels._config import Config

REGISTERS = 65536  # of a multiprocessor, of every NVIDIA GPU since 2012


@dataclass(frozen=True)
class Call:
    """A kernel with its arguments. Tensors stay alive and in place, so a Call can be captured and replayed.

    A tensor or constant may be a tuple, also of tuples, where the kernel takes one. A cooperative call's programs run at the same time and
    may wait for one another; a GPU refuses more than it can hold.
    """

    kernel: Any
    programs: int
    tensors: dict[str, Any]
    numbers: dict[str, int]  # known at run time
    constants: dict[str, Any]  # known at compile time
    warps: int
    stages: int
    cooperative: bool = False

    def __post_init__(self) -> None:
        for name, tensor in self._given_tensors():
            if not tensor.is_contiguous():
                raise InvalidSetting(f"{name} is not contiguous (strides {tensor.stride()}); call .contiguous() on it")
            if tensor.numel() >= 2**31:
                raise InvalidSetting(f"{name} has {tensor.numel()} elements, positions are 32-bit; split the batch")

    @property
    def dependent(self) -> bool:
        """Whether it starts before the previous kernel has ended; see `dependent`."""
        return bool(self.constants.get("DEPENDENT"))

    @property
    def arguments(self) -> dict[str, Any]:
        """The kernel's arguments by name."""
        return {**self.tensors, **self.numbers, **self.constants}

    @property
    def options(self) -> dict[str, int | bool]:
        """Triton's launch options."""
        rare = {"launch_pdl": self.dependent, "launch_cooperative_grid": self.cooperative}
        return {"num_warps": self.warps, "num_stages": self.stages} | {name: True for name, wanted in rare.items() if wanted}

    @property
    def device(self) -> torch.device:
        """The device of its first tensor."""
        return next(tensor.device for _, tensor in self._given_tensors())

    def _given_tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor) for name, given in self.tensors.items() for _, tensor in _leaves(given))


def configured(
    kernel: Any, config: Config, programs: int, tensors: dict[str, Any], numbers: dict[str, int], constants: dict[str, Any]
) -> Call:
    """The call of a kernel by itself in `config`: program 0 computes item 0, and it does not start before the previous kernel has ended."""
    blocks = {"BM": config.block_m, "BN": config.block_n, "DEPENDENT": False}
    return Call(kernel, programs, tensors, {"first": 0} | numbers, constants | blocks, config.warps, config.stages)


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs the kernel (TRITON_INTERPRET=1 when it was defined)."""
    return not isinstance(kernel, triton.JITFunction)


def dependent(call: Call) -> Call:
    """`call`, ready to start while the previous kernel in the stream ends (programmatic dependent launch).

    It computes addresses ahead and waits before it reads or writes anything. Every program of every such kernel waits, so that the end of
    one is the end of all before it: in one stream, dependent and other kernels may reuse buffers as if none had started early.

    Raises:
        InvalidSetting: the kernel has no such form, or Triton's interpreter runs it.
        Unavailable: the tensors are on a GPU of a compute capability below 9.0.
    """
    if interpreted(call.kernel) or "DEPENDENT" not in call.constants:
        why = "Triton's interpreter runs it" if interpreted(call.kernel) else "it has no such form"
        raise InvalidSetting(
            f"{call.kernel.__name__} cannot start before the previous kernel has ended: {why}; launch it without `dependent`"
        )
    made = replace(call, constants=call.constants | {"DEPENDENT": True})
    if call.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(call.device)
        _check_dependent(made, 10 * major + minor)
    return made


def _check_dependent(call: Call, capability: int) -> None:
    if call.dependent and capability < 90:
        raise Unavailable(
            f"a GPU of compute capability {capability / 10} cannot start a kernel before the previous one has ended; launch it without "
            "`dependent`"
        )


@dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor holds at once."""

    registers: int
    shared_bytes: int
    threads: int
    programs: int = 32


class Usage(NamedTuple):
    """What a compiled kernel takes: registers of a thread, and shared memory of a program."""

    registers: int
    shared_bytes: int


def resident(used: Usage, warps: int, one: Multiprocessor) -> int:
    """How many programs of `warps` warps a multiprocessor holds at once, by CUDA's rules: a warp gets registers in units of 256, and a
    program takes 1 KB of shared memory more than it requests."""
    registers = warps * -(-max(used.registers, 1) * 32 // 256) * 256
    return min(one.registers // registers, one.shared_bytes // (used.shared_bytes + 1024), one.threads // (32 * warps), one.programs)


def check_resident(programs: int, used: Usage, warps: int, one: Multiprocessor, count: int) -> None:
    """Raises Unavailable where the `programs` of a cooperative call do not fit on the `count` multiprocessors of a GPU at once."""
    if programs > (fitting := count * resident(used, warps, one)):
        raise Unavailable(
            f"{programs} programs wait for one another, and this GPU holds {fitting} of them at once ({used.registers} registers a thread, "
            f"{used.shared_bytes:,} bytes of shared memory a program); request at most {fitting} programs, or launch the layers one by one"
        )


def _check_fits(call: Call) -> None:
    """`check_resident` for a cooperative call on the GPU that its tensors are on. One program a multiprocessor always fits."""
    gpu = torch.cuda.get_device_properties(call.device)
    if call.programs <= gpu.multi_processor_count:
        return
    kernel = call.kernel.warmup(**call.arguments, **call.options, grid=(call.programs,))
    kernel._init_handles()  # loads it, and sets n_regs
    used = Usage(kernel.n_regs, kernel.metadata.shared)
    one = Multiprocessor(REGISTERS, gpu.shared_memory_per_multiprocessor, gpu.max_threads_per_multi_processor)
    check_resident(call.programs, used, call.warps, one, gpu.multi_processor_count)


def launch(call: Call, wrap: Callable[[Any], Any] | None = None) -> None:
    """Run the kernel in the current stream, asynchronously on a GPU.

    Args:
        call: the kernel and its arguments.
        wrap: `torch.library.wrap_triton` inside an operator, so that compilers see the kernel.

    Raises:
        Unavailable: the tensors are not on a CUDA device (and Triton does not interpret), or a cooperative call has more programs than the
            GPU holds at once.
    """
    if interpreted(call.kernel):
        kernel = call.kernel
    else:
        devices = {tensor.device.type for _, tensor in call._given_tensors()}
        if devices != {"cuda"}:
            raise Unavailable(
                f"a Triton kernel needs its tensors on a CUDA device, they are on {', '.join(sorted(devices))}; "
                "move them, or call the operator, which also runs on a CPU"
            )
        if call.cooperative:
            _check_fits(call)
        kernel = wrap(call.kernel) if wrap else call.kernel
    kernel[(call.programs,)](**call.arguments, **call.options)


def _leaves(value: Any, *path: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    """The values in tuples of tuples, each with its path."""
    if isinstance(value, tuple):
        for at, part in enumerate(value):
            yield from _leaves(part, *path, at)
    else:
        yield path, value
