"""Where a result is zero for the channels that a mask zeroes, and where it is not finite there.

A mask zeroes parameters. What is computed from them is zero at a masked channel only if the operation keeps zeros: a sum over such
channels may be cut, a mean, a softmax or a quotient may not. Pointwise operations are tried on zeros; of the others, those in `CARRIES`
keep zeros in place, and nothing else does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ltcompile.graph._labels import Atoms, Dims, Labels
from ltcompile.graph.rules._call import Call, aten, tensors_in

SINGULAR = "it is zero where a mask drops it, and {} of zero is not finite"

# Values move, or those of one channel are combined so that zeros give zero.
CARRIES = set(
    aten("""view _unsafe_view reshape _reshape_alias view_copy unflatten permute t transpose swapaxes transpose_ unsqueeze unsqueeze_
  squeeze squeeze_ expand as_strided as_strided_ repeat flip roll rot90 split split_with_sizes split_with_sizes_copy split_copy chunk
  slice slice_copy select select_copy unbind unbind_copy index _unsafe_index index_select embedding gather diagonal unfold im2col col2im
  pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d
  reflection_pad3d replication_pad1d replication_pad2d replication_pad3d view_as_complex view_as_real _fft_r2c _fft_c2r _fft_c2c
  avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
  adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool2d
  adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d upsample_nearest1d upsample_nearest2d
  upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa
  _upsample_bicubic2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d grid_sampler_2d grid_sampler_3d
  sum mean amax amin max min var std var_mean std_mean prod linalg_vector_norm norm cumsum cumprod cummax cummin sort topk median
  nanmedian kthvalue mode native_dropout pad""")
) | {f"torchvision.{name}" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")}
_VALUES = 8  # that a pointwise operation is tried on


def carried(call: Call, dims: Dims, out: Tensor) -> list[bool]:
    """The zeros of the result of an operation in `CARRIES`: a dimension is zero where its channels are zero in the first input."""
    x = tensors_in(call.values.values())[0]
    if float(call.values.get("value") or 0) != 0:  # of a padding
        return [False] * out.dim()
    zero, other = [_none()], [_none()]
    for atoms, flag in zip(call.labels[x], call.labels.zero(x), strict=True):
        if atoms is not None:
            (zero if flag else other).append(atoms.ravel())
    held = np.setdiff1d(np.concatenate(zero), np.concatenate(other))
    return [atoms is not None and len(held) > 0 and bool(np.isin(atoms, held).all()) for atoms in dims]


def _none() -> Atoms:
    return np.empty(0, np.int64)


def pointwise(call: Call, dims: Dims, out: Tensor) -> list[bool]:
    """The zeros of a pointwise result. Channels for which it is not finite are spared by the mask, or must stay."""
    if not (out.is_floating_point() or out.is_complex()):
        return [False] * out.dim()
    flags = []
    for at, atoms in enumerate(dims):
        pattern = tuple(_is_zero(call.labels, t, at - out.dim(), int(out.shape[at])) for t in call.tensors)
        kept, finite = _tried(call, pattern) if atoms is not None and any(pattern) else (False, True)
        if not finite:
            _singular(call, at - out.dim(), pattern)
        flags.append(kept and finite)
    return flags


def _is_zero(labels: Labels, tensor: Tensor, back: int, size: int) -> bool:
    """Whether a pointwise operand is zero for the masked channels of the result's dimension `back`, counted from the end."""
    return -back <= tensor.dim() and tensor.shape[back] == size and labels[tensor][back] is not None and labels.zero(tensor)[back]


def _singular(call: Call, back: int, pattern: tuple[bool, ...]) -> None:
    reason = SINGULAR.format(call.name)
    for tensor, zero in zip(call.tensors, pattern, strict=True):
        if zero and not _finite_without(call, pattern, tensor):
            call.labels.spare(tensor, back % tensor.dim(), reason)


def _finite_without(call: Call, pattern: tuple[bool, ...], tensor: Tensor) -> bool:
    """Whether zeros in `tensor` alone would give a finite result: then another operand is the one that must not be zero."""
    alone = tuple(zero and t is tensor for t, zero in zip(call.tensors, pattern, strict=True))
    return sum(pattern) > 1 and _tried(call, alone)[1]


def _tried(call: Call, pattern: tuple[bool, ...]) -> tuple[bool, bool]:
    """Whether the operation gives zeros, and finite values, where the operands in `pattern` are zero."""
    place = iter(range(len(call.tensors)))
    template = {name: _described(value, place) for name, value in call.values.items() if name != "memory_format"}
    key = tuple(sorted((name, repr(value)) for name, value in template.items()))
    return _result(call.func, key, _Held(template, tuple(t.dtype for t in call.tensors)), pattern)


class _Held:
    """Arguments that take no part in the key of the cache: `key` says the same, hashable."""

    def __init__(self, template: dict[str, Any], dtypes: tuple[torch.dtype, ...]) -> None:
        self.template, self.dtypes = template, dtypes

    def __hash__(self) -> int:
        return hash(self.dtypes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.dtypes == other.dtypes


class _Operand:
    """The place of a tensor among the arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"tensor {self.number}"


def _described(value: Any, place: Any) -> Any:
    if isinstance(value, Tensor):
        return _Operand(next(place))
    if isinstance(value, (list, tuple)):
        return [_described(v, place) for v in value]
    return torch.device("cpu") if isinstance(value, torch.device) else value


@lru_cache(4096)
def _result(func: Any, key: Any, held: _Held, pattern: tuple[bool, ...]) -> tuple[bool, bool]:
    try:
        with _disable_current_modes(), torch.no_grad():
            found = _run(func, held, pattern, signed=True)
            if bool((found == 0).all()):
                return True, True
            usual, masked = (_run(func, held, p, signed=False) for p in ((False,) * len(pattern), pattern))
            return False, bool(torch.isfinite(masked).all()) or not bool(torch.isfinite(usual).all())
    except Exception:  # the operation requires matching shapes: it keeps no zeros as far as is known
        return False, True


def _run(func: Any, held: _Held, pattern: tuple[bool, ...], signed: bool) -> Tensor:
    operands = [_sample(i, dtype, zero, signed) for i, (dtype, zero) in enumerate(zip(held.dtypes, pattern, strict=True))]
    arguments = func._schema.arguments
    given = {name: _filled(value, operands) for name, value in held.template.items()}
    positional = [given[a.name] for a in arguments if not a.kwarg_only and a.name in given]
    return tensors_in(func(*positional, **{a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given}))[0]


def _filled(value: Any, operands: list[Tensor]) -> Any:
    if isinstance(value, _Operand):
        return operands[value.number]
    return [_filled(v, operands) for v in value] if isinstance(value, list) else value


def _sample(number: int, dtype: torch.dtype, zero: bool, signed: bool) -> Tensor:
    """Zeros, or values of both signs between 1/2 and 2; of both truth values."""
    if zero:
        return torch.zeros(_VALUES, dtype=dtype)
    values = torch.linspace(0.5, 2, _VALUES, dtype=torch.float64).roll(number)
    if dtype == torch.bool:
        return torch.arange(_VALUES) // (number + 1) % 2 == 0
    signs = torch.tensor([1 if (i >> number % 3) % 2 or not signed else -1 for i in range(_VALUES)])
    return (values * signs * (1 if dtype.is_floating_point or dtype.is_complex else 2)).to(dtype)
