"""How long a network takes as a whole, and how that time falls to its layers, in each runtime that tells."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltcompile.benchmark.profiling.layers import PRODUCTS, Names, assign, names, shares
from ltcompile.core.deployment import Deployment
from ltcompile.engine.cpu import candidates
from ltcompile.errors import BadModel, Disagreement, Unavailable
from ltcompile.graph.widths import LAYERS
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantise import precision_of
from ltcompile.lower.simulate import HALVES, rounded_network
from ltcompile.numerics import Expected
from ltcompile.runtimes._process import openvino_core
from ltcompile.timing import SETTLE_S, race

SECONDS = 0.3  # for each of the whole, what runs beside it, and the layers
SLOW_MS, SLOW_SECONDS = 20.0, 0.5  # where tracing takes nothing beside it: for the whole with its layers, and what runs beside them
MOST_SPREAD = 1.4  # p80 over p20 of what blocks say: beyond it, a timing is made again, for longer
PATIENCE = 2.0  # times as long, at most
LEAST_RUNS, MOST_RUNS = 4, 60
TRACED = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8")}  # precisions, on CPUs
VINO_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a network: the median of the whole, and what of it falls to each layer; and what ran in turns with it, so that
    ms / beside_ms is the median of their ratio over pairs of neighbouring blocks, of which `spread` is p80 over p20."""

    ms: float
    spread: float
    layers_ms: dict[str, float]
    beside_ms: float


@dataclass(frozen=True)
class Variant:
    """One network to time: its folded module, and its onnx model."""

    module: nn.Module
    onnx: Any


Call = Callable[[], object]


class Runtime(Protocol):
    """What can run a network, and time its layers in turns with another call: machines are slower in some minutes than in others.

    `settle_s` is how long a block of such a turn runs unmeasured: until the threads of the other call have stopped spinning for work.
    """

    settle_s: float

    def check(self, variant: Variant, images: Tensor) -> None: ...
    def call(self, variant: Variant, images: Tensor) -> Call: ...
    def time(self, variant: Variant, images: Tensor, beside: Call) -> Timing: ...


def open_runtime(target: Deployment, *, deployed: bool = False) -> Runtime:
    """For profiles; or, of wholes that are `deployed`, as they will run. Raises Unavailable where it cannot be profiled here."""
    if target.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("there is no CUDA device here; profile on the machine that has it, and carry the file back")
    if target.backend == "engine":
        raise Unavailable(_instead_of_engine(target))
    if target.device == "cpu" and target.precision in TRACED.get(target.backend, ()):
        return OnnxRuntime(spins=deployed) if target.backend == "onnxruntime" else OpenVino("bf16" if target.precision == "bf16" else "f32")
    if target.backend == "eager" and (target.precision == "fp32" or (target.device == "cuda" and target.precision in ("fp16", "bf16"))):
        return Eager(target)
    raise Unavailable(
        f"nothing tells the time of single layers for {target}; there are cpu:onnxruntime (fp32, int8), cpu:openvino (fp32, bf16, int8), "
        "cpu:eager (fp32) and cuda:eager (fp32, fp16, bf16)"
    )


def _instead_of_engine(target: Deployment) -> str:
    """What to profile where the engine will run the network: it takes whoever is fastest for that network, and tells no layers itself."""
    if target.device == "cuda":
        return (
            f"nothing tells the time of single layers inside the engine; profile {replace(target, backend='eager')}, the nearest that tells"
        )
    there = {c.runtime for c in candidates(target.precision)[0]}
    told = [str(replace(target, backend=name)) for name, precisions in TRACED.items() if name in there and target.precision in precisions]
    return (
        f"the engine takes whoever is fastest for a network, here one of {', '.join(sorted(there)) or 'none'}; `ltcompile compile` says whom. "
        + (f"Profile the one that it takes: {' or '.join(told)}" if told else f"None of them tells layers in {target.precision}; take fp32")
    )


@dataclass(frozen=True)
class Whole:
    """Of one network, what a Timing tells of the whole."""

    ms: float
    spread: float
    beside_ms: float

    @classmethod
    def of(cls, call: Call, beside: Call, settle_s: float, seconds: float = SECONDS) -> Whole:
        """About `seconds` of either; what is noisy is timed again, for longer."""
        longest = PATIENCE * seconds
        while True:
            times = race({"": call, "beside": beside}, seconds=seconds, settle_s=settle_s)
            turns = np.log(np.median(times[""], axis=1) / np.median(times["beside"], axis=1))
            between = (turns[1:] + turns[:-1]) / 2  # who begins alternates, so that what drifts cancels
            p20, p50, p80 = (float(q) for q in np.exp(np.quantile(between, [0.2, 0.5, 0.8])))
            if p80 / p20 <= MOST_SPREAD or seconds >= longest:
                ms = float(np.median(times[""]))
                return cls(ms, p80 / p20, ms / p50)
            seconds = longest

    def timing(self, layers: dict[str, float]) -> Timing:
        """With the layers' times, scaled so that they add up to the whole: tracing takes time of its own. A layer that a runtime melts
        into another has none. Raises BadModel where no layer has any.
        """
        if not layers:
            raise BadModel("the runtime told no layer's time under a name that the network knows; profile with another backend")
        scale = self.ms / sum(layers.values())
        return Timing(self.ms, self.spread, {name: max(scale * t, 1e-6) for name, t in layers.items()}, self.beside_ms)


