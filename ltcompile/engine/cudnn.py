"""Layers by cuDNN and cuBLAS on the padded channels of our kernels' layout: the alternative to each kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.kernels import ACTIVATIONS, KEEPS_ZERO
from ltcompile.lower.program import Node

Run = Callable[[Tensor, Tensor | None], Tensor]


def refusal(node: Node) -> str:
    """Why cuDNN or cuBLAS is not tried for a node, or ""."""
    if node.target not in ("kernel.conv2d", "kernel.linear"):
        return "only dense convolutions and linear layers have a form that both can take"
    if node.kwargs["activation"] not in KEEPS_ZERO:
        return f"{node.kwargs['activation']} would not keep the padding zero"
    return ""


def layer(node: Node, constants: Mapping[str, Tensor]) -> Run:
    """The node as (x (N, H, W, Cs), residual (N, P, Q, Ks) or None) -> (N, P, Q, Ks); linear layers (N, Cs) -> (N, Ks)."""
    w, bias = constants[node.args[1].name], constants[node.args[2].name].to(constants[node.args[1].name].dtype)
    act = ACTIVATIONS[node.kwargs["activation"]]
    if node.target == "kernel.linear":
        return lambda x, residual: act(torch.addmm(bias, x, w))
    return _Convolution(w, bias, dict(node.kwargs))


class _Convolution:
    def __init__(self, w: Tensor, bias: Tensor, settings: dict[str, Any]) -> None:
        r, s = settings["kernel"]
        self._weight = w.view(r, s, -1, bias.shape[0]).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        self._bias, self._settings = bias, settings

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        images = x.permute(0, 3, 1, 2)
        other = None if residual is None else residual.permute(0, 3, 1, 2)
        y = self._fused(images, other) if self._settings["activation"] == "relu" and x.is_cuda else self._plain(images, other)
        y = F.max_pool2d(y, 2) if self._settings["pool"] else y
        return y.permute(0, 2, 3, 1).contiguous()

    def _fused(self, images: Tensor, other: Tensor | None) -> Tensor:
        rest = (self._bias, self._settings["stride"], self._settings["padding"], [1, 1], 1)
        if other is None:
            return torch.ops.aten.cudnn_convolution_relu.default(images, self._weight, *rest)  # type: ignore[no-any-return]
        return torch.ops.aten.cudnn_convolution_add_relu.default(images, self._weight, other, 1.0, *rest)  # type: ignore[no-any-return]

    def _plain(self, images: Tensor, other: Tensor | None) -> Tensor:
        y = F.conv2d(images, self._weight, self._bias, self._settings["stride"], self._settings["padding"])
        return ACTIVATIONS[self._settings["activation"]](y if other is None else y + other)
