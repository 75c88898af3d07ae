"""Least squares of a product on sampled positions: rows of what it reads, its second moments, and the ridge that suits held-out rows.

    minimise over D, s   sum over rows |r - x D - s|^2 + ridge * mean(diag(cov x)) * n * |D|^2

x is what the small network's product reads at a position, r what is missing there. So the ridge pulls towards the weights there are: where
nothing is missing, nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltcompile.recovery._calls import Call

RECTIFYING_STEPS = 3
RIDGES = (1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)


class Rows:
    """The positions of a product's output at which rows are taken: `count` of them, drawn from all images and places."""

    def __init__(self, call: Call, out: Tensor, count: int, rng: torch.Generator) -> None:
        self.linear = call.func is F.linear
        shape = out.shape[:-1] if self.linear else (out.shape[0], *out.shape[2:])
        total = shape.numel() if isinstance(shape, torch.Size) else torch.Size(shape).numel()
        chosen = torch.arange(total) if total <= count else torch.randint(total, (count,), generator=rng)
        self.index = tuple(at.to(out.device) for at in torch.unravel_index(chosen, tuple(shape)))

    def of_output(self, out: Tensor) -> Tensor:
        """Values of an output at the rows, in float64: (rows, C)."""
        rows: Tensor = (out if self.linear else out.movedim(1, -1))[self.index]
        return rows.double()

    def of_input(self, call: Call) -> Tensor:
        """What the product reads for each row, in float64: (groups, rows, d), in the order of `matrix`."""
        given = call.product
        x: Tensor = given["input"]
        if self.linear:
            return x[self.index].double()[None]
        kernel = given["weight"].shape[2:]
        options = {name: _tuple(given.get(name, default), len(kernel)) for name, default in _DEFAULTS.items() if name != "padding"}
        if call.transposed:
            x, stride = _spread(x, given, kernel, options), (1,) * len(kernel)
        else:
            x, stride = F.pad(x, _pads(given.get("padding", 0), kernel, options["dilation"])), options["stride"]
        dims = range(2, x.dim())
        for dim, size, step, dilation in zip(dims, kernel, stride, options["dilation"], strict=True):
            x = x.unfold(dim, (size - 1) * dilation + 1, step)[..., ::dilation]
        groups = given.get("groups", 1)
        x = x.unflatten(1, (groups, -1))  # (N, G, C / G, *places, *kernel)
        n = len(kernel)
        x = x.permute(0, *range(3, 3 + n), 1, 2, *range(3 + n, 3 + 2 * n))
        rows = x[self.index]  # (rows, G, C / G, *kernel)
        return rows.flatten(2).double().transpose(0, 1)


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(value)
    return found * length if len(found) == 1 else found


def _pads(padding: Any, kernel: torch.Size, dilation: tuple[int, ...]) -> list[int]:
    """As F.pad takes them: of the last dimension first."""
    pairs = []
    for at, (size, step) in enumerate(zip(kernel, dilation, strict=True)):
        if padding == "same":
            total = step * (size - 1)
            pairs.append((total // 2, total - total // 2))
        else:
            pairs.append((0 if padding == "valid" else _tuple(padding, len(kernel))[at],) * 2)
    return [n for pair in reversed(pairs) for n in pair]


def _spread(x: Tensor, given: dict[str, Any], kernel: torch.Size, options: dict[str, tuple[int, ...]]) -> Tensor:
    """The input of a transposed convolution as a plain one of stride 1 reads it: zeros between its values, and around."""
    places = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], options["stride"], strict=True)]
    wide = x.new_zeros(*x.shape[:2], *places)
    places_of_x: Any = (..., *(slice(None, None, s) for s in options["stride"]))
    wide[places_of_x] = x
    padding = _tuple(given.get("padding", 0), len(kernel))
    around = [d * (k - 1) - p for d, k, p in zip(options["dilation"], kernel, padding, strict=True)]
    pairs = [(a, a + more) for a, more in zip(around, options["output_padding"], strict=True)]
    return F.pad(wide, [n for pair in reversed(pairs) for n in pair])


def matrix(call: Call) -> Tensor:
    """The weight as it multiplies the rows, in float64: (groups, d, outputs / groups)."""
    given = call.product
    weight: Tensor = given["weight"].detach().double()
    groups: int = given.get("groups", 1)
    if call.transposed:
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flip(tuple(range(3, weight.dim() + 1)))  # (G, O / G, C / G, *kernel)
    else:
        weight = weight.unflatten(0, (groups, -1))
    return weight.flatten(2).transpose(1, 2)


@torch.no_grad()
def assign(call: Call, values: Tensor) -> None:
    """Write a matrix of the form of `matrix` into the weight."""
    given = call.product
    weight: Tensor = given["weight"]
    values = values.transpose(1, 2)  # (G, O / G, d)
    if call.transposed:
        values = values.unflatten(2, (-1, *weight.shape[2:])).transpose(1, 2)  # (G, C / G, O / G, *kernel)
        values = values.flip(tuple(range(3, values.dim())))
    weight.copy_(values.reshape(weight.shape))


