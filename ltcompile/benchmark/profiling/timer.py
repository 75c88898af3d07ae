"""How long a network takes as a whole, and how that time falls to its layers, in each runtime that records the times of operations."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ltcompile import runtimes
from ltcompile.benchmark.profiling.layers import assign, names, shares
from ltcompile.core.deployment import COMPILED, ENGINE, Deployment
from ltcompile.engine.cpu import candidates
from ltcompile.errors import Disagreement, InvalidModel, Unavailable
from ltcompile.graph.inputs import Example
from ltcompile.graph.widths import LAYERS
from ltcompile.lower import HalfInside
from ltcompile.lower.answers import answers, feeds, of_network
from ltcompile.lower.evaluate import evaluator_of_all
from ltcompile.lower.export import Flat
from ltcompile.lower.fake_quantize import precision_of
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.simulate import HALVES, rounded_network
from ltcompile.numerics import Answers, compare
from ltcompile.runtimes import Options, Session, Subject, Trace
from ltcompile.timing import SETTLE_S, interleave

SECONDS = 0.3  # for each of the whole, the reference, and the layers
SLOW_MS, SLOW_SECONDS = 20.0, 0.5  # where recording costs nothing: for the whole with its layers, and the reference
ASLEEP_S = 0.005  # until the caches are a network's own again, where the threads of the other one sleep
MOST_SPREAD = 1.4  # p80 over p20 of what blocks say: beyond it, a timing is made again, for longer
PATIENCE = 2.0  # times as long, at most
LEAST_RUNS, MOST_RUNS = 4, 60
Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a network: the median of the whole, and what of it falls to each layer; and the reference's, which ran in turns with
    it, so that ms / reference_ms is the median of their ratio over pairs of neighbouring blocks, of which `spread` is p80 over p20."""

    ms: float
    spread: float
    layers_ms: dict[str, float]
    reference_ms: float


@dataclass(frozen=True)
class Variant:
    """One network to time: its folded fp32 module, and its onnx model in the target's precision, where the runtime reads one."""

    module: nn.Module
    onnx: Any


@dataclass(frozen=True)
class LayerTimer:
    """Times networks at `target`, each in turns with a reference: machines are slower in some minutes than in others.

    Wholes that are `deployed` run as sessions do by default; otherwise threads sleep between calls where the runtime can, so that turns
    may be short. `settle_s` is how long a block of a turn runs unmeasured: until the threads of the other network have stopped spinning.
    """

    target: Deployment
    deployed: bool = False
    settle_s: float = field(init=False)

    def __post_init__(self) -> None:
        sleeps = not self.deployed and runtimes.declared(self.target.runtime, "SLEEPS")
        object.__setattr__(self, "settle_s", ASLEEP_S if sleeps else SETTLE_S)

    @property
    def reads_onnx(self) -> bool:
        """Whether variants need an ONNX model."""
        return bool(runtimes.declared(self.target.runtime, "READS_ONNX"))

    def check(self, variant: Variant, example: Example) -> None:
        """Raises Disagreement where the runtime does not answer to the example what PyTorch does."""
        inputs = Inputs.of(variant.module, example)
        session = self._session(variant, inputs, replace(self.target, batch=inputs.batch))
        found = {name: np.asarray(value) for name, value in session.run(feeds(inputs)).items()}
        if reason := compare(found, *self._expected(variant, inputs)).refusal:
            raise Disagreement(
                f"the runtime does not compute the network at widths that are to be timed: {reason}; profile with another runtime"
            )

    def call(self, variant: Variant, example: Example) -> Call:
        """One run of the whole network."""
        inputs = Inputs.of(variant.module, example)
        return self._session(variant, inputs, self.target).bind(feeds(inputs)).call

    def time(self, variant: Variant, example: Example, reference: Call) -> Timing:
        """Raises InvalidModel where no layer has a time."""
        inputs = Inputs.of(variant.module, example)
        traced = self._session(variant, inputs, self.target, trace=True)
        call = traced.bind(feeds(inputs)).call
        if _second_ms(call) >= SLOW_MS:
            whole = Whole.of(call, reference, self.settle_s, SLOW_SECONDS)
        else:
            whole = Whole.of(self.call(variant, example), reference, self.settle_s)
            for _ in range(int(min(MOST_RUNS, max(LEAST_RUNS, 1000 * SECONDS / whole.ms)))):
                call()
        return whole.timing(self._layers_us(variant, traced.layer_times()))

    def _session(self, variant: Variant, inputs: Inputs, deployment: Deployment, trace: bool = False) -> Session:
        half = deployment.precision in HALVES and variant.onnx is None
        module = HalfInside(variant.module, HALVES[deployment.precision]) if half else variant.module
        module = (module if inputs.is_one_tensor else Flat(module, inputs)).eval()
        onnx = None if variant.onnx is None else variant.onnx.SerializeToString()
        options = Options(trace=trace, spin=self.deployed)
        try:
            return runtimes.load(Subject("the network", module, onnx, deployment.precision), deployment, options)
        except Unavailable as error:
            raise InvalidModel(f"{deployment.runtime} cannot run the network: {error}") from error

    def _expected(self, variant: Variant, inputs: Inputs) -> tuple[Answers, Answers | None]:
        """What the variant's module answers, and with the rounding of its precision simulated."""
        exact, precision = answers(of_network(variant.module), inputs, inputs.batch), self.target.precision
        if precision in HALVES:
            return exact, answers(of_network(rounded_network(variant.module, precision)), inputs, inputs.batch)
        int8 = variant.onnx is not None and precision_of(variant.onnx) == "int8"
        return exact, evaluator_of_all(variant.onnx)(feeds(inputs)) if int8 else None

    def _layers_us(self, variant: Variant, trace: Trace) -> dict[str, float]:
        """Layer -> microseconds, over all calls but the first, which allocates."""
        layers: list[str | None]
        if variant.onnx is None:  # operations are the layers themselves, in a Flat or HalfInside with its prefix
            known = dict(variant.module.named_modules())
            layers = [name if name in known else name.removeprefix("network.").removeprefix("module.") for name in trace.names]
        else:
            operations = names(variant.onnx, [name for name, layer in variant.module.named_modules() if isinstance(layer, LAYERS)])
            layers = assign(list(zip(trace.names, trace.products, strict=True)), operations)
        found: dict[str, list[float]] = defaultdict(list)
        for call in trace.us[1:].tolist():
            for layer, us in shares(list(zip(layers, call, strict=True))).items():
                found[layer].append(us)
        return {layer: _middle(us) for layer, us in found.items()}


