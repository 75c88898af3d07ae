"""Run what a plan makes of a network: the cut one against the masked one, in eval and in training mode.

Tracing can miss what a network's code does with its widths. So the plan's own widths are run, on random weights and inputs, in
float64, and without chance (dropout keeps everything; noise is constant). Groups whose cut shows are found by bisection.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ltcompile.core.plan import Branch, Group, PruningPlan
from ltcompile.graph._copy import copied
from ltcompile.graph._determinism import constant_draws
from ltcompile.graph.baked import baked
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.rules import tensors_in
from ltcompile.graph.surgeon import cut_, mask_
from ltcompile.graph.tied_groups import tied_groups
from ltcompile.graph.trace import check_cuttable, halved, plain
from ltcompile.graph.wrappers import unwrap

FINE = 1e-9  # error relative to the largest value of an output, in float64
COARSE = 1e-4  # the same where part of the network computes in less
ROUNDING = {False: 1e-13, True: 1e-6}  # relative noise on the weights that stands for rounding, in float64 and in less
MARGIN = 10  # an error up to so many times the effect of that noise is rounding


@dataclass(frozen=True)
class _Answer:
    """The tensors that a run gives, and whether some operation computed in less than float64."""

    tensors: list[Tensor]
    coarse: bool

    @property
    def is_finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in self.tensors)


def disagreements(model: nn.Module, example: Example, plan: PruningPlan) -> dict[str, str]:
    """Group or removed branch -> why the network cut by `plan` is not the masked one, for all that are to blame; empty where they agree.

    Both run in eval mode and, where the network itself does, in training mode. `model` stays untouched. Without a disagreement, the cost
    is five runs in float64, of two images each, and three copies of the weights.
    """
    cuts = [{g.name for g in b.groups} for b in tied_groups(plan.groups) if any(len(plan.kept[g.name]) < g.width for g in b.groups)]
    branches = [{branch_id(branch)} for branch in plan.removed_branches]
    if not cuts and not branches:
        return {}
    trial, removed = _Trial(baked(unwrap(model)), Arguments.of(example)), set[str]().union(*branches)
    objection = trial.objection(plan, removed.union(*cuts))
    if objection is None:
        return {}
    if branches and (without := trial.objection(plan, removed)):
        return dict(_blamed(trial, plan, set(), branches, without))
    return dict(_blamed(trial, plan, removed, cuts, objection))


def branch_id(branch: Branch) -> str:
    """What `disagreements` calls a branch: no group has this name."""
    return f"branch {branch.name}"


def agreeing(model: nn.Module, example: Example, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """`groups`, with those frozen without half of which the cut network is not the masked one: a check before anything is planned.

    Raises InvalidModel, with the reason of each group, where that leaves none. See `disagreements` for the cost.
    """
    differing = disagreements(model, example, halved(groups, {g.name for g in groups if not g.frozen}))
    if differing:
        groups = tuple(replace(g, frozen=differing[g.name], tied="") if g.name in differing else g for g in groups)
        check_cuttable(groups)
    return groups


def _blamed(trial: _Trial, plan: PruningPlan, accepted: set[str], cuts: Sequence[set[str]], objection: str) -> Iterator[tuple[str, str]]:
    """(group, reason) of those of `cuts` that do not agree on top of `accepted`, which takes in the others; all together do not."""
    if len(cuts) == 1:
        yield from ((name, objection) for name in cuts[0])
        return
    middle = len(cuts) // 2
    for half in (cuts[:middle], cuts[middle:]):
        found = trial.objection(plan, accepted.union(*half))
        if found is None:
            accepted.update(*half)
        else:
            yield from _blamed(trial, plan, accepted, half, found)


class _Trial:
    """A network on random weights and inputs as far as it allows, on which plans are tried."""

    def __init__(self, model: nn.Module, inputs: Arguments) -> None:
        self._network, self._inputs = _settled(model, inputs)

    @cached_property
    def _trains(self) -> bool:
        """Whether the network itself runs in training mode."""
        return self._answer(copied(self._network), training=True) is not None

    def objection(self, plan: PruningPlan, names: set[str]) -> str | None:
        """Why the network cut by the groups and branches `names` of `plan` is not the masked one; None if it is."""
        branches = tuple(branch for branch in plan.removed_branches if branch_id(branch) in names)
        part = PruningPlan(plan.groups, {name: plan.kept[name] for name in names & plan.kept.keys()}, branches)
        small, masked = cut_(copied(self._network), part), mask_(copied(self._network), part)
        return self._compare(small, masked, training=False) or self._compare(small, masked, training=True)

    def _compare(self, small: nn.Module, masked: nn.Module, training: bool) -> str | None:
        mode = "training" if training else "eval"
        try:
            made = _run(small.train(training), self._batch(training))
        except Exception as error:
            if training and not self._trains:
                return None
            return f"the network does not run with fewer of it in {mode} mode: {_first_line(error)}"
        expected = self._answer(masked, training)
        if expected is None:
            return f"the masked network does not run in {mode} mode" if not training or self._trains else None
        difference = _error(made, expected)
        coarse = made.coarse or expected.coarse
        if difference <= (COARSE if coarse else FINE) or difference <= MARGIN * self._sensitivity(masked, training, expected, coarse):
            return None
        size = "in shape or in what is finite" if math.isinf(difference) else f"by {difference:.1e} of its largest value"
        return f"in {mode} mode, the output of the cut network differs {size} from that of the masked one"

    def _sensitivity(self, masked: nn.Module, training: bool, expected: _Answer, coarse: bool) -> float:
        """How much rounding changes what `masked` gives; its weights are changed."""
        noise = torch.Generator().manual_seed(1)
        for p in masked.parameters():
            if p.is_floating_point():
                p.data.mul_(1 + ROUNDING[coarse] * torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p))
        other = self._answer(masked, training)
        error = math.inf if other is None else _error(other, expected)
        return 0.0 if math.isinf(error) else error

    def _answer(self, network: nn.Module, training: bool) -> _Answer | None:
        """What `network` gives; None if it does not run."""
        try:
            return _run(network.train(training), self._batch(training))
        except Exception:
            return None

    def _batch(self, training: bool) -> Arguments:
        """The inputs; for training, another behind each where there is one, as batch norm takes no single value."""
        if not training:
            return self._inputs
        return self._inputs.map(lambda x: torch.cat([x, x.flip(-1)]) if x.dim() and len(x) == 1 else x)


def _settled(model: nn.Module, inputs: Arguments) -> tuple[nn.Module, Arguments]:
    """A copy of `model` and inputs of those shapes that give finite values: random ones in float64 if possible, else what they are."""
    for few, fresh, shaken in ((True, True, True), (False, True, True), (False, False, True), (False, True, False)):
        network = _randomised(copied(model)) if shaken else copied(model).float()
        batch = _random(_two(inputs) if few else inputs) if fresh else inputs
        batch = _in(torch.float64 if shaken else torch.float32, batch)
        try:
            if _run(copied(network).eval(), batch).is_finite:
                return network, batch
        except Exception:  # the next way may do
            continue
    return copied(model), inputs


def _in(dtype: torch.dtype, inputs: Arguments) -> Arguments:
    return inputs.map(lambda x: x.to(dtype) if x.is_floating_point() else x)


def _two(inputs: Arguments) -> Arguments:
    """Two of the batch, where all inputs are batches of one size."""
    sizes = {len(x) if x.dim() else 0 for x in inputs.tensors}
    return inputs.map(lambda x: x[:2]) if len(sizes) == 1 and min(sizes) > 2 else inputs


def _random(inputs: Arguments) -> Arguments:
    """Normal values instead of those of the floating-point inputs."""
    values = torch.Generator().manual_seed(0)
    return inputs.map(lambda x: torch.randn(x.shape, generator=values).to(x) if x.is_floating_point() else x)


@torch.no_grad()
def _randomised(network: nn.Module) -> nn.Module:
    """`network` in float64, in place: no weight or statistic is zero, one or equal to another by initialisation, and no layer's are so small that
    biases, or another branch, hide its inputs."""
    values = torch.Generator().manual_seed(0)
    network.double()
    statistics = {name: b for name, b in network.named_buffers() if name.rpartition(".")[2] in {"running_mean", "running_var"}}
    for name, tensor in [*network.named_parameters(), *statistics.items()]:
        if tensor.is_floating_point() and tensor.numel():
            random = torch.rand(tensor.shape, generator=values, dtype=torch.float64).to(tensor)
            tensor.copy_(torch.where(tensor == 0, 0.05 + 0.2 * random, tensor * (0.5 + random)))
            if not name.endswith(("bias", "running_mean")):
                tensor.mul_(max(1.0, _usual_size(tensor) / _size(tensor)))
    return network


def _size(weight: Tensor) -> float:
    """The root mean square; squares of the smallest doubles would be zero."""
    largest = weight.abs().max()
    return float(largest * (weight / largest).square().mean().sqrt())


def _usual_size(weight: Tensor) -> float:
    """The root mean square of weights that keep a signal's size: one over the square root of the inputs of an output."""
    return float(len(weight) / weight.numel()) ** 0.5 if weight.dim() else 0.0


@torch.no_grad()
def _run(network: nn.Module, inputs: Arguments) -> _Answer:
    with warnings.catch_warnings(), constant_draws() as seen:
        warnings.simplefilter("ignore")
        output = network(*inputs.args, **inputs.kwargs)
    return _Answer([t.detach() for t in tensors_in(plain(output))], seen.coarse)


def _error(made: _Answer, expected: _Answer) -> float:
    """The largest error of any output relative to its largest value; infinite where shapes or finite places differ."""
    if [t.shape for t in made.tensors] != [t.shape for t in expected.tensors]:
        return math.inf
    return max((_error_of(a, b) for a, b in zip(made.tensors, expected.tensors, strict=True)), default=0.0)


def _error_of(made: Tensor, expected: Tensor) -> float:
    if not made.is_floating_point() or not made.numel():
        return 0.0 if torch.equal(made, expected) else math.inf
    a, b, finite = made.double(), expected.double(), expected.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or not a[finite].isfinite().all():
        return math.inf
    error = float((a[finite] - b[finite]).abs().max()) if finite.any() else 0.0
    largest = float(b[finite].abs().max()) if finite.any() else 0.0
    return error / largest if largest else (math.inf if error else 0.0)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
