"""A scale and a shift for every channel, by one Gauss-Newton step on the outputs of the whole network.

    u[c] -> (1 + s[c]) * u[c] + t[c]       minimise over s, t   |dense(x) - small(x) - J (s, t)|^2 + ridge * |diag(J'J)^(1/2) (s, t)|^2

u is what a batch norm gives, or a product without one; J is the derivative of the outputs. Outputs of many values are projected on random
directions. The ridge is the one with the least error on held-out inputs, where the network is run; without an improvement nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ltcompile.graph.inputs import Arguments
from ltcompile.graph.rules import tensors_in
from ltcompile.recovery._calls import Call, Site, Weights

WIDEST = 4096  # scales and shifts that are solved together
OUTPUTS = 16  # directions of the outputs
RIDGES = (1e-2, 1e-1, 1.0, 10.0)
ROUNDING = 1e-10  # of the outputs' squares: an error as small is not one


class Ends:
    """The sites of a network whose outputs may be scaled and shifted, and where their scales and shifts are among all."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = [site for site in sites if not site.refusal and site.groups > 0]
        starts = torch.tensor([0, *(2 * site.outputs for site in self.sites)]).cumsum(0).tolist()
        self.places, self.count = dict(zip(map(id, self.sites), starts, strict=False)), starts[-1]
        self._by_norm = {site.norm.mean.data_ptr(): site for site in self.sites if site.norm is not None}
        self._by_weight = {site.place: site for site in self.sites if site.norm is None}

    def of(self, call: Call, weights: Weights) -> Site | None:
        """The site that `call` is the end of."""
        if call.func is F.batch_norm:
            mean = call.args[1] if len(call.args) > 1 else call.kwargs.get("running_mean")
            return None if mean is None else self._by_norm.get(mean.data_ptr())
        if not weights.site(call):
            return None
        weight = call.product["weight"]
        return self._by_weight.get((weight.data_ptr(), weight.numel()))

    @torch.no_grad()
    def apply(self, change: Tensor) -> None:
        """Write scales and shifts into norms, weights and biases."""
        for site in self.sites:
            start = self.places[id(site)]
            scale, shift = 1 + change[start : start + site.outputs], change[start + site.outputs : start + 2 * site.outputs]
            if site.norm is not None and site.norm.weight is not None and site.norm.bias is not None:
                site.norm.weight.copy_(site.norm.weight * scale)
                site.norm.bias.copy_(site.norm.bias * scale + shift)
            elif site.norm is None and not site.transposed:
                site.weight.copy_(site.weight * scale.view(-1, *[1] * (site.weight.dim() - 1)))
                if site.bias is not None:
                    site.bias.copy_(site.bias * scale + shift)


class _Watch(TorchFunctionMode):
    """Starts the graph at the first site, and hands each gradient of a site's end to `record`."""

    def __init__(self, ends: Ends, weights: Weights, record: Callable[[Site, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.ends, self.weights, self.record = ends, weights, record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, tuple(args), kwargs or {})
        site, out = self.ends.of(call, self.weights), call.result()
        if site is None:
            return out
        out = out if out.requires_grad else out.detach().requires_grad_() * 1
        values = _by_channel(out.detach().clone(), call)
        out.register_hook(lambda gradient: self.record(site, values, _by_channel(gradient, call)))
        return out


def _by_channel(values: Tensor, call: Call) -> Tensor:
    """(N, places, C)."""
    if call.func is not F.linear:
        values = values.movedim(1, -1)
    return values.reshape(len(values), -1, values.shape[-1])


def flat(output: Any) -> Tensor:
    """All floating-point values of the outputs by input: (N, values)."""
    return torch.cat([t.reshape(len(t), -1) for t in tensors_in(output) if t.is_floating_point()], 1)


def tune(model: nn.Module, sites: Sequence[Site], chunks: Sequence[tuple[Arguments, Tensor, bool]], rng: torch.Generator) -> None:
    """Scale and shift the channels of `model`, in place; `chunks` are inputs, the wanted outputs (N, values), and whether they are held out."""
    ends, weights = Ends(sites), Weights(model)
    held = [(inputs, wanted) for inputs, wanted, out in chunks if out]
    error, state = _error(model, held), _state(model)
    if not 0 < ends.count <= WIDEST or error <= ROUNDING * sum(float(wanted.double().square().sum()) for _, wanted in held):
        return
    gram, cross = _normal_equations(model, ends, weights, [(i, w) for i, w, out in chunks if not out], rng)
    size = gram.diagonal().clamp_min(1e-12 * float(gram.diagonal().max())).sqrt()
    gram, cross = gram / size[:, None] / size, cross / size
    best = error, state
    for ridge in RIDGES:
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        if failed:
            continue
        ends.apply((torch.cholesky_solve(cross[:, None], factor)[:, 0] / size).float())
        best = min(best, (_error(model, held), _state(model)), key=lambda pair: pair[0])
        model.load_state_dict(state)
    model.load_state_dict(best[1])


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def _error(model: nn.Module, held: Sequence[tuple[Arguments, Tensor]]) -> float:
    return sum(float((flat(model(*i.args, **i.kwargs)).double() - wanted.double()).square().sum()) for i, wanted in held)


def _normal_equations(
    model: nn.Module, ends: Ends, weights: Weights, chunks: Sequence[tuple[Arguments, Tensor]], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """J'J and J' times what is missing, over all inputs and directions, in float64."""
    gram, cross = torch.zeros(ends.count, ends.count, dtype=torch.float64), torch.zeros(ends.count, dtype=torch.float64)
    model.requires_grad_(False)
    for inputs, wanted in chunks:
        jacobian = torch.zeros(len(wanted), ends.count, dtype=torch.float64)

        def record(site: Site, values: Tensor, gradient: Tensor, jacobian: Tensor = jacobian) -> None:
            start = ends.places[id(site)]
            jacobian[:, start : start + site.outputs] += (gradient * values).sum(1)
            jacobian[:, start + site.outputs : start + 2 * site.outputs] += gradient.sum(1)

        with torch.enable_grad(), _Watch(ends, weights, record):
            made = flat(model(*inputs.args, **inputs.kwargs))
        count = made.shape[1]
        directions = torch.eye(count) if count <= OUTPUTS else torch.randn(OUTPUTS, count, generator=rng) / OUTPUTS**0.5
        missing = wanted - made.detach()
        for direction in directions.to(made):
            jacobian.zero_()
            (made @ direction).sum().backward(retain_graph=True)
            gram += jacobian.T @ jacobian
            cross += jacobian.T @ (missing @ direction).double()
    return gram, cross
