"""Recovery without labels: the weights behind a cut, solved by least squares against the dense network; `_refine` can follow.

    site by site, in the order of the forward pass:
        minimise over W, b   |act(W * x_small + b) - act(dense)|^2 over sampled positions of unlabelled inputs

x_small are the activations of the small network as repaired so far, so that each layer also makes up for the errors before it. What a layer
is compared at is behind its batch norm, and behind the residual sum where its branch ends in one: there, the branch makes up for what the
small network's own skip lacks. Where the plan removes a branch, that is what the branch adds: what continues to its sum is compared there.
The ridge is the one of the least error on held-out inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ltcompile.core.plan import PruningPlan
from ltcompile.core.streams import generator, seeded, stream
from ltcompile.errors import InvalidData, InvalidModel, InvalidSetting
from ltcompile.graph._copy import copied
from ltcompile.graph.attention import replace_attention
from ltcompile.graph.inputs import Example, check_arguments
from ltcompile.graph.running_statistics import restate_statistics
from ltcompile.graph.surgeon import kept_positions
from ltcompile.graph.wrappers import unwrap
from ltcompile.recovery._calls import Call, Site, Structure, Weights, structure
from ltcompile.recovery._inputs import FOLDS, Chunk, by_input, read_chunks
from ltcompile.recovery._lockstep import Pass
from ltcompile.recovery._refine import places, refine
from ltcompile.recovery._report import LayerRepair, RepairReport, best_of
from ltcompile.recovery._solve import Moments, Rows, Sample, matrix, rectify, solve
from ltcompile.recovery._tune import flat, tune
from ltcompile.recovery._write import kept_outputs, multiplied, through, write

Module = TypeVar("Module", bound=nn.Module)
ROWS, ROWS_PER_UNKNOWN = 1 << 14, 24  # positions that a layer is fitted on: at least, and for each weight of an output
MOST_INPUTS = 2048
MEMORY = 1 << 30  # bytes of activations that are held at once
ROUNDING = 1e-12  # of the targets' squares: as small an error is none
WIDEST = 6144  # inputs of a product whose second moments are held


@seeded(0)
def repair(
    small: Module,
    plan: PruningPlan,
    dense: nn.Module,
    inputs: Iterable[Example],
    *,
    seed: int = 0,
    most_inputs: int = MOST_INPUTS,
    memory: int = MEMORY,
    passes: int = 0,
    on_report: Callable[[RepairReport], None] | None = None,
) -> Module:
    """A copy of `small` whose weights are solved so that it computes what `dense` does, as far as its widths allow.

    No labels and no loss of one's own: each convolution and linear layer is solved once, in order. With `passes`, gradient descent then refines all
    weights together, by what the dense network computes on the same inputs. Modules and modes of the arguments stay as they are.

    Args:
        small: what `plan` leaves of `dense`, as cut or trained since.
        plan: which channels of `dense` stay.
        dense: the network to agree with, on the same device.
        inputs: batches, each as the network takes it: a tensor, a tuple of arguments or a dict of keyword arguments.
        seed: draws the positions that layers are fitted on.
        most_inputs: how many inputs are read at most.
        memory: bytes of activations that are held at once, about; with more inputs than that allows, the first layers see fewer.
        passes: over the inputs, with gradients; each takes about as long as an epoch of training on as many inputs. 20 to 40 are of use.
        on_report: gets the errors of each layer, as solved, and of the outputs.

    Raises:
        InvalidSetting: negative `passes`. InvalidPlan: `small` is not what the plan leaves. InvalidData: fewer than two inputs, values that are
            not finite, or names other than the network's. InvalidModel: the networks do not run on the inputs, or call their layers in another
            order.
    """
    if not isinstance(passes, int) or passes < 0:
        raise InvalidSetting(f"passes={passes!r} must be a whole number of at least 0")
    source, dense = unwrap(small), unwrap(dense)
    chunks = read_chunks(inputs, most_inputs)
    check_arguments(dense, chunks[0].inputs)
    work, reference = _prepared(source), _prepared(dense)
    for layer in (layer for branch in plan.removed_branches for layer in branch.layers):
        _hide(reference.get_submodule(layer))
    found = _Repair(work, reference, plan, chunks, seed, memory)
    found.run()
    found.tune()
    found.refine(passes)
    if any(layer.ridge is not None for layer in found.layers.values()):
        restate_statistics(work, (chunk.inputs for chunk in chunks if chunk.expected is not None))
    repaired = copied(source)
    repaired.load_state_dict(work.state_dict())
    return best_of(source, repaired, chunks, on_report, found.layers)


def _prepared(model: Module) -> Module:
    work = copied(model)
    replace_attention(work)
    return work.eval()


def _hide(layer: nn.Module) -> None:
    """Let no pass see the calls of `layer`, in place: the other network has none of them."""
    forward = layer.forward

    @wraps(forward)
    def unseen(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return forward(*args, **kwargs)

    layer.forward = unseen  # type: ignore[method-assign]


class _Watch:
    """Which calls of one pass are waited at: the events of these places."""

    def __init__(self, weights: Weights, places: set[int]) -> None:
        self.weights, self.places, self.at = weights, places, -1

    def __call__(self, call: Call) -> bool:
        if call.operands() is None and not self.weights.site(call):
            return False
        self.at += 1
        return self.at in self.places


@dataclass
class _Run:
    """The passes of both networks over one chunk; `deferred` are calls of the small one whose weights are solved at
    their sum, and the versions of their inputs."""

    dense: Pass
    small: Pass
    chunk: Chunk
    deferred: dict[int, tuple[Call, int]] = field(default_factory=dict)

    def proceed(self) -> None:
        """On to the next call."""
        for run in (self.dense, self.small):
            run.reply(run.call.result())


class _Repair:
    """One repair under way."""

    def __init__(self, small: nn.Module, dense: nn.Module, plan: PruningPlan, chunks: list[Chunk], seed: int, memory: int) -> None:
        self.small, self.dense, self.chunks, self.memory = small, dense, chunks, memory
        self.rng = generator(stream("repair", seed))
        self.ours, self.theirs = self._structure(small, "small"), self._structure(dense, "dense")
        if [type(e) for e in self.ours.events] != [type(e) for e in self.theirs.events] or self._names(self.ours) != self._names(
            self.theirs
        ):
            raise InvalidModel("the small and the dense network call their layers in another order; repair needs networks of the same code")
        self.kept = [kept_outputs(*pair, kept_positions(dense, plan)) for pair in zip(self.theirs.sites, self.ours.sites, strict=True)]
        self._settle_joins()
        self.waited = self.ours.waited
        self.runs: list[_Run] = []
        self.layers: dict[str, LayerRepair] = {}
        live = [a + b for a, b in zip(self.ours.live, self.theirs.live, strict=True)]
        self.allowed = [max(FOLDS, memory // max(live[at:])) for at in range(len(live))]

    @staticmethod
    def _names(found: Structure) -> list[str]:
        return [site.name for site in found.sites]

    def _structure(self, model: nn.Module, which: str) -> Structure:
        try:
            return structure(model, self.chunks[0].inputs)
        except Exception as error:  # the network's own code may raise anything
            raise InvalidModel(f"the {which} network does not run on the inputs: {type(error).__name__}: {error}") from error

    def _settle_joins(self) -> None:
        """A sum waits for all its sites where they are plain products, else for the last one."""
        for ours, theirs in zip(self.ours.sites, self.theirs.sites, strict=True):
            if ours.join != theirs.join or ours.refusal:
                ours.join = None
        for sites in self.ours.joins.values():
            if len(sites) > 1 and any(site.weight.dim() < 2 or site.groups > 1 for site in sites):
                for site in sites[:-1]:
                    site.join = None

    @torch.no_grad()
    def run(self) -> None:
        """Solve all sites, each pass from call to call. Raises InvalidModel where a pass takes another path, or fails."""
        joins = self.ours.joins
        weights = Weights(self.dense), Weights(self.small)
        try:
            for done, at in enumerate(self.waited):
                event = self.ours.events[at]
                if not any(run.deferred for run in self.runs):
                    self._start(at, done, weights)
                if isinstance(event, Site):
                    self._at_site(event)
                else:
                    self._at_sum(joins[event])
            for run in self.runs:
                run.chunk.expected = run.dense.output
        finally:
            for run in self.runs:
                run.dense.stop()
                run.small.stop()

    def tune(self) -> None:
        """Scale and shift the channels by the outputs, where these have a row for each input."""
        known = [(c.inputs, flat(c.expected), c.held) for c in self.chunks if c.expected is not None and by_input(c)]
        if any(held for *_, held in known) and not all(held for *_, held in known):
            tune(self.small, self.ours.sites, known, self.rng)

    def refine(self, passes: int) -> None:
        """All weights together, by what both networks compute."""
        if passes:
            at = places(self.ours, self.theirs, self.kept)
            refine(self.small, self.dense, (self.ours, self.theirs), at, self.chunks, passes, self.memory, self.rng)

    def _start(self, at: int, done: int, weights: tuple[Weights, Weights]) -> None:
        """Bring as many chunks to event `at`, behind `done` others, as memory allows. The dense network waits where its values are compared."""
        theirs = {place if self._is_deferred(place) else self.ours.last(place) for place in self.waited}
        for chunk in self.chunks[len(self.runs) : self.allowed[at]]:
            watches = _Watch(weights[0], theirs), _Watch(weights[1], set(self.waited))
            run = _Run(Pass(self.dense, chunk.inputs, watches[0]), Pass(self.small, chunk.inputs, watches[1]), chunk)
            self.runs.append(run)
            for _ in range(done):
                run.proceed()

    def _is_deferred(self, place: int) -> bool:
        event = self.ours.events[place]
        return isinstance(event, Site) and event.join is not None

    def _at_site(self, site: Site) -> None:
        number = self.ours.sites.index(site)
        if site.join is not None:
            for run in self.runs:
                run.deferred[number] = run.small.call, run.small.call.product["input"]._version
                run.proceed()
            return
        outs = [run.dense.call.result() for run in self.runs]
        if not site.refusal:
            theirs, kept = self.theirs.sites[number], self.kept[number]
            at_product = self.runs[0].dense.call.operands() is None
            norm = theirs.norm.affine() if at_product and theirs.norm is not None and site.norm is not None else None

            def rows(run: _Run, out: Tensor, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
                call: Call = run.small.call
                drawn = Rows(call, out, count, self.rng)
                target = drawn.of_output(out)[:, kept]
                if norm is not None:
                    target = target * norm[0][kept] + norm[1][kept]
                x = drawn.of_input(call)
                return [x], target, target - through(site, multiplied(call, x))

            self._solve([site], [[run.small.call for run in self.runs]], outs, rows)
        else:
            self.layers[site.name] = LayerRepair(float("nan"), float("nan"), None, site.refusal)
        for run, out in zip(self.runs, outs, strict=True):
            run.dense.reply(out)
            run.small.reply(run.small.call.result())

    def _at_sum(self, sites: list[Site]) -> None:
        numbers = [self.ours.sites.index(site) for site in sites]
        kept = self.kept[numbers[0]]
        outs = [run.dense.call.result() for run in self.runs]

        def rows(run: _Run, out: Tensor, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
            calls = [run.deferred[number][0] for number in numbers]
            drawn = Rows(calls[0], out, count, self.rng)
            target = drawn.of_output(out)[:, kept]
            one, other = (drawn.of_output(x) for x in run.small.call.args[:2])
            return [drawn.of_input(call) for call in calls], target, target - one - other

        overwritten = any(call.product["input"]._version != version for run in self.runs for call, version in run.deferred.values())
        if overwritten:
            for site in sites:
                self.layers[site.name] = LayerRepair(float("nan"), float("nan"), None, "what it reads is overwritten before its sum")
        else:
            self._solve(sites, [[run.deferred[number][0] for run in self.runs] for number in numbers], outs, rows)
        for run, out in zip(self.runs, outs, strict=True):
            operands = list(run.small.call.args[:2])
            for number, site in zip(numbers, sites, strict=True):
                call, _ = run.deferred.pop(number)
                if not overwritten:
                    value = call.result()
                    operands[site.operand] = value if site.norm is None else site.norm(value)
            total = operands[0] + operands[1]
            run.dense.reply(out)
            run.small.reply(run.small.call.args[0].copy_(total) if run.small.call.in_place else total)

    def _solve(self, sites: list[Site], calls: list[list[Call]], outs: list[Tensor], rows: Any) -> None:
        """Solve the weights of `sites` together, and write them."""
        name = sites[0].name
        groups = calls[0][0].product.get("groups", 1)
        widths = [matrix(of_site[0]).shape[1] for of_site in calls]
        if sum(widths) > WIDEST:
            for site in sites:
                self.layers[site.name] = LayerRepair(
                    float("nan"), float("nan"), None, f"it reads {sum(widths):,} values, more than {WIDEST:,}"
                )
            return
        count = -(-max(ROWS, ROWS_PER_UNKNOWN * sum(widths)) // len(self.runs))
        moments: dict[bool, Moments] = {}
        size = {False: 0.0, True: 0.0}
        samples: dict[bool, list[Sample]] = {False: [], True: []}
        rectified = sites[-1].is_rectified and count * len(self.runs) * sum(widths) * 4 <= MEMORY // 4
        for run, out in zip(self.runs, outs, strict=True):
            xs, target, missing = rows(run, out, count)
            x = torch.cat(xs, 2)
            if not (x.isfinite().all() and missing.isfinite().all()):
                raise InvalidData(f"the values at {name!r} are not finite; check the networks on these inputs")
            by_group = [values.unflatten(1, (groups, -1)).transpose(0, 1) for values in (missing, target - missing, target)]
            found = Moments.of(x, by_group[0])
            held = run.chunk.held
            if rectified:
                samples[held].append((x.float(), by_group[1].float(), by_group[2].float()))
                target = target.relu()
            moments[held] = moments[held] + found if held in moments else found
            size[held] += float((target - target.mean(0)).square().sum())
        fit, held_out = moments[False], moments.get(True, moments[False])
        has_shift = any(site.norm is not None or site.bias is not None for site in sites)
        scale = max(size[True] / max(held_out.n, 1), size[False] / fit.n * 1e-12, 1e-30)
        solution = solve(fit, held_out, has_shift, ROUNDING * scale)
        if rectified:
            solution = rectify(solution, fit, samples[False], samples[True] or samples[False], has_shift)
        for site in sites:
            self.layers[site.name] = LayerRepair((solution.before / scale) ** 0.5, (solution.after / scale) ** 0.5, solution.ridge)
        if solution.ridge is not None:
            shift, start = solution.shift.flatten(), 0
            for site, of_site, width in zip(sites, calls, widths, strict=True):
                takes = site.norm is not None or site.bias is not None  # the first such site takes the shift
                write(site, of_site[0], solution.change[:, start : start + width], shift if takes else torch.zeros_like(shift))
                shift = torch.zeros_like(shift) if takes else shift
                start += width
