"""Pruning in another basis (Alabdulmohsin et al. 2021, "A Generalized Lottery Ticket Hypothesis", arXiv:2107.06825): a ticket is a mask on
coefficients of the weights, and coefficients are what is trained and rewound.

A layer's weight is a matrix W (filters, inputs * kernel). Both bases are orthonormal, so that gradient descent on all coefficients is
gradient descent on the weights, decay included.

- "basis": rows of C in W = U C, where U are the left singular vectors of the *trained* W (or columns in W = C V', where a filter has
  fewer values than there are filters). A row's norm is its singular value. U stays, the kept rows of C are trained: a matrix of rank r is
  left, which `graph.factorise` makes two smaller layers of.
- "basis-dct": the values of C in W = D C D', D the discrete cosine transform. It prunes without structure, and makes no layer smaller.

All coordinates of all layers are ranked together by the energy that goes with them relative to what is left of their layer, as LAMP ranks
weights (Lee et al. 2021, arXiv:2010.07611): raw magnitudes of layers of different scale cannot be compared. Its first coordinate is always
kept. Both leave out grouped convolutions, of which no smaller layers could be made. The choices of basis, of what is fixed, and of the
ranking are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ltcompile.core.recipe import Recipe
from ltcompile.errors import InvalidModel
from ltcompile.search.methods._layers import Choice, checked_layers, layers

NAMES = ("basis", "basis-dct")
ITERATIVE = True


class Directions(Choice):
    """Coefficients (rank, inputs) or (filters, rank) of the kept singular directions -> the weight; `vectors` (filters or inputs, rank)."""

    vectors: Tensor

    def __init__(self, weight: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.shape, self.left = weight.shape, _left(weight)
        self.register_buffer("vectors", vectors.to(weight))

    def forward(self, coefficients: Tensor) -> Tensor:
        with torch.autocast(coefficients.device.type, enabled=False):  # rounded once, by the layer
            matrix = self.vectors @ coefficients if self.left else coefficients @ self.vectors.T
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        return self.vectors.T @ matrix if self.left else matrix @ self.vectors

    def kept(self) -> int:
        return self.shape.numel() // len(self.vectors) * self.vectors.shape[1]


class Spectrum(Choice):
    """Coefficients (filters, inputs) of the cosine transform, zero where not in `chosen` -> the weight."""

    chosen: Tensor

    def __init__(self, weight: Tensor, chosen: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("chosen", chosen.to(weight.device))

    def forward(self, coefficients: Tensor) -> Tensor:
        matrix: Tensor = _Synthesis.apply(coefficients * self.chosen)
        return matrix.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return spectrum(weight) * self.chosen

    def kept(self) -> int:
        return int(self.chosen.sum())


@torch.no_grad()
def attach(name: str, model: nn.Module, share: float, seed: int, trained: nn.Module) -> None:
    found = {layer: m for layer, m in checked_layers(model).items() if getattr(m, "groups", 1) == 1}
    if not found:
        raise InvalidModel("this network has grouped convolutions alone, and no basis to prune them in; use method=prune")
    theirs = layers(trained)
    weights = {layer: theirs[layer].weight.detach().cpu().double() for layer in found}
    if name == "basis-dct":
        chosen = _best({layer: spectrum(weight).square() for layer, weight in weights.items()}, share)
        choices: dict[str, Choice] = {layer: Spectrum(m.weight, chosen[layer]) for layer, m in found.items()}
    else:
        directions = {layer: _directions(weight) for layer, weight in weights.items()}
        chosen = _best({layer: values.square() for layer, (_, values) in directions.items()}, share)
        choices = {layer: Directions(m.weight, directions[layer][0][:, chosen[layer]]) for layer, m in found.items()}
    for layer, choice in choices.items():
        parametrize.register_parametrization(found[layer], "weight", choice)


def recipe(usual: Recipe) -> Recipe:
    return usual


def spectrum(weight: Tensor) -> Tensor:
    """The orthonormal discrete cosine transform, of type II, of a weight as a matrix (filters, inputs * kernel), along both."""
    return _to_cosines(_to_cosines(weight.flatten(1)).T).T.contiguous()


class _Synthesis(torch.autograd.Function):
    """The matrix of a spectrum. It is orthonormal: the gradient of the spectrum is the spectrum of the gradient."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor) -> Tensor:
        return _from_cosines(_from_cosines(coefficients).T).T.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return spectrum(gradient)


def _best(energies: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Layer -> which of its coordinates are among the best `share` of all; in each layer at least the one of most energy."""
    scores = torch.cat([_relative(energy.flatten()) for energy in energies.values()])
    count = max(len(energies), round(share * len(scores)))
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    parts = kept.split([energy.numel() for energy in energies.values()])
    return {layer: part.view(energy.shape) for (layer, energy), part in zip(energies.items(), parts, strict=True)}


def _relative(energy: Tensor) -> Tensor:
    """Each coordinate's energy over that of all with at least as much: one for the first, at most half for every other."""
    falling, order = energy.sort(descending=True, stable=True)
    falling = falling / falling.cumsum(0).clamp_min(1e-300)
    falling[0] = 1.0
    return torch.empty_like(energy).scatter_(0, order, falling)


def _left(weight: Tensor) -> bool:
    """Whether a weight has at most as many filters as a filter has values: the smaller side is the full rank."""
    return len(weight) <= weight[0].numel()


def _directions(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors (side, rank) of the smaller side of a weight as a matrix, and singular values (rank,), falling."""
    left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return (left if _left(weight) else right.mT), values


# Cosine transforms of the last dimension by the fast Fourier transform of as many real values (Makhoul 1980): the even ones, then the odd
# ones backwards. A matrix for the 8192 inputs of a linear layer would take 256 MiB.


def _to_cosines(x: Tensor) -> Tensor:
    n, half = x.shape[-1], x.shape[-1] // 2 + 1
    turned: Tensor = torch.fft.rfft(x[..., _order(x)]) * _turn(x, half).conj()
    cosines = torch.cat([turned.real, -turned.imag[..., 1 : n - half + 1].flip(-1)], -1)
    return cosines * _scale(x) / math.sqrt(n)


def _from_cosines(c: Tensor) -> Tensor:
    n, half = c.shape[-1], c.shape[-1] // 2 + 1
    c = c / _scale(c) * math.sqrt(n)
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c[..., n - half + 1 :].flip(-1)], -1)
    x: Tensor = torch.fft.irfft(torch.complex(c[..., :half], -mirrored) * _turn(c, half), n=n)
    return x[..., _order(c).argsort()]


def _order(x: Tensor) -> Tensor:
    places = torch.arange(x.shape[-1], device=x.device)
    return torch.cat([places[::2], places[1::2].flip(0)])


def _turn(x: Tensor, half: int) -> Tensor:
    """exp(i pi k / 2n) for the first `half` frequencies k."""
    angles = torch.arange(half, device=x.device, dtype=x.dtype) * (math.pi / (2 * x.shape[-1]))
    return torch.polar(torch.ones_like(angles), angles)


def _scale(x: Tensor) -> Tensor:
    """What makes the transform orthonormal, but for 1 / sqrt(n)."""
    scale = torch.full(x.shape[-1:], math.sqrt(2.0), dtype=x.dtype, device=x.device)
    scale[0] = 1.0
    return scale
