"""Time a network at many widths, and write the profile as it grows: an interrupted run resumes where it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ltcompile.benchmark import energy
from ltcompile.benchmark.profiling import design
from ltcompile.benchmark.profiling.exports import Exports
from ltcompile.benchmark.profiling.timer import Call, LayerTimer, Timing, Variant, Whole, open_timer
from ltcompile.core.deployment import Deployment
from ltcompile.core.image_size import height_width
from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import LayerKind, Profile, Run, Why, machine, named_network
from ltcompile.core.records import provenance
from ltcompile.core.streams import seeded, stream
from ltcompile.errors import InvalidModel, InvalidSetting, Unavailable
from ltcompile.graph import trace
from ltcompile.graph._copy import copied
from ltcompile.graph.inputs import Arguments, Example
from ltcompile.graph.surgeon import cut_
from ltcompile.graph.tied_groups import TiedGroups, tied_groups
from ltcompile.graph.widths import kind, layer_widths
from ltcompile.graph.wrappers import unwrap
from ltcompile.lower import fold_batch_norm
from ltcompile.lower.answers import probe
from ltcompile.lower.onnx_weights import made_distinct
from ltcompile.models import build_model
from ltcompile.paths import cache_folder, check_writable
from ltcompile.pruned import Source, network_and_example

SAVED_EVERY = 10  # runs
AGAIN = 24  # runs, at most, that are made again where the machine was slower meanwhile
SLOWED, CALM = 1.15, 0.25  # beyond so many times what the small cut took in its calmest quarter of runs
CHECKED = 4  # images
STOPWATCH_SECONDS = 6.0  # of each of the two networks: shorter ones scatter by more than targets allow
TURNS = 3  # of counting joules
Model = Mapping[str, Any] | nn.Module | Source  # name and arguments of `build_model`, a network, or what `pruned_of` takes
Progress = Callable[[int, int, Run], None]  # runs done, of how many, the last one


def cached(model: Mapping[str, Any], target: Deployment) -> Path:
    """Where a profile of this network, target, machine and versions is kept."""
    key = json.dumps([dict(model), str(target), machine(target)], sort_keys=True)
    return cache_folder() / "profiles" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def profile(
    model: Model,
    target: Deployment | str,
    example: Example | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = True,
    on_progress: Progress | None = None,
) -> Profile:
    """Time `model` at `target`, at 82 combinations of widths, of which 8 are held back as a check.

    Runs that the machine was slower in than in others are made again. Weights are random: they do not matter for the time. The profile is
    written to `output` (by default the cache) as it grows.

    Args:
        model: the name and arguments of `build_model`; or a network, with `example`; or a `Pruned`, a ticket or the result of a search: of
            these the dense network, which is what a plan cuts, or the small one where that is all.
        target: where it will run, such as "cpu:onnxruntime:b1:fp32".
        example: inputs of a network: a tensor (N, ...), a tuple of arguments or a dict of keyword arguments.
        output: the file; by default one in the cache.
        resume: continue what is there, if it is of this network, target and machine.

    Raises:
        Unavailable: the target cannot be profiled here. InvalidModel: the network cannot be cut, exported or identified.
        Disagreement: the runtime computes something else than PyTorch.
        ProfileMismatch: what is there is of something else. InvalidFile: it cannot be read or written.
    """
    target = Deployment.parse(target) if isinstance(target, str) else target
    timer = open_timer(target)
    work = _work(model, target, timer, example)
    path = check_writable(output or cached(work.model, target))
    there = _there(path, work.model, target) if resume else None
    found, report = there or Profile(dict(work.model), target, machine(target), {}, ()), on_progress or (lambda done, of, run: None)
    if there is not None and len(there.runs) == len(work.runs):
        return there
    for why, kept in itertools.islice(work.runs, len(found.runs), None):
        run = work.time(why, kept)
        layers = found.layers or {name: work.layers[name] for name in run.layers_ms}
        found = replace(found, layers=layers, runs=(*found.runs, _narrowed(run, layers)), provenance=provenance())
        if len(found.runs) % SAVED_EVERY == 0 or len(found.runs) == len(work.runs):
            found.save(path)
        report(len(found.runs), len(work.runs), run)
    found = _calmed(found, work, report)
    found.save(path)
    return found


def _calmed(found: Profile, work: _Work, report: Progress) -> Profile:
    """`found` with those runs repeated that were made while the machine was slower. The reference shows how slow it was, but other networks,
    with other weights in the caches, are slowed more or less than that. The slowest runs come first; each keeps its calmest repetition.
    """
    runs = list(found.runs)
    for turn in range(AGAIN):
        reference_ms = np.array([run.reference_ms for run in runs])
        slowest = int(reference_ms.argmax())
        if reference_ms[slowest] <= SLOWED * np.quantile(reference_ms, CALM):
            break
        run = _narrowed(work.time(*work.runs[slowest]), found.layers)
        runs[slowest] = min(run, runs[slowest], key=lambda r: r.reference_ms)
        report(len(runs) + turn + 1, len(runs) + AGAIN, run)
    return replace(found, runs=tuple(runs))


def stopwatch(
    model: Model, target: Deployment | str, example: Example | None = None, seconds: float = STOPWATCH_SECONDS
) -> Callable[[nn.Module], float]:
    """Measures the fraction of the full network's time that a cut of `model` takes at `target` on this machine, deployed: they run in turns.

    `model`, `target` and `example` are as in `profile`; each network runs for `seconds`. Raises Unavailable where they cannot run here.
    """
    target = Deployment.parse(target) if isinstance(target, str) else target
    timer = open_timer(target, deployed=True)
    work = _work(model, target, timer, example)
    whole = work.itself

    def measured(network: nn.Module) -> float:
        timing = Whole.of(replace(work, network=copied(unwrap(network)).cpu().eval()).itself, whole, timer.settle_s, seconds)
        return timing.ms / timing.reference_ms

    return measured


def joulemeter(model: Model, target: Deployment, example: Example | None = None) -> tuple[float, Callable[[nn.Module], float]]:
    """The joules of the device for an image through the whole network at `target` on this machine; and a function that measures which
    fraction of them a cut of `model` takes, in turns with the whole.

    Raises Unavailable where the network cannot run here, or nothing counts joules.
    """
    timer, joules = open_timer(target, deployed=True), energy.counter(target.device)
    work = _work(model, target, timer, example)
    whole = work.itself

    def spent(call: Call) -> float:
        found = energy.per_image(joules, call, target.batch)
        if found <= 0:
            raise Unavailable(f"the counter of energy of this {target.device} stood still while a network ran")
        return found

    def measured(network: nn.Module) -> float:
        small = replace(work, network=copied(unwrap(network)).cpu().eval()).itself
        return statistics.median(spent(small) / spent(whole) for _ in range(TURNS))

    return statistics.median(spent(whole) for _ in range(TURNS)), measured


def described(model: Model, example: Example | None = None) -> Mapping[str, Any]:
    """What a profile calls `model`. Raises InvalidSetting where a network comes without an example of its inputs."""
    if isinstance(model, Mapping):
        if model.keys() != {"name", "arguments"}:
            raise InvalidSetting("model= is a network, or a table with the name and the arguments of build_model; it is another table")
        return model
    network, example = network_and_example(model, example, dense=True)
    return named_network(network, Arguments.of(example).tensors)


def _work(model: Model, target: Deployment, timer: LayerTimer, example: Example | None) -> _Work:
    """The network: of a name with weights at random. Raises InvalidSetting as `described` does."""
    named = described(model, example)
    if not isinstance(model, Mapping):
        network, example = network_and_example(model, example, dense=True)
        return _Work(made_distinct(copied(network).cpu().eval()), named, target, timer, example)
    shape = (named["arguments"]["in_channels"], *height_width(named["arguments"]["image_size"]))
    with seeded(stream("first weights", 0)):
        network = build_model(named["name"], **named["arguments"]).eval()
    return _Work(made_distinct(network), named, target, timer, torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)))


def _there(path: Path, model: Mapping[str, Any], target: Deployment) -> Profile | None:
    if not path.exists():
        return None
    found = Profile.load(path)
    found.check_fits(model, target)
    found.check_here()
    return found


def _narrowed(run: Run, layers: Mapping[str, LayerKind]) -> Run:
    """The part of `run` that concerns `layers`."""
    layers_ms = {name: ms for name, ms in run.layers_ms.items() if name in layers}
    return replace(run, widths={name: run.widths[name] for name in layers}, layers_ms=layers_ms)


@dataclass
class _Work:
    """The network, and what it is timed as."""

    network: nn.Module
    model: Mapping[str, Any]
    target: Deployment
    timer: LayerTimer
    example: Example

    @cached_property
    def inputs(self) -> Arguments:
        """As many rows as the target's batch: those of the example, then noise like them."""
        return probe(self.network, self.example, self.target.batch).example

    @cached_property
    def few(self) -> Arguments:
        return probe(self.network, self.example, min(2, self.target.batch)).example

    @cached_property
    def folded(self) -> nn.Module:
        return fold_batch_norm(self.network, self.few)[0].eval()

    @cached_property
    def groups(self) -> tuple[Any, ...]:
        return trace(self.folded, self.few)

    @cached_property
    def widths(self) -> Mapping[str, Any]:
        return layer_widths(self.folded, self.groups)

    @cached_property
    def layers(self) -> dict[str, LayerKind]:
        free = {g.name for g in self.groups if not g.frozen}
        return {
            name: LayerKind(kind(self.folded.get_submodule(name)), bool(free & {*w.read.per_channel}), bool(free & {*w.made.per_channel}))
            for name, w in self.widths.items()
        }

    @cached_property
    def runs(self) -> list[tuple[Why, design.Kept]]:
        """What is timed, in order: the whole network first."""
        free = self._free
        if not free:
            raise InvalidModel("nothing of this network can be cut, so its widths cannot be profiled; `ltcompile plan` says why")
        colour = design.colours(free, self.widths.values())
        whole, *others = design.grid(free, colour)
        return [
            ("dense", whole),
            *(("grid", kept) for kept in others),
            *(("alignment", kept) for kept in design.below_edges(free, colour)),
            *(("check", kept) for kept in design.held_back(free)),
        ]

    def time(self, why: Why, some: design.Kept) -> Run:
        kept = {g.name: g.width for g in self.groups} | some
        timing: Timing = self.timer.time(self._variant(some), self.inputs, self.reference)
        widths = {name: (int(w.read.of(kept)), int(w.made.of(kept))) for name, w in self.widths.items()}
        return Run(why, widths, timing.ms, timing.spread, timing.layers_ms, timing.reference_ms)

    @cached_property
    def reference(self) -> Call:
        """A small cut that runs in turns with all others, and shows how fast the machine currently is."""
        return self.timer.call(self._variant(design.small(self._free)), self.inputs)

    @cached_property
    def itself(self) -> Call:
        """The network as it is."""
        return self.timer.call(self._checked(Variant(self.folded, self._exports.whole if self.timer.reads_onnx else None)), self.inputs)

    @cached_property
    def _free(self) -> list[TiedGroups]:
        return [b for b in tied_groups(self.groups) if not b.frozen]

    def _cut(self, some: design.Kept) -> nn.Module:
        """The network at some widths; what is not cut shares its memory with the network."""
        kept = {g.name: g.width for g in self.groups} | some
        plan = PruningPlan(self.groups, {name: tuple(range(n)) for name, n in kept.items()})
        tensors = itertools.chain(self.folded.parameters(), self.folded.buffers())
        return cut_(copied(self.folded, {id(tensor): tensor for tensor in tensors}), plan).eval()

    def _variant(self, some: design.Kept) -> Variant:
        """The network at some widths, its answers checked."""
        module = self._cut(some)
        return self._checked(Variant(module, self._exports.of(module) if self.timer.reads_onnx else None))

    def _checked(self, variant: Variant) -> Variant:
        self.timer.check(variant, probe(self.network, self.example, CHECKED).example)
        return variant

    @cached_property
    def _exports(self) -> Exports:
        checked = probe(self.network, self.example, CHECKED)
        return Exports(self.folded, lambda: self._cut(design.half(self._free)), self.few, checked, self.target.precision)
