"""What common operations give, by shape alone. Torch answers on the meta device too, but for these in Python, over milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Shapes(TorchDispatchMode):
    """Answers for tensors on the meta device; torch handles all other operations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = _ANSWERS.get(func)
        if known is not None and not kwargs and args[0].is_meta:
            out = known(*args)
            if out is not NotImplemented:
                return out
        return func(*args, **(kwargs or {}))


def _same(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _itself(x: Tensor, *_: Any) -> Tensor:
    return x


def _pointwise(x: Tensor, y: Any) -> Any:
    """Of operands laid out alike; broadcasting and promotion are torch's."""
    alike = isinstance(y, Tensor) and (x.dtype, x.shape, x.stride()) == (y.dtype, y.shape, y.stride())
    return torch.empty_like(x) if alike else NotImplemented


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    for value in (weight, bias, mean, var):
        _check(value is None or value.shape == x.shape[1:2], "batch norm", value, x)
    count = x.shape[1] if training else 0
    return torch.empty_like(x), x.new_empty(count), x.new_empty(count)


def _layer_norm(x: Tensor, normalized_shape: Sequence[int], weight: Any, bias: Any, _: float) -> tuple[Tensor, Tensor, Tensor]:
    inside = torch.Size(normalized_shape)
    outside = x.shape[: x.dim() - len(inside)]
    _check(x.shape == outside + inside, "layer norm", inside, x)
    for value in (weight, bias):
        _check(value is None or value.shape == inside, "layer norm", value, x)
    statistic = x.new_empty(outside + (1,) * len(inside))
    return x.new_empty(x.shape), statistic, statistic.clone()


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    _check(a.shape[1] == b.shape[0] and bias.shape[-1] in (1, b.shape[1]), "matrix product", b, a)
    return a.new_empty(a.shape[0], b.shape[1])


def _check(holds: bool, what: str, given: Any, x: Tensor) -> None:
    if not holds:
        raise RuntimeError(f"{what}: {tuple(getattr(given, 'shape', given))} does not fit {tuple(x.shape)}")


_ANSWERS: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor), _pointwise),
    **dict.fromkeys((aten.relu.default, aten.gelu.default, aten.hardswish.default, aten.hardsigmoid.default, aten.hardtanh.default), _same),
    **dict.fromkeys((aten.silu.default, aten.sigmoid.default, aten.roll.default, aten._safe_softmax.default, aten._softmax.default), _same),
    **dict.fromkeys((aten.hardswish_.default, aten.hardsigmoid_.default, aten.hardtanh_.default, aten.relu_.default), _itself),
}
