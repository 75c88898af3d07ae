"""The operations of programs: those of aten in an explicit list, our fused ones and those on integers with their meaning in PyTorch, our
kernels, and the conversions into and out of the kernels' layout.

The list is closed, so that a program from a file can only compute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile import kernels
from ltcompile.kernels import ACTIVATIONS
from ltcompile.lower import integer

_LIST = """
_native_batch_norm_legit_no_training.default _to_copy.default _unsafe_view.default abs.default adaptive_avg_pool1d.default
adaptive_avg_pool2d.default adaptive_max_pool2d.default add.Scalar add.Tensor addmm.default alias.default amax.default
avg_pool1d.default avg_pool2d.default bmm.default cat.default celu.default channel_shuffle.default chunk.default clamp.default
clamp_min.default clone.default constant_pad_nd.default conv1d.default conv2d.default conv2d.padding conv_transpose1d.default
conv_transpose2d.input cos.default div.Scalar div.Tensor dropout.default einsum.default elu.default embedding.default erf.default
exp.default expand.default flatten.using_ints gelu.default glu.default group_norm.default hardsigmoid.default hardswish.default
hardtanh.default index.Tensor instance_norm.default layer_norm.default leaky_relu.default linalg_vector_norm.default linear.default
log.default log_sigmoid.default log_softmax.int masked_fill.Scalar matmul.default max_pool1d.default max_pool2d.default maximum.default
mean.dim minimum.default mish.default mm.default mul.Scalar mul.Tensor narrow.default neg.default pad.default permute.default
pixel_shuffle.default pixel_unshuffle.default pow.Tensor_Scalar prelu.default relu.default relu6.default repeat.default
repeat_interleave.self_int reshape.default rms_norm.default roll.default rsqrt.default rsub.Scalar scaled_dot_product_attention.default
select.int select_scatter.default selu.default sigmoid.default silu.default sin.default slice.Tensor slice_scatter.default softmax.int
softplus.default split.Tensor split_with_sizes.default sqrt.default squeeze.default squeeze.dim squeeze.dims stack.default
std.correction sub.Scalar sub.Tensor sum.dim_IntList tanh.default transpose.int unbind.int unflatten.int unsqueeze.default
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_nearest2d.vec var.correction var_mean.correction view.default
"""
_ATEN = frozenset(_LIST.split())


_WORDS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool),
    *(torch.contiguous_format, torch.preserve_format, torch.channels_last),
)
WORDS = {str(word): word for word in _WORDS}  # the types and formats that arguments may name


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    stride: list[int],
    padding: list[int],
    groups: int,
    activation: str,
    pool: bool,
) -> Tensor:
    """pool(act(conv(x, weight) + bias + residual)): (N, C, H, W) -> (N, K, P, Q), halved by the 2x2 max pool where there is one."""
    y = F.conv2d(x, weight, _like(bias, x), stride, padding, 1, groups)
    y = ACTIVATIONS[activation](y if residual is None else y + residual)
    return F.max_pool2d(y, 2) if pool else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    """act(x weight^T + bias): (..., C) -> (..., K)."""
    return ACTIVATIONS[activation](F.linear(x, weight, _like(bias, x)))


def mixed_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *, dtype: torch.dtype, **settings: Any) -> Tensor:
    """`conv2d` in float32 of tensors of any type, as `dtype`."""
    return conv2d(x.float(), weight.float(), bias, None if residual is None else residual.float(), **settings).to(dtype)


def mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, activation: str) -> Tensor:
    """`linear` in float32 of tensors of any type, as `dtype`."""
    return linear(x.float(), weight.float(), bias, activation=activation).to(dtype)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """A bias in the type of x; programs in half precision hold it in fp32, as the kernels add it."""
    return None if bias is None else bias.to(x.dtype)


def pooled_head(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    """act(mean over all places of x, times weight^T, + bias): (N, C, H, W) -> (N, K)."""
    return linear(x.mean((2, 3)), weight, bias, activation=activation)


def enter(x: Tensor, stride: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Into the kernels' layout: (N, C, H, W) -> (N, H, W, stride), or (N, C) -> (N, stride), zeros behind the channels; cast to `dtype`."""
    y = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).to(dtype or x.dtype)
    return F.pad(y, (0, stride - y.shape[-1])).contiguous()


def leave(x: Tensor, channels: int) -> Tensor:
    """Out of the kernels' layout, as a view: (N, H, W, stride) -> (N, channels, H, W), or (N, stride) -> (N, channels)."""
    y = x[..., :channels]
    return y.permute(0, 3, 1, 2) if x.dim() == 4 else y


_FUSED: dict[str, Callable[..., Tensor]] = {"conv2d": conv2d, "linear": linear, "pooled_head": pooled_head}
_MIXED: dict[str, Callable[..., Tensor]] = {"conv2d": mixed_conv2d, "linear": mixed_linear}
_LAYOUT: dict[str, Callable[..., Tensor]] = {"enter": enter, "leave": leave}
KERNELS = ("conv2d", "depthwise", "grouped", "linear", "maxpool", "pooled_head")


def known(target: str) -> bool:
    """Whether programs may call `target`; imports nothing."""
    family, _, name = target.partition(".")
    names = {"aten": _ATEN, "fused": _FUSED, "mixed": _MIXED, "int8": integer.OPERATIONS, "layout": _LAYOUT, "kernel": KERNELS}
    return target == "getitem" or name in names.get(family, ())


def find(target: str) -> Callable[..., Any]:
    """The function of "aten.NAME.OVERLOAD", "fused.NAME", "mixed.NAME", "int8.NAME", "kernel.NAME", "layout.NAME" or "getitem".

    Raises:
        KeyError: it is anything else.
    """
    if not known(target):
        raise KeyError(target)
    if target == "getitem":
        return operator.getitem
    family, _, name = target.partition(".")
    if family in ("fused", "mixed", "int8", "layout"):
        return {"fused": _FUSED, "mixed": _MIXED, "int8": integer.OPERATIONS, "layout": _LAYOUT}[family][name]
    if family == "kernel":
        return getattr(kernels.load(name), name)  # type: ignore[no-any-return]
    packet, _, overload = name.partition(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def name_of(called: Any) -> str | None:
    """The target for the function of a torch.fx node, or None where programs do not have it."""
    if called is operator.getitem:
        return "getitem"
    name = str(called).removeprefix("aten.")
    return f"aten.{name}" if name in _ATEN else None
