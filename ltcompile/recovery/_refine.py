"""All weights together, by gradient descent on what the dense network computes: the same unlabelled inputs, no labels.

    minimise over all weights   sum over places |small - dense|^2 / |dense - its mean|^2,   the outputs among the places

A place is where `_repair` compares a layer: behind its batch norm, or behind the residual sum that it ends in. The outputs alone would be
learned by heart: they are a few numbers for each input, where features are thousands. Steps are Adam's (Kingma & Ba 2015), in proportion to the
size of each weight tensor. It is the reconstruction that quantisation after training does block by block (Li et al. 2021, "BRECQ",
arXiv:2102.05426), here over the whole network at once, since a later layer can make up for an earlier one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ltcompile.graph.inputs import Arguments
from ltcompile.graph.rules import tensors_in
from ltcompile.recovery._calls import Call, Site, Structure, Weights
from ltcompile.recovery._inputs import Chunk, compared, length, parts

RATE = 0.01  # of the first step, as a share of the root mean square of each tensor of weights
ROUNDING = 1e-10  # of a place's squares: as small a deviation is none


@dataclass(frozen=True)
class Place:
    """Where both networks are compared: the events of their passes, the dense one's channels that stay (C,), and whether a ReLU follows."""

    small: int
    dense: int
    kept: Tensor
    is_linear: bool
    is_rectified: bool

    def of_dense(self, value: Tensor) -> Tensor:
        return self._behind(value.index_select(value.dim() - 1 if self.is_linear else 1, self.kept))

    def of_small(self, value: Tensor) -> Tensor:
        return self._behind(value)

    def _behind(self, value: Tensor) -> Tensor:
        return value.relu() if self.is_rectified else value


class _Values(TorchFunctionMode):
    """Keeps what a network computes at these events of a pass: `ends` are places in its structure."""

    def __init__(self, found: Structure, weights: Weights, ends: set[int]) -> None:
        super().__init__()
        self.weights, self.ends, self.at = weights, ends, -1
        events = {at: found.events[at] for at in ends}
        self.norms = {e.norm.mean.data_ptr(): at for at, e in events.items() if isinstance(e, Site) and e.norm is not None}
        self.values: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, tuple(args), kwargs or {})
        out = call.result()
        if func is F.batch_norm:
            mean = call.args[1] if len(call.args) > 1 else call.kwargs.get("running_mean")
            if mean is not None and (at := self.norms.get(mean.data_ptr())) is not None:
                self.values[at] = out
        elif call.operands() is not None or self.weights.site(call):
            self.at += 1
            if self.at in self.ends and self.at not in self.norms.values():
                self.values[self.at] = out
        return out


def places(ours: Structure, theirs: Structure, kept: Sequence[Tensor]) -> list[Place]:
    """All places of the two networks; `kept` are the channels of each site that stay."""
    found, joins, sites = [], ours.joins, ours.sites
    for at in ours.waited:
        event = ours.events[at]
        last = event if isinstance(event, Site) else joins[event][-1]
        if isinstance(event, Site) and event.join is not None:
            continue
        found.append(Place(at, ours.last(at), kept[sites.index(last)], last.weight.dim() == 2, last.is_rectified))
    return found


def refine(
    small: nn.Module,
    dense: nn.Module,
    structures: tuple[Structure, Structure],
    compared_at: Sequence[Place],
    chunks: Sequence[Chunk],
    passes: int,
    memory: int,
    rng: torch.Generator,
) -> None:
    """Refine `small`, in place and in eval mode, by so many passes over the inputs; as it was where held-out inputs show no improvement.

    `structures` are those of both networks, the small one first. `memory` bounds the bytes that are held for the gradients at once.
    """
    fit = [chunk for chunk in chunks if not chunk.held]
    held = [chunk for chunk in chunks if chunk.held and chunk.expected is not None]
    pair = _Pair(small, dense, structures, compared_at)
    before, state = compared(small, held)[0], {name: value.clone() for name, value in small.state_dict().items()}
    sizes = pair.sizes(fit[0].inputs)
    weights = [w for w in small.parameters() if w.is_floating_point() and float(w.detach().square().mean()) > 0]
    if not weights:
        return
    small.requires_grad_(False)
    groups = [{"params": [w.requires_grad_()], "lr": RATE * float(w.detach().square().mean().sqrt())} for w in weights]
    optimizer = torch.optim.Adam(groups)
    steps = passes * len(fit)
    rise = max(1, steps // 5)  # Adam's first steps are as long for noise as for a direction
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / rise) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    size = max(1, int(length(fit[0].inputs) * memory // max(1, pair.bytes)))
    with torch.enable_grad():
        for _ in range(passes):
            for at in torch.randperm(len(fit), generator=rng).tolist():
                optimizer.zero_grad()
                count = length(fit[at].inputs)
                for part in parts(fit[at].inputs, size):
                    (pair.loss(part, sizes) * length(part) / count).backward()
                optimizer.step()
                schedule.step()
    small.requires_grad_(False)
    after = compared(small, held)[0]
    if not after < before:
        small.load_state_dict(state)


class _Pair:
    """Both networks, run side by side on the same inputs."""

    def __init__(self, small: nn.Module, dense: nn.Module, structures: tuple[Structure, Structure], compared_at: Sequence[Place]) -> None:
        self.small, self.dense, self.structures, self.places = small, dense, structures, compared_at
        self.weights = Weights(small), Weights(dense)
        self.bytes = 0

    def loss(self, inputs: Arguments, sizes: Mapping[int, float]) -> Tensor:
        """The sum over places and outputs of the mean square error over `sizes`."""
        wanted, made = self._dense(inputs), self._run(0, inputs)
        errors = [(made[at] - wanted[at]).square().mean() / size for at, size in sizes.items()]
        return torch.stack(errors).sum()

    def sizes(self, inputs: Arguments) -> dict[int, float]:
        """The mean square deviation of the dense network's values from their mean over inputs, at each place where there is any."""
        wanted = self._dense(inputs)
        self.bytes = 4 * sum(value.nbytes for value in wanted.values())
        found = {at: float((value - value.mean(0)).square().mean()) for at, value in wanted.items()}
        return {at: size for at, size in found.items() if size > ROUNDING * float(wanted[at].square().mean())}

    @torch.no_grad()
    def _dense(self, inputs: Arguments) -> dict[int, Tensor]:
        return self._run(1, inputs)

    def _run(self, which: int, inputs: Arguments) -> dict[int, Tensor]:
        """What a network computes at the places, by their numbers; at negative ones the outputs."""
        model = (self.small, self.dense)[which]
        events = [place.dense if which else place.small for place in self.places]
        watch = _Values(self.structures[which], self.weights[which], set(events))
        with watch:
            outputs = [t for t in tensors_in(model(*inputs.args, **inputs.kwargs)) if t.is_floating_point()]
        found = {
            at: (place.of_dense if which else place.of_small)(watch.values[event])
            for at, (place, event) in enumerate(zip(self.places, events, strict=True))
        }
        return found | {-1 - at: output for at, output in enumerate(outputs)}
