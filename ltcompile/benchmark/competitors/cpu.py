"""Who races on a CPU."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ltcompile.benchmark.competitors import _torch
from ltcompile.benchmark.competitors.entrant import ENGINE, Entrant, Network, Ready
from ltcompile.engine import cpu, host
from ltcompile.engine.cpu import COMPILE, ONNXRUNTIME, OPENVINO, Candidate
from ltcompile.engine.engine import Run
from ltcompile.errors import Unavailable
from ltcompile.training.device import multiplies_bf16


def _engine(network: Network, images: Tensor, precision: str) -> Ready:
    _check(precision)
    source, expected = network.source(precision, len(images)), network.expected(images)
    winner, run, decision = host.choose(source, images, expected, lambda _: None, network.agreement(precision))
    return _ready(run, images, f"{winner} (tie with {decision.runner_up})" if decision.tie else str(winner))


def _runtime(network: Network, images: Tensor, precision: str, runtime: str) -> Ready:
    """A runtime with its own number of threads, for this shape alone."""
    _check(precision)
    if reason := cpu.candidates(precision)[1].get(runtime):
        raise Unavailable(reason)
    return _ready(cpu.build(Candidate(runtime), network.source(precision, len(images)), len(images)), images)


def _compiled(network: Network, images: Tensor, precision: str) -> Ready:
    _check(precision)
    if reason := cpu.candidates(precision)[1].get(COMPILE):
        raise Unavailable(reason)
    return _torch.compiled(network, images, "cpu", precision)


def _check(precision: str) -> None:
    """Raises Unavailable where the precision would be emulated."""
    if precision == "bf16" and not multiplies_bf16(torch.device("cpu")):
        raise Unavailable("this CPU has no bf16 products (AVX512-BF16 or AMX); they would be emulated, slower than fp32")


def _ready(run: Run, images: Tensor, how: str = "") -> Ready:
    placed, answers = images.clone(), list[Tensor]()

    def call() -> None:
        answers[:] = [run(placed)]

    return Ready(call, lambda: answers[0], placed.copy_, how)


_SETTINGS = {
    ONNXRUNTIME: "its own number of threads, fixed batch",
    OPENVINO: "latency hint, its own number of threads, fixed shape",
}
ENTRANTS = (
    *(Entrant(ENGINE, p, "the fastest of those below, threads tried", functools.partial(_engine, precision=p)) for p in host.PRECISIONS),
    Entrant("eager", "fp32", "channels_last, batch norms folded", functools.partial(_torch.eager, device="cpu", precision="fp32")),
    *(
        Entrant("torch.compile", p, "channels_last, freezing, fixed shape", functools.partial(_compiled, precision=p))
        for p in ("fp32", "bf16")
    ),
    *(
        Entrant(runtime, p, _SETTINGS[runtime], functools.partial(_runtime, runtime=runtime, precision=p))
        for runtime, p in ((ONNXRUNTIME, "fp32"), (ONNXRUNTIME, "int8"), (OPENVINO, "fp32"), (OPENVINO, "bf16"), (OPENVINO, "int8"))
    ),
)