@dataclass
class Moments:
    """Sums over rows, in float64: of x (G, d), r (G, o), their products, and of r squared."""

    n: int
    x: Tensor
    r: Tensor
    xx: Tensor
    xr: Tensor
    rr: Tensor

    @classmethod
    def of(cls, x: Tensor, r: Tensor) -> Moments:
        return cls(x.shape[1], x.sum(1), r.sum(1), x.transpose(1, 2) @ x, x.transpose(1, 2) @ r, r.square().sum(1))

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f) + getattr(other, f) for f in ("n", "x", "r", "xx", "xr", "rr")))

    def covariance(self) -> Tensor:
        mean = self.x / self.n
        return self.xx / self.n - mean[:, :, None] * mean[:, None, :]

    def error(self, change: Tensor, shift: Tensor) -> Tensor:
        """The mean over rows of |r - x change - shift|^2, by group and output: (G, o)."""
        square = self.rr + torch.einsum("gdo,gde,geo->go", change, self.xx, change) - 2 * (change * self.xr).sum(1)
        cross = 2 * shift * (torch.einsum("gd,gdo->go", self.x, change) - self.r)
        return ((square + cross) / self.n + shift.square()).clamp_min(0)


@dataclass(frozen=True)
class Solution:
    """What to add to the weights (G, d, o) and to the output (G, o); the ridge, None where nothing changes; mean squares that are missing."""

    change: Tensor
    shift: Tensor
    ridge: float | None
    before: float
    after: float


def solve(fit: Moments, held: Moments, with_shift: bool, exact: float = 0.0) -> Solution:
    """The solution with the ridge of the least error on held-out rows; none where that is no better than what there is, or that is `exact`."""
    nothing = torch.zeros_like(fit.xr), torch.zeros_like(fit.r)
    before = float(held.error(*nothing).sum())
    best = Solution(*nothing, None, before, before)
    for ridge in RIDGES if before > exact else ():
        factor = _factor(fit, ridge, with_shift)
        if factor is None:
            continue
        change, shift = _solved(fit, factor, with_shift)
        after = float(held.error(change, shift).sum())
        if after < best.after:
            best = Solution(change, shift, ridge, before, after)
    return best


def _factor(fit: Moments, ridge: float, with_shift: bool) -> Tensor | None:
    """Cholesky factor of the second moments with the ridge; None where it has none."""
    gram = fit.covariance() if with_shift else fit.xx / fit.n
    size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-30)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * size * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device))
    return None if failed.any() else factor


def _solved(fit: Moments, factor: Tensor, with_shift: bool) -> tuple[Tensor, Tensor]:
    if not with_shift:
        return torch.cholesky_solve(fit.xr / fit.n, factor), torch.zeros_like(fit.r)
    mean_x, mean_r = fit.x / fit.n, fit.r / fit.n
    change = torch.cholesky_solve(fit.xr / fit.n - mean_x[:, :, None] * mean_r[:, None, :], factor)
    return change, mean_r - torch.einsum("gd,gdo->go", mean_x, change)


Sample = tuple[Tensor, Tensor, Tensor]  # in fp32: x (G, rows, d), the output there is (G, rows, o), the target (G, rows, o)


def rectify(found: Solution, fit: Moments, rows: list[Sample], held: list[Sample], with_shift: bool) -> Solution:
    """The solution for a ReLU behind the output: where the target is negative, any negative output is as good.

    Each step solves with the nearest of these as the target, and the ridge of `found`; the best step on held-out rows counts.
    """
    before = best_error = _rectified_error(held, None)
    best = Solution(torch.zeros_like(found.change), torch.zeros_like(found.shift), None, before, before)
    if found.ridge is None or (factor := _factor(fit, found.ridge, with_shift)) is None:
        return best
    if (error := _rectified_error(held, found)) < before:
        best, best_error = replace(found, before=before, after=error), error
    for _ in range(RECTIFYING_STEPS):
        xr, r = torch.zeros_like(fit.xr), torch.zeros_like(fit.r)
        for x, now, target in rows:
            missing = torch.where(target > 0, target, _output(x, now, found).clamp_max(0)) - now
            xr += x.transpose(1, 2) @ missing  # fp32: the steps only move the target
            r += missing.sum(1, dtype=torch.float64)
        change, shift = _solved(replace(fit, xr=xr, r=r), factor, with_shift)
        found = replace(found, change=change, shift=shift)
        error = _rectified_error(held, found)
        if error >= best_error:
            break
        best, best_error = replace(found, before=before, after=error), error
    return best


def _output(x: Tensor, now: Tensor, found: Solution) -> Tensor:
    return now + x @ found.change.to(x.dtype) + found.shift[:, None].to(x.dtype)


def _rectified_error(rows: list[Sample], found: Solution | None) -> float:
    """The mean over rows of |relu(output) - relu(target)|^2."""
    total = 0.0
    for x, now, target in rows:
        out = now if found is None else _output(x, now, found)
        total += float((out.relu() - target.relu()).square().sum())
    return total / max(1, sum(x.shape[1] for x, _, _ in rows))
