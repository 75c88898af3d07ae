# mypy: disable-error-code="import-untyped"
"""The one door through which a kernel is launched, interpreted or compiled ahead of time."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from ltcompile.errors import BadSetting, Unavailable

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}


@dataclass(frozen=True)
class Call:
    """A kernel with everything it is called with. Tensors stay alive and in place, so a Call can be captured and replayed."""

    kernel: Any
    grid: tuple[int, int]
    tensors: dict[str, Tensor]
    numbers: dict[str, int]  # known when it runs
    constants: dict[str, int | bool | str]  # known when it is compiled
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if not tensor.is_contiguous():
                raise BadSetting(f"{name} is not contiguous (strides {tensor.stride()}); call .contiguous() on it")
            if tensor.numel() >= 2**31:
                raise BadSetting(f"{name} has {tensor.numel()} elements, positions are 32-bit; split the batch")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a call."""

    ptx: str
    shared_bytes: int
    registers: int  # a thread
    stack_bytes: int  # a thread; spilled registers lie there


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs the kernel (TRITON_INTERPRET=1 when it was defined)."""
    return not isinstance(kernel, triton.JITFunction)


def launch(call: Call, wrap: Callable[[Any], Any] | None = None) -> None:
    """Run the kernel; its outputs are written when the current stream gets there.

    Args:
        wrap: `torch.library.wrap_triton` inside an operator, so that compilers see the kernel.

    Raises:
        Unavailable: the tensors are not on a CUDA device (and Triton does not interpret).
    """
    if interpreted(call.kernel):
        kernel = call.kernel
    else:
        homes = {tensor.device.type for tensor in call.tensors.values()}
        if homes != {"cuda"}:
            raise Unavailable(
                f"a Triton kernel needs its tensors on a CUDA device, they are on {', '.join(sorted(homes))}; "
                "move them, or call the operator, which also runs on a CPU"
            )
        kernel = wrap(call.kernel) if wrap else call.kernel
    kernel[call.grid](**call.tensors, **call.numbers, **call.constants, num_warps=call.warps, num_stages=call.stages)


def compile_ahead(call: Call, capability: int) -> Compiled:
    """Compile for a GPU that need not be here; the tensors may be on the meta device.

    Args:
        capability: 80, 90 or 100, ...: the compute capability, times ten.

    Raises:
        Unavailable: kernels are interpreted in this process, or this Triton has no NVIDIA tools.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if interpreted(call.kernel):
        raise Unavailable("kernels are interpreted in this process; unset TRITON_INTERPRET and start again")
    names = call.kernel.arg_names
    aligned: Any = {(names.index(name),): [["tt.divisibility", 16]] for name in call.tensors}  # as torch allocates
    aligned |= {(names.index(name),): [["tt.divisibility", 16]] for name, value in call.numbers.items() if value % 16 == 0}
    given = {name: _POINTERS[tensor.dtype] for name, tensor in call.tensors.items()} | dict.fromkeys(call.numbers, "i32")
    signature = {name: given.get(name, "constexpr") for name in names}
    made = triton.compile(
        ASTSource(call.kernel, signature, call.constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": call.warps, "num_stages": call.stages},
    )
    used = _usage(made.asm["cubin"])
    return Compiled(made.asm["ptx"], made.metadata.shared, used["REG"], used["STACK"] + used["LOCAL"])


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and so on, as cuobjdump tells them."""
    from triton.backends import nvidia

    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    if not tool.exists():
        raise Unavailable(f"{tool} is missing; install Triton from its wheel")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", told)}