@torch.no_grad()
def _expected(variant: Variant, images: Tensor, precision: str) -> Expected:
    """What the variant's module answers, and with the rounding of `precision` simulated."""
    exact = variant.module(images).numpy()
    if precision == "int8":
        return Expected(exact, evaluator(variant.onnx)(images.numpy()))
    return Expected(exact, rounded_network(variant.module, precision)(images).numpy() if precision in HALVES else None)


def _check(expected: Expected, found: Any) -> None:
    if reason := expected.refusal(found):
        raise Disagreement(
            f"the runtime does not compute the network at widths that are to be timed: {reason}; profile with another backend"
        )


def _second_ms(call: Call) -> float:
    """Milliseconds, once what the first run allocates is there."""
    call()
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _repeat(call: Callable[[], object], ms: float) -> int:
    """Run `call` as often as is worth it for the layers; how often that was."""
    runs = int(min(MOST_RUNS, max(LEAST_RUNS, 1000 * SECONDS / ms)))
    for _ in range(runs):
        call()
    return runs


class OnnxRuntime:
    """ONNX Runtime on the CPU, by its own trace; its threads spin between calls, as they do by default, or sleep."""

    def __init__(self, spins: bool) -> None:
        self._spins = spins
        self.settle_s = SETTLE_S if spins else 0.005  # until the caches are its own again

    def check(self, variant: Variant, images: Tensor) -> None:
        """Raises Disagreement where it does not answer to images (N, C, H, W) what PyTorch does."""
        expected = _expected(variant, images, precision_of(variant.onnx))
        _check(expected, self._call(self._session(variant.onnx.SerializeToString(), len(images), None), images)()[0])

    def call(self, variant: Variant, images: Tensor) -> Call:
        return self._call(self._session(variant.onnx.SerializeToString(), len(images), None), images)

    @staticmethod
    def _call(session: Any, images: Tensor) -> Callable[[], Any]:
        return functools.partial(session.run, None, {session.get_inputs()[0].name: images.numpy()})

    def time(self, variant: Variant, images: Tensor, beside: Call) -> Timing:
        data = variant.onnx.SerializeToString()
        with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
            traced = self._session(data, len(images), Path(folder) / "trace")
            call = self._call(traced, images)
            if _second_ms(call) >= SLOW_MS:
                whole = Whole.of(call, beside, self.settle_s, SLOW_SECONDS)
            else:
                whole = Whole.of(self._call(self._session(data, len(images), None), images), beside, self.settle_s)
                _repeat(call, whole.ms)
            events = json.loads(Path(traced.end_profiling()).read_text())
        known = names(variant.onnx, _layers(variant.module))
        return whole.timing(_traced(events, known))

    def _session(self, data: bytes, batch: int, trace: Path | None) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_free_dimension_override_by_name("batch", batch)
        if not self._spins:  # for 40 ms, on the cores of whoever's turn is next
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace)
        try:
            return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it raises its own
            raise BadModel(f"ONNX Runtime cannot run the network: {str(error).splitlines()[0][:300]}") from error


def _traced(events: list[dict[str, Any]], known: Names) -> dict[str, float]:
    """Layer -> microseconds, the median over runs, from the start of its operation to the start of the next layer's."""
    runs: list[list[dict[str, Any]]] = []
    for event in sorted((e for e in events if e.get("cat") in ("Node", "Session")), key=lambda e: e["ts"]):
        if event["name"] == "model_run":
            runs.append([])
        elif runs and event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
    runs = [run for run in runs if run][1:]  # the first one allocates
    told = [(e["name"].removesuffix("_kernel_time"), e["args"].get("op_name") in PRODUCTS) for e in runs[0]]
    layers = assign(told, known)
    found: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        ends = [*(e["ts"] for e in run[1:]), run[-1]["ts"] + run[-1]["dur"]]
        for layer, us in shares([(name, end - e["ts"]) for name, e, end in zip(layers, run, ends, strict=True)]).items():
            found[layer].append(us)
    return {layer: _middle(us) for layer, us in found.items()}


