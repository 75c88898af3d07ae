"""A network in other arithmetic: in half precision, with every result rounded to half precision, or in double.

Callers' modules stay as they are. To round or to widen, a mode of torch sees each operation, widens its inputs, or rounds its results.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class InDouble(TorchFunctionMode):
    """Inside it, every call of torch on floating-point values computes in float64, one layer's weights at a time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in _CASTS:  # of whole numbers, too
            return args[0].double()
        if getattr(func, "__name__", "") == "__get__":  # shapes and dtypes need no copy
            found = func(*args, **(kwargs or {}))
            return _widened(found) if isinstance(found, torch.dtype) else found  # recurrent layers compare their weights' with the input's
        return tree_map(_widened, func(*tree_map(_widened, args), **tree_map(_widened, dict(kwargs or {}))))


class Rounded(TorchDispatchMode):
    """Inside it, every operation's fp32 result is rounded to `dtype`, and kept as fp32: sums inside an operation stay in fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(returned.alias_info is not None and not returned.alias_info.is_write for returned in func._schema.returns):
            return out  # a view of what is rounded already
        if any(returned.alias_info is not None for returned in func._schema.returns):
            with torch.no_grad():
                tree_map(lambda x: x.copy_(self._round(x)) if _is_fp32(x) else x, out)
            return out
        return tree_map(self._round, out)

    def _round(self, value: Any) -> Any:
        return value.to(self._dtype).to(torch.float32) if _is_fp32(value) else value


class HalfInside(nn.Module):
    """A copy of `module` in `dtype` behind float32 inputs and outputs, called as `module` is; `module` itself stays as it is."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype
        # Exporters read the names of inputs off the signature of `forward`.
        own = {"forward": functools.wraps(type(module).forward)(HalfInside.forward)}
        self.__class__ = type("HalfInside", (HalfInside,), own)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(functools.partial(_cast, torch.float32, self.dtype), (args, kwargs))
        return tree_map(functools.partial(_cast, self.dtype, torch.float32), self.module(*args, **kwargs))


@torch.no_grad()
def in_double(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What `model` (eval mode, on the CPU) answers, computed in float64.

    Weights stay as they are, so that rounding is left out of a comparison of two networks.
    """
    with InDouble():
        return model(*args, **kwargs)


def rounded_network(model: nn.Module, precision: str) -> Callable[..., Any]:
    """`model` (fp32, eval mode, on the CPU) with weights, inputs and every operation's result rounded to "fp16" or "bf16"; fp32 outside."""
    dtype, network = HALVES[precision], copy.deepcopy(model)

    def rounded(value: Any) -> Any:
        return value.to(dtype).float() if _is_fp32(value) else value

    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            if value.dtype == torch.float32:
                value.copy_(value.to(dtype))

    @torch.no_grad()
    def answer(*args: Any, **kwargs: Any) -> Any:
        with Rounded(dtype):
            return network(*tree_map(rounded, args), **tree_map(rounded, kwargs))

    return answer


def _cast(source: torch.dtype, target: torch.dtype, value: Any) -> Any:
    return value.to(target) if isinstance(value, Tensor) and value.dtype == source else value


def _is_fp32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return value
