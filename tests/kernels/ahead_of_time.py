"""Kernels compiled ahead of time, for a GPU that this machine need not have."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from ltcompile.errors import Unavailable
from ltcompile.kernels._launch import Call, Usage, _check_dependent, _leaves, interpreted

_POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}


@dataclass(frozen=True)
class Compiled:
    """The compiler's result for a call; registers and stack bytes are for each thread, and spilled registers lie on the stack."""

    ptx: str
    used: Usage
    stack_bytes: int


def compile_ahead(call: Call, capability: int) -> Compiled:
    """Compile for a GPU, which this machine need not have.

    Args:
        call: its tensors may be on the meta device.
        capability: the compute capability, times ten: 80, 90, 100, ...

    Raises:
        Unavailable: kernels are interpreted in this process, this Triton has no NVIDIA tools, or such a GPU has no dependent launch.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if interpreted(call.kernel):
        raise Unavailable("kernels are interpreted in this process; unset TRITON_INTERPRET and start again")
    _check_dependent(call, capability)
    names, arguments = call.kernel.arg_names, call.arguments
    leaves = {(names.index(name), *path): leaf for name, value in arguments.items() for path, leaf in _leaves(value)}
    numbers = {(names.index(name),) for name in call.numbers}
    constants = {path: leaf for path, leaf in leaves.items() if path not in numbers and not isinstance(leaf, Tensor)}
    # as torch allocates, and as Triton specialises numbers at a launch
    wide = [path for path, leaf in leaves.items() if isinstance(leaf, Tensor) or (path in numbers and leaf % 16 == 0)]
    aligned: Any = {path: [["tt.divisibility", 16]] for path in wide}
    signature = {name: "i32" if name in call.numbers else _signature(arguments[name]) for name in names}
    made = triton.compile(
        ASTSource(call.kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=call.options,
    )
    used = _usage(made.asm["cubin"])
    return Compiled(made.asm["ptx"], Usage(used["REG"], made.metadata.shared), used["STACK"] + used["LOCAL"])


def _signature(value: Any) -> Any:
    """Triton's name for the type of an argument; a tuple of them for a tuple."""
    if isinstance(value, tuple):
        return tuple(_signature(part) for part in value)
    return _POINTERS[value.dtype] if isinstance(value, Tensor) else "constexpr"


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and so on, by cuobjdump."""
    from triton.backends import nvidia

    tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    if not tool.exists():
        raise Unavailable(f"{tool} is missing; install Triton from its wheel")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", report)}
