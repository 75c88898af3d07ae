"""The operator of a kernel, from the record of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.library import triton_op, wrap_triton

from ltcompile.kernels._config import Config
from ltcompile.kernels._launch import Call, launch


class Arguments(Protocol):
    """The arguments of a kernel. What is read first is called `x`."""

    x: Any

    def empty(self) -> Tensor:
        """The output, not filled."""

    def default(self, warps: int | None = None) -> Config:
        """The configuration to use when none was timed, in so many warps where these are not free."""

    def space(self) -> list[Config]:
        """The configurations worth timing, the default first."""


def operator(name: str, record: Callable[..., Any], reference: Callable[[Any], Tensor], prepare: Callable[[Tensor, Any], Call]) -> Any:
    """`torch.ops.ltcompile.<name>`, which takes the fields of `record`: on a CPU the reference, else the Triton kernel.

    Compilers see the kernel (`torch.library.triton_op`); tensors without values go through `record.empty`.
    """

    def compute(*args: Any, **kwargs: Any) -> Tensor:
        arguments = record(*args, **kwargs)
        if arguments.x.device.type == "cpu":
            return reference(arguments)
        y: Tensor = arguments.empty()
        launch(prepare(y, arguments), wrap_triton)
        return y

    compute.__signature__ = inspect.signature(record).replace(return_annotation=Tensor)  # type: ignore[attr-defined]
    made: Any = triton_op(f"ltcompile::{name}", compute, mutates_args={})
    made.register_fake(lambda *args, **kwargs: record(*args, **kwargs).empty())
    return made