def open_timer(target: Deployment, *, deployed: bool = False) -> LayerTimer:
    """For profiles; or, of wholes that are `deployed`, as they will run. Raises Unavailable where it cannot be profiled here."""
    if target.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device here; profile on the machine that has it, and carry the file back")
    if target.runtime == ENGINE:
        raise Unavailable(_instead_of_engine(target))
    if target.precision not in _traced(target.runtime, target.device):
        known = (
            f"{device}:{name} ({', '.join(_traced(name, device))})"
            for name in runtimes.names()
            for device in ("cpu", "cuda")
            if _traced(name, device)
        )
        raise Unavailable(f"no times of single layers are recorded for {target}; there are {', '.join(known)}")
    if reason := runtimes.unavailable(target.runtime, target.device):
        raise Unavailable(f"{target.runtime} ({target.device}): {reason}")
    return LayerTimer(target, deployed)


def _traced(runtime: str, device: str) -> tuple[str, ...]:
    """The precisions in which a runtime records the times of operations."""
    found: tuple[str, ...] = runtimes.declared(runtime, "TRACED", {}).get(device, ())
    return found


def _instead_of_engine(target: Deployment) -> str:
    """What to profile where the engine will run the network: it takes the fastest runtime for that network, and records no layers itself."""
    if target.device == "cuda":
        return f"the engine records no times of single layers; profile {replace(target, runtime='eager')}, the nearest that does"
    there = sorted({c.runtime for c in candidates(target.precision)[0]} - {COMPILED})
    traced = [str(replace(target, runtime=name)) for name in there if target.precision in _traced(name, target.device)]
    instead = f"Profile that one: {' or '.join(traced)}" if traced else f"None of them records layers in {target.precision}; take fp32"
    return (
        f"the engine takes the runtime that is fastest for a network, here one of {', '.join(there) or 'none'}; `ltcompile compile` says "
        f"which. {instead}"
    )


@dataclass(frozen=True)
class Whole:
    """The part of a Timing that concerns one whole network."""

    ms: float
    spread: float
    reference_ms: float

    @classmethod
    def of(cls, call: Call, reference: Call, settle_s: float, seconds: float = SECONDS) -> Whole:
        """About `seconds` of either; what is noisy is timed again, for longer."""
        longest = PATIENCE * seconds
        while True:
            times = interleave({"": call, "reference": reference}, seconds=seconds, settle_s=settle_s)
            turns = np.log(np.median(times[""], axis=1) / np.median(times["reference"], axis=1))
            between = (turns[1:] + turns[:-1]) / 2  # which is first alternates, so that a drift cancels
            p20, p50, p80 = (float(q) for q in np.exp(np.quantile(between, [0.2, 0.5, 0.8])))
            if p80 / p20 <= MOST_SPREAD or seconds >= longest:
                ms = float(np.median(times[""]))
                return cls(ms, p80 / p20, ms / p50)
            seconds = longest

    def timing(self, layers: dict[str, float]) -> Timing:
        """With the layers' times, scaled so that they add up to the whole: recording takes time of its own. A layer that a runtime melts
        into another has none. Raises InvalidModel where no layer has any.
        """
        if not layers:
            raise InvalidModel("the runtime gave no layer's time under a name that the network has; profile with another runtime")
        scale = self.ms / sum(layers.values())
        return Timing(self.ms, self.spread, {name: max(scale * t, 1e-6) for name, t in layers.items()}, self.reference_ms)


def _second_ms(call: Call) -> float:
    """Milliseconds, once what the first run allocates is there."""
    call()
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _middle(values: list[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half: traces count whole microseconds, and a median of those is too coarse."""
    ordered = np.sort(values)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())
