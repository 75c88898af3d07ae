"""Two smaller layers for one whose weight has a low rank, where they are fewer MACs: what pruning in a basis of singular vectors leaves.

    W (filters, inputs * kernel) = A B,  A = U_r sqrt(S_r) (filters, r),  B = sqrt(S_r) V_r' (r, inputs * kernel)

A convolution becomes one of r filters, without a bias, and a 1x1 convolution with the bias; a linear layer becomes two. At every place,
filters * inputs * kernel MACs become r * (filters + inputs * kernel).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.errors import Disagreement
from ltcompile.numerics import largest_error

TRUNCATION = 1e-6  # of a weight's norm: the rounding of fp32
EQUALITY_TOLERANCE = 1e-5  # relative to the largest output


@dataclass(frozen=True)
class Factorised:
    """A copy of a network with layers in two; of each convolution and linear layer what became of it; the rank of those that were split; and
    the error of its answers, relative to the largest.
    """

    module: nn.Module
    outcomes: Mapping[str, str]
    ranks: Mapping[str, int]
    error: float


@torch.no_grad()
def factorise(model: nn.Module, images: Tensor) -> Factorised:
    """`model` in eval mode with every layer in two that is fewer MACs then; both are run on `images` (N, C, H, W).

    Raises Disagreement where an answer changed by more than 1e-5 of the largest.
    """
    small = copy.deepcopy(model).eval()
    layers = {name: m for name, m in small.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    expected, called = _run(small, images, layers)
    outcomes, ranks = {}, {}
    for name, layer in layers.items():
        if refusal := _refusal(layer, layer in called):
            outcomes[name] = refusal
            continue
        matrix = layer.weight.flatten(1).double()
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        rank, full = _rank(values), len(values)
        if rank * sum(matrix.shape) >= matrix.numel():
            outcomes[name] = f"its rank is {rank} of {full}, and two layers would take as many MACs or more"
            continue
        small = _replaced(small, name, _two(layer, u[:, :rank] * values[:rank].sqrt(), values[:rank, None].sqrt() * v[:rank]))
        outcomes[name], ranks[name] = f"two layers of rank {rank}, of {full}", rank
    error = largest_error(small(images), expected)
    if not error <= EQUALITY_TOLERANCE:
        raise Disagreement(
            f"layers in two changed the outputs by {error:.2e} of the largest, more than {EQUALITY_TOLERANCE:.0e}; "
            "leave the layers whole, and please report this network"
        )
    return Factorised(small, outcomes, ranks, error)


def _run(model: nn.Module, images: Tensor, layers: Mapping[str, nn.Module]) -> tuple[Tensor, set[nn.Module]]:
    """The outputs for `images`, and which of the layers were called for them."""
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers.values()]
    try:
        outputs: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, called


def _refusal(layer: nn.Module, called: bool) -> str:
    """Why a layer must stay whole; empty if it need not."""
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"it is a {type(layer).__name__}, whose code is its own"
    if getattr(layer, "groups", 1) > 1:
        return "it is a grouped convolution: its groups are matrices of their own"
    if not called:
        return "the network does not call it as a layer"
    return ""


def _rank(values: Tensor) -> int:
    """The least rank, at least one, that leaves out no more of the norm than rounding; `values` are singular ones, falling."""
    energy = values.square()
    left_out = energy.flip(0).cumsum(0).flip(0)  # by each rank from 0
    return max(1, int((left_out > TRUNCATION**2 * energy.sum()).sum()))


def _two(layer: Any, a: Tensor, b: Tensor) -> nn.Sequential:
    """The two layers that compute what `layer` with the weight `a @ b` does."""
    rank = len(b)
    biased = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first: Any = nn.Linear(layer.in_features, rank, bias=False)
        second: Any = nn.Linear(rank, layer.out_features, bias=biased)
    else:
        first = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=layer.padding_mode,
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=biased)
    two = nn.Sequential(first, second).to(layer.weight).train(layer.training)
    first.weight.copy_(b.view_as(first.weight))
    second.weight.copy_(a.view_as(second.weight))
    if biased:
        second.bias.copy_(layer.bias)
    return two


def _replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """`model` with `layer` in the place of that name, in place; of the empty name, `layer`."""
    if not name:
        return layer
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
    return model