def _middle(values: list[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half: traces count whole microseconds, and a median of those is too coarse."""
    ordered = np.sort(values)
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


class OpenVino:
    """OpenVINO on the CPU, by its own counters."""

    settle_s = SETTLE_S

    def __init__(self, precision: str) -> None:
        self._precision = precision

    def check(self, variant: Variant, images: Tensor) -> None:
        """Raises Disagreement where it does not answer to images (N, C, H, W) what PyTorch does."""
        expected = _expected(variant, images, "bf16" if self._precision == "bf16" else precision_of(variant.onnx))
        request = self._request(variant.onnx.SerializeToString(), images, counting=False)
        request.infer()
        _check(expected, request.get_output_tensor().data)

    def call(self, variant: Variant, images: Tensor) -> Call:
        infer: Call = self._request(variant.onnx.SerializeToString(), images, counting=False).infer
        return infer

    def time(self, variant: Variant, images: Tensor, beside: Call) -> Timing:
        whole = Whole.of(self.call(variant, images), beside, self.settle_s)
        counting = self._request(variant.onnx.SerializeToString(), images, counting=True)
        runs: list[list[Any]] = []

        def call() -> None:
            counting.infer()
            runs.append(counting.profiling_info)

        _repeat(call, whole.ms)
        told = [(i.node_name, i.node_type in VINO_PRODUCTS) for i in runs[0]]
        known = names(variant.onnx, _layers(variant.module))
        layers = assign(told, known)
        found: dict[str, list[float]] = defaultdict(list)
        for run in runs[1:]:
            for layer, us in shares([(name, i.real_time.total_seconds() * 1e6) for name, i in zip(layers, run, strict=True)]).items():
                found[layer].append(us)
        return whole.timing({layer: _middle(us) for layer, us in found.items()})

    def _request(self, data: bytes, images: Tensor, counting: bool) -> Any:
        import openvino

        network = openvino_core().read_model(data)
        network.reshape(list(images.shape))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self._precision, "PERF_COUNT": counting}
        request = openvino_core().compile_model(network, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(images.numpy())))
        return request


class Eager:
    """PyTorch as it is, channels last, by hooks in front of the layers."""

    settle_s = SETTLE_S

    def __init__(self, target: Deployment) -> None:
        self._device = torch.device(target.device)
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[target.precision]

    @torch.no_grad()
    def check(self, variant: Variant, images: Tensor) -> None:
        """Raises Disagreement where it does not answer to images (N, C, H, W) what PyTorch does on the CPU in fp32."""
        expected = _expected(variant, images, next((name for name, dtype in HALVES.items() if dtype == self._dtype), "fp32"))
        model, placed = self._placed(variant, images)
        _check(expected, model(placed).float())

    def call(self, variant: Variant, images: Tensor) -> Call:
        model, placed = self._placed(variant, images)

        @torch.inference_mode()
        def call() -> None:
            model(placed)
            self._wait()

        return call

    def _placed(self, variant: Variant, images: Tensor) -> tuple[nn.Module, Tensor]:
        model = variant.module.to(self._device, self._dtype).to(memory_format=torch.channels_last)
        return model, images.to(self._device, self._dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def time(self, variant: Variant, images: Tensor, beside: Call) -> Timing:
        whole = Whole.of(self.call(variant, images), beside, self.settle_s)
        model, placed = self._placed(variant, images)
        marks: list[tuple[str, Any]] = []
        hooks = [layer.register_forward_pre_hook(functools.partial(self._mark, marks, name)) for name, layer in _modules(model)]
        found: dict[str, list[float]] = defaultdict(list)
        try:
            for _ in range(int(min(MOST_RUNS, max(LEAST_RUNS, 1000 * SECONDS / whole.ms)))):
                marks.clear()
                model(placed)
                self._mark(marks, "", None, None)
                self._wait()
                times = [(name, self._between(mark, end)) for (name, mark), (_, end) in itertools.pairwise(marks)]
                for layer, us in shares(times).items():  # type: ignore[arg-type]  # each has a layer
                    found[layer].append(us)
        finally:
            for hook in hooks:
                hook.remove()
        return whole.timing({layer: _middle(us[1:]) for layer, us in found.items()})

    def _mark(self, marks: list[tuple[str, Any]], name: str, _: Any, __: Any) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append((name, event))
        else:
            marks.append((name, time.perf_counter()))

    def _between(self, start: Any, end: Any) -> float:
        return float(1000 * start.elapsed_time(end) if self._device.type == "cuda" else 1e6 * (end - start))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LAYERS)]


def _layers(model: nn.Module) -> list[str]:
    return [name for name, _ in _modules(model)]
