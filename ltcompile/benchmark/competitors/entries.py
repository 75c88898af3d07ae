"""The competitors on each device: the engine, and every runtime that a user could take instead."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ltcompile import runtimes
from ltcompile.benchmark.competitors.competitor import ENGINE, MAX_DROP, Competitor, Network, Ready
from ltcompile.core.deployment import Deployment
from ltcompile.engine import host
from ltcompile.engine.cpu import candidates, label
from ltcompile.engine.device import Settings
from ltcompile.engine.engine import Run
from ltcompile.engine.signature import Signature, outputs
from ltcompile.errors import Unavailable
from ltcompile.lower.inputs import Inputs
from ltcompile.runtimes import Options
from ltcompile.training.device import multiplies_bf16

FP16 = "fp16"


def competitors(device: str) -> tuple[Competitor, ...]:
    """All of a device. Raises InvalidSetting or Unavailable where there is no such device."""
    if reason := runtimes.unavailable("eager", device):
        raise Unavailable(reason)
    return ON_CPU if device == "cpu" else ON_GPU


def _session(network: Network, images: Tensor, device: str, runtime: str, precision: str, **options: Any) -> Ready:
    """A runtime with its own number of threads, for this shape alone, on a CPU in a process of its own; on a GPU on the current stream."""
    if device == "cpu":
        _check(precision)
        if reason := candidates(precision)[1].get(runtime):
            raise Unavailable(reason)
    deployment = Deployment(device, runtime, len(images), precision)
    session = runtimes.load_apart(network.subject(runtime, precision), deployment, Options(wait=False, **options))
    bound = session.bind(images.numpy().copy())

    def answer() -> Tensor:
        return torch.from_numpy(next(iter(bound.read().values())))

    return Ready(bound.call, answer, lambda others: bound.write(others.numpy().copy()))


def _engine_on_cpu(network: Network, images: Tensor, precision: str) -> Ready:
    _check(precision)
    source, expected = network.source(precision, len(images)), network.expected(images)
    winner, run, decision = host.choose(source, len(images), (images,), (expected,), lambda _: None, network.agreement(precision))
    how = f"{label(winner)} (tie with {decision.runner_up})" if decision.tie else label(winner)
    return _of_run(run, images, how)


def _check(precision: str) -> None:
    """Raises Unavailable where the precision would be emulated."""
    if precision == "bf16" and not multiplies_bf16(torch.device("cpu")):
        raise Unavailable("this CPU has no bf16 products (AVX512-BF16 or AMX); they would be emulated, slower than fp32")


def _of_run(run: Run, images: Tensor, how: str) -> Ready:
    placed, answers = images.clone(), list[Tensor]()

    def call() -> None:
        answers[:] = outputs(run(placed))

    return Ready(call, lambda: answers[0], placed.copy_, how)


def _engine_on_gpu(network: Network, images: Tensor) -> Ready:
    from ltcompile.engine.gpu import Gpu, Graph

    inputs, settings = Inputs.of(network.module, images.cpu()), Settings(MAX_DROP, tune_seconds=0.0)
    made = Gpu(FP16).make(network.module, inputs, Signature.of(network.module, inputs), [len(images)], settings, lambda _: None)
    (variant,), graph = made.variants, made.runs[len(images)]
    assert isinstance(graph, Graph)
    answers: list[Tensor] = []

    def write(images: Tensor) -> None:
        answers[:] = [graph(images.cuda())]  # by the graph that is replayed from here on, on the same memory

    def answer() -> Tensor:
        return answers[0].cpu()

    write(images)
    return Ready(graph.graph.replay, answer, write, variant.decision.by, variant)


def _entry(name: str, device: str, runtime: str, precision: str, settings: str, **options: Any) -> Competitor:
    return Competitor(
        name, precision, settings, functools.partial(_session, device=device, runtime=runtime, precision=precision, **options)
    )


_CPU = {
    "eager": ("eager", "channels_last, batch norms folded", ("fp32",)),
    "torch.compile": ("compile", "channels_last, freezing, fixed shape", ("fp32", "bf16")),
    "onnxruntime": ("onnxruntime", "its own number of threads, fixed batch", ("fp32", "int8")),
    "openvino": ("openvino", "latency hint, its own number of threads, fixed shape", ("fp32", "bf16", "int8")),
}
ON_CPU = (
    *(
        Competitor(ENGINE, p, "the fastest of those below, threads tried", functools.partial(_engine_on_cpu, precision=p))
        for p in host.PRECISIONS
    ),
    *(_entry(name, "cpu", runtime, p, settings) for name, (runtime, settings, precisions) in _CPU.items() for p in precisions),
)
LAST, FROZEN = "channels_last, cudnn.benchmark", "channels_last, freezing"
ON_GPU = (
    Competitor(ENGINE, FP16, "its CUDA graph, replayed", _engine_on_gpu),
    _entry("eager", "cuda", "eager", FP16, LAST),
    _entry("eager, recorded", "cuda", "eager", FP16, f"{LAST}, CUDA graph", graph=True),
    _entry("torch.compile", "cuda", "compile", FP16, FROZEN, mode="default"),
    _entry("torch.compile, reduce-overhead", "cuda", "compile", FP16, FROZEN),
    _entry("torch.compile, max-autotune", "cuda", "compile", FP16, FROZEN, mode="max-autotune"),
    _entry(
        "torch.compile, max-autotune, recorded",
        "cuda",
        "compile",
        FP16,
        f"{FROZEN}, CUDA graph",
        mode="max-autotune-no-cudagraphs",
        graph=True,
    ),
    _entry("AOTInductor", "cuda", "compile", FP16, f"{FROZEN}, max_autotune", mode="ahead-of-time"),
    _entry("onnxruntime", "cuda", "onnxruntime", FP16, "prefer_nhwc, CUDA graph, bound buffers"),
    _entry("tensorrt", "cuda", "tensorrt", FP16, "fp16, CUDA graph, bound buffers"),
)
